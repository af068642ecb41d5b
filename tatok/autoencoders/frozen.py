"""Frozen autoencoders: what one is, how a training file names it, and what a checkpoint remembers of it.

One of your own is an object with the members of `Autoencoder`, made by a function of a module or file:

    class Mine(torch.nn.Module):
        channels, factor = 4, 8

        def encode(self, images): return self.encoder(images)      # float [B, 3, H, W] in [-1, 1] -> [B, 4, H/8, W/8]
        def decode(self, latents): return self.decoder(latents)    # and back, about [-1, 1]

    def load(device, *, path): ...                                 # latents: {autoencoder: mine.py:load, ...}
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tatok.schemas.errors import ConfigError
from tatok.user_code import UserFunction, names_a_file

__all__ = ["Autoencoder", "AutoencoderChoice", "FrozenAutoencoder", "LatentSpace", "open_autoencoder"]

_OWN = {"diffusers": "tatok.adapters.autoencoder:load"}


class Autoencoder(Protocol):
    """What a `load(device, **options)` returns; deterministic, and its sides are multiples of `factor`.

    `channels` C of a latent, and `factor`, the pixels of a latent each way. The weights of an nn.Module are its
    identity, with the text `identity` where it has one, such as a version of its code; anything else needs one.
    """

    channels: int
    factor: int

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Latents [B, C, H / factor, W / factor] of images, float in [-1, 1]."""

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderChoice:
    """Which autoencoder: `diffusers`, `module:load` or `file.py:load`, and the options of its `load`."""

    autoencoder: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"autoencoder": self.autoencoder, "options": dict(self.options)}

    def from_anywhere(self) -> AutoencoderChoice:
        """The same with the files and folders that are here by their absolute paths: a checkpoint outlives `cd`."""
        name = self.autoencoder
        if names_a_file(name):
            file, _, function = name.rpartition(":")
            name = f"{os.path.abspath(file)}:{function}"
        options = {
            key: os.path.abspath(value) if isinstance(value, str) and value and os.path.exists(value) else value
            for key, value in self.options.items()
        }
        return AutoencoderChoice(autoencoder=name, options=options)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpace:
    """The latents that a model was made for: which weights make them, and their shape."""

    sha256: str
    channels: int
    factor: int

    def document(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


class FrozenAutoencoder:
    """An autoencoder without gradients of its own, on a device; a copy of it is itself.

    On a CPU it takes one image at a time: an image's latents must not depend on its batch, and it costs no time.
    """

    def __init__(self, network: Autoencoder, choice: AutoencoderChoice) -> None:
        self.choice = choice
        self._network = network
        if isinstance(network, nn.Module):
            network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.space = LatentSpace(sha256=_identity(network, choice), channels=network.channels, factor=network.factor)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenAutoencoder:
        return self

    def to(self, device: torch.device) -> None:
        """Move the weights, where it has any that can be moved."""
        if isinstance(self._network, nn.Module):
            self._network.to(device)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Latents, float32 [B, C, h, w]."""
        height, width = (side // self.space.factor for side in images_B3HW.shape[2:])
        return self._each(self._network.encode, images_B3HW, (self.space.channels, height, width))

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Images, float32 [B, 3, H, W], about [-1, 1]; gradients pass through."""
        height, width = (side * self.space.factor for side in latents_BChw.shape[2:])
        return self._each(self._network.decode, latents_BChw, (3, height, width))

    def _each(self, function: Callable[[Tensor], Tensor], batch: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not len(batch):  # which not every network takes
            return batch.new_zeros(0, *shape)
        parts = batch.split(1) if batch.device.type == "cpu" else (batch,)
        return torch.cat([function(part.contiguous(memory_format=torch.channels_last)).float() for part in parts])

    def check(self) -> None:
        """Raise ConfigError unless latents and images have the shapes that `channels` and `factor` say."""
        side, space, name = 4 * self.space.factor, self.space, self.choice.autoencoder
        images = torch.zeros(1, 3, side, side, device=self._device)
        try:
            with torch.inference_mode():
                latents = self.encode(images)
                drawn = self.decode(latents)
        except Exception as error:  # whatever the user's network does
            raise ConfigError(
                f"the autoencoder {name} fails on an image of {side}x{side}, float32 in [-1, 1]: "
                f"{type(error).__name__}: {error}"
            ) from error
        if list(latents.shape) != [1, space.channels, 4, 4]:
            raise ConfigError(
                f"the autoencoder {name} makes latents {list(latents.shape)} of images {list(images.shape)}, but says "
                f"channels {space.channels} and factor {space.factor}: expected [1, {space.channels}, 4, 4]"
            )
        if drawn.shape != images.shape:
            raise ConfigError(
                f"the autoencoder {name} draws images {list(drawn.shape)} of latents {list(latents.shape)}; expected "
                f"{list(images.shape)}"
            )

    @property
    def _device(self) -> torch.device:
        parameters: Iterator[Tensor] = iter(())
        if isinstance(self._network, nn.Module):
            parameters = self._network.parameters()
        return next((each.device for each in parameters), torch.device("cpu"))


def _identity(network: Autoencoder, choice: AutoencoderChoice) -> str:
    """SHA-256 of the weights, in float32 whatever they were loaded as, and of the text that the object gives."""
    digest = hashlib.sha256()
    text = getattr(network, "identity", None)
    if text is not None:
        digest.update(str(text).encode())
    if isinstance(network, nn.Module):
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name} {list(tensor.shape)} ".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    elif text is None:
        raise ConfigError(
            f"the autoencoder {choice.autoencoder} is a {type(network).__name__} without `identity`; make it an "
            "nn.Module, whose weights are hashed, or give it a text that changes with what it computes"
        )
    return digest.hexdigest()


def open_autoencoder(choice: AutoencoderChoice, device: torch.device) -> FrozenAutoencoder:
    """Load an autoencoder onto a device, frozen; its shapes are tried.

    Raises ConfigError, naming it, where it cannot be loaded or lacks a member.
    """
    name = _OWN.get(choice.autoencoder, choice.autoencoder)
    load = UserFunction.named(name, "autoencoder", example="my_autoencoder.py:load").load()
    try:
        network = load(str(device), **choice.options)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's function does
        raise ConfigError(
            f"the autoencoder {choice.autoencoder} with options {dict(choice.options)} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = [name for name in ("channels", "factor", "encode", "decode") if not hasattr(network, name)]
    if missing:
        raise ConfigError(
            f"what {choice.autoencoder} returns, a {type(network).__name__}, has no {', '.join(missing)}; see "
            "tatok.autoencoders.frozen.Autoencoder"
        )
    frozen = FrozenAutoencoder(network, choice)
    frozen.to(device)
    frozen.check()
    return frozen
