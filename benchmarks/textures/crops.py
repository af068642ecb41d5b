"""Crops of 128x128 pixels, pixel for pixel, of each kind of content: uint8 [3, 128, 128] each."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tatok.examples import demo_photos
from tatok.training.photos import encoded_photos, expand_sources

__all__ = ["NUM_CROPS", "SIDE", "crops_by_kind", "whole_photos"]

NUM_CROPS, SIDE = 10, 128
TEXTURES = ("grass", "gravel", "brick")
DEVIATIONS = (16, 32, 64)  # of noise, in pixel values of 0 .. 255
_SKY_STEP = 64


def crops_by_kind(photos: Sequence[Tensor], seed: int = 0) -> dict[str, list[Tensor]]:
    """Ten crops of each kind, the same each call; `photos` [3, H, W], of at least 128x128, are whole ones.

    Of photos there is a crop each. Sky is what of their uppermost rows is bluer than red and even, the ten evenest
    ones; ValueError where they show too little of it.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = _named(TEXTURES)
    return {
        "flat": [torch.full((3, SIDE, SIDE), grey, dtype=torch.uint8) for grey in range(10, 250, 24)],
        "sky": _sky(photos),
        "photos": [photo[:, :SIDE, :SIDE] for photo in photos],
        **{name: [_anywhere(pictures[name], generator) for _ in range(NUM_CROPS)] for name in TEXTURES},
        **{f"noise of {deviation}": _noise(deviation, generator) for deviation in DEVIATIONS},
    }


def whole_photos(files: Sequence[str]) -> Iterator[Tensor]:
    """Photos at the size that they have, uint8 [3, H, W]."""
    for file in files:
        yield from map(_pixels, encoded_photos(file))


def _pixels(data: bytes) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _named(names: Sequence[str]) -> dict[str, Tensor]:
    """Photos of the demo by their names."""
    pictures = {}
    for path in expand_sources([demo_photos()]):
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePath(member.name)
                stream = archive.extractfile(member) if name.stem in names and name.suffix == ".png" else None
                if stream is not None:
                    pictures[name.stem] = _pixels(stream.read())
    return pictures


def _noise(deviation: int, generator: torch.Generator) -> list[Tensor]:
    drawn = 128 + deviation * torch.randn(NUM_CROPS, 3, SIDE, SIDE, generator=generator)
    return list(drawn.round().clamp(0, 255).byte())


def _anywhere(picture: Tensor, generator: torch.Generator) -> Tensor:
    top, left = (int(torch.randint(0, side - SIDE + 1, (), generator=generator)) for side in picture.shape[1:])
    return picture[:, top : top + SIDE, left : left + SIDE]


def _sky(photos: Sequence[Tensor]) -> list[Tensor]:
    found: list[tuple[float, Tensor]] = []
    for photo in photos:
        for left in range(0, photo.shape[2] - SIDE + 1, _SKY_STEP):
            crop = photo[:, :SIDE, left : left + SIDE]
            red, _, blue = crop.double().mean((1, 2)).tolist()
            deviation = float(crop.double().std((1, 2)).mean())
            if blue > red + 8 and blue > 80 and 1 < deviation < 25:
                found.append((deviation, crop))
                break
    if len(found) < NUM_CROPS:
        raise ValueError(f"{len(found)} of {len(photos)} photos show sky; {NUM_CROPS} are needed")
    return [crop for _, crop in sorted(found, key=lambda each: each[0])[:NUM_CROPS]]
