"""Photos for the measurements: crops and flips of those in WebDataset tars, and their bytes as JPEG."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["clips", "crops", "jpegs"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
MOST_PHOTOS = 256


def _members(tars: Sequence[Path], most: int) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for path in tars:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.lower().endswith(EXTENSIONS) else None
                if stream is not None:
                    found.append((member.name.lower(), stream.read()))
                if len(found) == most:
                    return found
    if not found:
        raise FileNotFoundError(f"no photos in {', '.join(map(str, tars))}")
    return found


def jpegs(tars: Sequence[Path], num: int) -> list[bytes]:
    """`num` files in JPEG, repeated where the tars have fewer photos; those of another format are compressed anew."""
    files: list[bytes] = []
    for name, payload in _members(tars, num):
        if not name.endswith((".jpg", ".jpeg")):
            buffer = io.BytesIO()
            Image.open(io.BytesIO(payload)).convert("RGB").save(buffer, "JPEG", quality=90)
            payload = buffer.getvalue()
        files.append(payload)
    return [files[number % len(files)] for number in range(num)]


def crops(tars: Sequence[Path], num: int, height: int, width: int | None = None, seed: int = 0) -> Tensor:
    """uint8 [num, 3, height, width]: the photos in turn, each time another crop, some mirrored; the same each call."""
    width = height if width is None else width
    random = np.random.default_rng(seed)
    photos = [Image.open(io.BytesIO(payload)).convert("RGB") for _, payload in _members(tars, min(num, MOST_PHOTOS))]
    pictures = np.empty((num, height, width, 3), np.uint8)
    for number in range(num):
        photo = photos[number % len(photos)]
        scale = random.uniform(0.6, 1.0) * min(photo.width / width, photo.height / height)
        size = (width * scale, height * scale)
        left, top = random.uniform(0, photo.width - size[0]), random.uniform(0, photo.height - size[1])
        box = (left, top, left + size[0], top + size[1])
        picture = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC, box=box))
        pictures[number] = picture[:, ::-1] if random.random() < 0.5 else picture
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def clips(tars: Sequence[Path], num: int, num_frames: int, side: int) -> Tensor:
    """uint8 [num, num_frames, 3, side, side]: windows that slide over photos, some of which stand still for a while."""
    wide = crops(tars, num, side + 4 * num_frames)
    made = torch.empty(num, num_frames, 3, side, side, dtype=torch.uint8)
    for number in range(num):
        for frame in range(num_frames):
            moved = frame if number % 2 else frame // 3
            top, left = (1 + number % 3) * moved, 2 * moved
            made[number, frame] = wide[number, :, top : top + side, left : left + side]
    return made
