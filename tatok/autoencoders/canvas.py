"""The canvas: what a model computes on. Pixels as they are, or the latents of a frozen autoencoder in their place.

A model cuts a canvas into patches, codes them, and fills a canvas anew, whatever it shows; the canvas alone knows how
pixels become it and how it is drawn. A canvas of latents is moved and turned so that the squared length of what is lost
there speaks of what is lost in the picture: base image, residuals, distances and thresholds then mean the same on both.

Shapes: B batch, A channels of the canvas (3 of pixels), h and w its sides, H and W those of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tatok.autoencoders.frozen import FrozenAutoencoder, LatentSpace
from tatok.schemas.errors import ConfigError

__all__ = ["Canvas", "LatentCanvas", "PixelCanvas"]

TRIED_SIDE = 8  # latents
TRIED_TOLERANCE = 0.03

Self = TypeVar("Self", bound="LatentCanvas")


class PixelCanvas(nn.Module):
    """Pixels themselves: nothing is done to them."""

    def working(self, images_B3HW: Tensor) -> Tensor:
        """The canvas [B, A, h, w] of images, float in [-1, 1]."""
        return images_B3HW

    def images(self, canvas_BAhw: Tensor) -> Tensor:
        """Images, float [B, 3, H, W], about [-1, 1], that a canvas shows."""
        return canvas_BAhw

    def document(self) -> dict[str, Any] | None:
        """What lies beneath, as a checkpoint notes it; nothing."""
        return None


class LatentCanvas(nn.Module):
    """Latents of a frozen autoencoder, moved by their mean and multiplied by a matrix [A, A].

    The autoencoder is no part of the module's state: checkpoints name it, by its hash and where it was found. The state
    holds what it made of one small picture, since equal weights under changed code make other latents.
    """

    mean_A: Tensor
    tried_latents_Ahw: Tensor
    tried_picture_3HW: Tensor
    to_AA: Tensor
    from_AA: Tensor

    def __init__(self, space: LatentSpace) -> None:
        super().__init__()
        self.space = space
        self.autoencoder: FrozenAutoencoder | None = None
        self.register_buffer("mean_A", torch.zeros(space.channels))
        self.register_buffer("to_AA", torch.eye(space.channels))
        self.register_buffer("from_AA", torch.eye(space.channels))
        side = TRIED_SIDE * space.factor
        self.register_buffer("tried_latents_Ahw", torch.zeros(space.channels, TRIED_SIDE, TRIED_SIDE))
        self.register_buffer("tried_picture_3HW", torch.zeros(3, side, side))

    def attach(self, autoencoder: FrozenAutoencoder) -> None:
        """Put the autoencoder beneath; raises ConfigError unless it is the one that the model was made for."""
        if autoencoder.space != self.space:
            raise ConfigError(
                f"{autoencoder.choice.autoencoder} with {dict(autoencoder.choice.options)} is another autoencoder than "
                f"the checkpoint was trained over: its weights have the SHA-256 {autoencoder.space.sha256[:16]}, "
                f"expected {self.space.sha256[:16]}; name the right one under `over` in the checkpoint's config.json"
            )
        autoencoder.to(self.mean_A.device)
        if self.tried_picture_3HW.any():  # else nothing has been trained over it yet
            before = self.tried_latents_Ahw, self.tried_picture_3HW
            if not all(_is_near(*pair) for pair in zip(self._tried(autoencoder), before, strict=True)):
                raise ConfigError(
                    f"{autoencoder.choice.autoencoder} has the weights that the checkpoint was trained over, but makes "
                    "other latents or pictures of them: its code, its options or its libraries have changed",
                    remedy="put them back as they were, or train again",
                )
        self.autoencoder = autoencoder

    def _tried(self, autoencoder: FrozenAutoencoder) -> tuple[Tensor, Tensor]:
        """Latents and picture of waves of each colour."""
        side, device = TRIED_SIDE * self.space.factor, self.mean_A.device
        steps = torch.arange(side, device=device) * (2 * math.pi / side)
        waves = [torch.sin(k * steps)[:, None] * torch.cos(steps + k) for k in (1.0, 2.0, 3.0)]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            latents = autoencoder.encode(torch.stack(waves)[None])
            return latents[0], autoencoder.decode(latents)[0]

    def working(self, images_B3HW: Tensor) -> Tensor:
        """The canvas [B, A, h, w] of images, float in [-1, 1]."""
        return self.of_latents(self._beneath.encode(images_B3HW))

    def of_latents(self, latents_BAhw: Tensor) -> Tensor:
        """The canvas of latents as the autoencoder makes them."""
        with torch.autocast(latents_BAhw.device.type, enabled=False):
            return torch.einsum("ij,bjhw->bihw", self.to_AA, latents_BAhw.float() - self.mean_A[:, None, None])

    def images(self, canvas_BAhw: Tensor) -> Tensor:
        """Images, float [B, 3, H, W], about [-1, 1], that the autoencoder draws of a canvas; gradients pass through."""
        with torch.autocast(canvas_BAhw.device.type, enabled=False):
            latents = torch.einsum("ij,bjhw->bihw", self.from_AA, canvas_BAhw.float()) + self.mean_A[:, None, None]
        return self._beneath.decode(latents)

    @torch.no_grad()
    def start(self, mean_A: Tensor, metric_AA: Tensor) -> None:
        """Take up latents' mean, and a symmetric positive matrix G: squared lengths on the canvas are then x^T G x."""
        values, vectors = torch.linalg.eigh(metric_AA.double())
        roots = values.clamp_min(1e-12).sqrt()
        self.mean_A.copy_(mean_A)
        self.to_AA.copy_((vectors * roots) @ vectors.T)
        self.from_AA.copy_((vectors / roots) @ vectors.T)
        latents, picture = self._tried(self._beneath)
        self.tried_latents_Ahw.copy_(latents)
        self.tried_picture_3HW.copy_(picture)

    def document(self) -> dict[str, Any] | None:
        """Which autoencoder lies beneath, and where it was found; nothing while there is none."""
        return None if self.autoencoder is None else self.autoencoder.choice.document()

    @property
    def _beneath(self) -> FrozenAutoencoder:
        if self.autoencoder is None:
            raise RuntimeError("the model's autoencoder was not attached (LatentCanvas.attach)")
        return self.autoencoder

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.autoencoder is not None and self.mean_A.device.type != "meta":
            self.autoencoder.to(self.mean_A.device)
        return self


def _is_near(values: Tensor, before: Tensor) -> bool:
    """Alike but for what devices and precisions differ by."""
    return bool((values - before).abs().amax() <= TRIED_TOLERANCE * before.abs().amax())


Canvas = PixelCanvas | LatentCanvas
