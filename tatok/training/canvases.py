"""Batches as a model sees them: photos as floats, or latents of a frozen autoencoder, encoded anew or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tatok.autoencoders.canvas import Canvas, LatentCanvas
from tatok.autoencoders.distances import channel_metric, moments, picture_metric
from tatok.autoencoders.frozen import FrozenAutoencoder, open_autoencoder
from tatok.autoencoders.latent_memory import LatentMemory, cached_latents
from tatok.distributed import num_ranks, rank
from tatok.model.pixels import to_float
from tatok.schemas.errors import ConfigError
from tatok.training.config import TrainingConfig
from tatok.training.photos import RandomCrops
from tatok.training.run_folder import RunFolder
from tatok.training.stream import digest_of

__all__ = [
    "autoencoder_beneath",
    "frozen_teacher",
    "latent_memory",
    "on_canvas",
    "put_beneath",
    "refuse_another",
    "to_start_from",
]

METRIC_IMAGES = 64  # of which distances between latents are taken


def autoencoder_beneath(
    config: TrainingConfig, device: torch.device
) -> tuple[TrainingConfig, FrozenAutoencoder | None]:
    """The recipe with the latents that its model works on filled in, and their autoencoder; None where it has none."""
    if config.latents is None:
        return config, None
    autoencoder = open_autoencoder(config.latents.choice, device)
    for stage in config.stages:
        if stage.image_size % autoencoder.space.factor:
            raise ConfigError(
                f"stage {stage.name}: image_size is {stage.image_size}; it must be a multiple of the "
                f"{autoencoder.space.factor} pixels of a latent of {config.latents.autoencoder}"
            )
    return config.model_copy(update={"model": replace(config.model, latents=autoencoder.space)}), autoencoder


def put_beneath(canvas: Canvas, autoencoder: FrozenAutoencoder | None) -> None:
    """Give a canvas of latents its autoencoder; one of pixels has none."""
    if autoencoder is not None:
        assert isinstance(canvas, LatentCanvas)
        canvas.attach(autoencoder)


def frozen_teacher(config: TrainingConfig, device: torch.device) -> FrozenAutoencoder | None:
    """The autoencoder that compares images for a `teacher_weight`; None where no stage has one."""
    taught = [stage for stage in config.stages if stage.teacher_weight]
    if not taught or config.teacher is None:
        return None
    teacher = open_autoencoder(config.teacher.choice, device)
    for stage in taught:
        side = min(stage.image_size, stage.perceptual_size)
        if side < teacher.space.factor:
            raise ConfigError(
                f"stage {stage.name}: windows of {side} pixels are smaller than the {teacher.space.factor} of a latent "
                f"of the teacher {config.teacher.autoencoder}; raise image_size and perceptual_size"
            )
    return teacher


def refuse_another(sha256: str | None, autoencoder: FrozenAutoencoder | None, path: str, role: str) -> None:
    """Raise ConfigError if a state in `path` was written with another one; one that does not say may resume."""
    if autoencoder is not None and sha256 not in (None, autoencoder.space.sha256):
        raise ConfigError(
            f"{path} was written with another {role}, whose weights have the SHA-256 {str(sha256)[:16]}, not "
            f"{autoencoder.space.sha256[:16]}; put that one back, or choose another output"
        )


def on_canvas(canvas: Canvas, batch: Tensor, device: torch.device) -> Tensor:
    """Pixels, uint8 [B, 3, H, W] or clips of them, or kept latents, float [B, A, h, w], as the model sees them."""
    batch = batch.to(device, non_blocking=True)
    with torch.no_grad():
        if isinstance(canvas, LatentCanvas) and batch.is_floating_point():
            return canvas.of_latents(batch)
        return canvas.working(to_float(batch))


@dataclass(frozen=True, slots=True)
class _Canvases:
    """Batches of pixels as canvases; made when they are asked for, since all at once would take too much memory."""

    canvas: Canvas
    batches: Sequence[Tensor]
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        return (on_canvas(self.canvas, batch, self.device) for batch in self.batches)


def to_start_from(
    canvas: Canvas, batches: Sequence[Tensor], device: torch.device, config: TrainingConfig
) -> Iterable[Tensor]:
    """What bases and codebooks start from; a canvas of latents takes up their mean and distances first."""
    if not isinstance(canvas, LatentCanvas):
        return _Canvases(canvas, batches, device)
    assert canvas.autoencoder is not None
    assert config.latents is not None
    encode = canvas.autoencoder.encode
    given = (batch.to(device) for batch in batches)
    latents = [batch.float() if batch.is_floating_point() else encode(to_float(batch)) for batch in given]
    mean_A, covariance_AA = moments(latents)
    metric_AA = channel_metric(covariance_AA)
    if config.latents.distances == "picture":
        metric_AA = picture_metric(canvas.autoencoder, torch.cat(latents)[:METRIC_IMAGES])
    canvas.start(mean_A, metric_AA)
    return [canvas.of_latents(batch) for batch in latents]


def latent_memory(
    config: TrainingConfig,
    autoencoder: FrozenAutoencoder,
    photos: Sequence[str],
    folder: RunFolder,
    *,
    found: LatentMemory | None,
    encode: Callable[[Tensor], Tensor],
    counting: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
    check: Callable[[], None],
) -> LatentMemory:
    """This rank's share of the crops, of the largest stage's size, encoded and kept in the run's folder.

    What was `found` before is given again if it is of the same. `encode` makes latents of uint8 [B, 3, H, W];
    `counting` shows how many there are; `check` is called after each block of crops, and may raise.
    """
    assert config.latents is not None
    size, smallest = max(stage.image_size for stage in config.stages), config.latents.smallest_crop
    num_crops = max(1, config.latents.num_cached_crops // num_ranks())
    name = digest_of(list(photos), size, smallest, config.seed, rank(), num_ranks(), autoencoder.space.sha256)
    if found is not None and found.name == name:
        return found
    crops = RandomCrops(photos, size, config.seed, smallest_crop=smallest, rank=rank())
    stream = (crop for crop, _ in crops.placed(0, 1, crops.START))
    blocks: list[Tensor] = []
    with counting("latents of crops", num_crops) as count:
        num_encoded = 0  # of the block at hand; one that was kept is counted when it is read

        def encoded(pixels: Tensor) -> Tensor:
            nonlocal num_encoded
            latents = encode(pixels)
            num_encoded += len(latents)
            count(len(latents))
            return latents

        for block in cached_latents(stream, num_crops, encoded, folder, name):
            blocks.append(block)
            count(len(block) - num_encoded)
            num_encoded = 0
            check()
    return LatentMemory(torch.cat(blocks), autoencoder.space.factor, name)
