"""Which parts of an image are tokenized, at which size: pure arithmetic on sizes, no pixels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tatok.schemas.errors import DecodeError
from tatok.schemas.preprocessing import Preprocessing
from tatok.schemas.records import Crop
from tatok.schemas.tokens import MAX_POSITIONS

__all__ = ["ViewPlan", "bucket_sizes", "planned_views", "views_per_picture"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPlan:
    """One row to be: `crop` of the upright image, resized to width x height pixels, then mirrored if `flipped`."""

    crop: Crop
    width: int
    height: int
    flipped: bool


def planned_views(width: int, height: int, preprocessing: Preprocessing, sample_id: str) -> list[ViewPlan]:
    """The views of an image of this size, in the order of their rows: crop by crop, each plain before mirrored.

    What is left to chance is a function of preprocessing.seed, `sample_id` and the crop's number alone.
    Raises DecodeError, "too_elongated", if the grid would have more positions than a row can name.
    """
    views: list[ViewPlan] = []
    for number in range(_num_crops(preprocessing)):
        chance = _chance(preprocessing.seed, sample_id, number)
        crop, (out_width, out_height) = _crop(width, height, preprocessing, chance)
        match preprocessing.flips:
            case "none":
                flips = [False]
            case "both":
                flips = [False, True]
            case "random":
                flips = [next(chance) < 0.5]
        views += [ViewPlan(crop=crop, width=out_width, height=out_height, flipped=flipped) for flipped in flips]
    return views


def views_per_picture(preprocessing: Preprocessing) -> int:
    """How many views `planned_views` gives, of a picture of any size."""
    return _num_crops(preprocessing) * (2 if preprocessing.flips == "both" else 1)


def _num_crops(preprocessing: Preprocessing) -> int:
    return preprocessing.random_crops.num_crops if preprocessing.mode == "random_crop" else 1


def _crop(
    width: int, height: int, preprocessing: Preprocessing, chance: Iterator[float]
) -> tuple[Crop, tuple[int, int]]:
    size, short = preprocessing.image_size, min(width, height)
    match preprocessing.mode:
        case "centre_crop":
            return _centred(width, height, short, short), (size, size)
        case "random_crop":
            smallest = preprocessing.random_crops.min_scale
            side = max(round(short * (smallest + (1 - smallest) * next(chance))), 1)
            left = min(int(next(chance) * (width - side + 1)), width - side)
            top = min(int(next(chance) * (height - side + 1)), height - side)
            return Crop(left=left, top=top, width=side, height=side), (size, size)
        case "resize":
            sides = _rounded_sides(width, height, preprocessing)
            return Crop(left=0, top=0, width=width, height=height), sides
        case "buckets":
            sizes = bucket_sizes(size, preprocessing.side_multiple, preprocessing.buckets.max_aspect_ratio)
            # Aspects are compared as ratios; of two that are as near, the one with more pixels.
            out = min(sizes, key=lambda wh: (abs(math.log(width * wh[1] / (height * wh[0]))), -wh[0] * wh[1], wh))
            scale = min(width / out[0], height / out[1])
            crop_width, crop_height = min(round(out[0] * scale), width), min(round(out[1] * scale), height)
            return _centred(width, height, max(crop_width, 1), max(crop_height, 1)), out


def _centred(width: int, height: int, crop_width: int, crop_height: int) -> Crop:
    return Crop(left=(width - crop_width) // 2, top=(height - crop_height) // 2, width=crop_width, height=crop_height)


def _rounded_sides(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    size, step, short = preprocessing.image_size, preprocessing.side_multiple, min(width, height)
    long_steps = max(round(max(width, height) * size / (short * step)), 1)
    # The patch is at least as large as 1 pixel and at most side_multiple, so this bound holds for any of them.
    if long_steps * (size // step) > MAX_POSITIONS:
        raise DecodeError(
            "too_elongated",
            f"{width} x {height} pixels resize to more than {MAX_POSITIONS} positions; see limits.max_aspect_ratio",
        )
    long = long_steps * step
    return (long, size) if width >= height else (size, long)


@lru_cache(maxsize=64)
def bucket_sizes(image_size: int, side_multiple: int, max_aspect_ratio: float) -> tuple[tuple[int, int], ...]:
    """(width, height) of every bucket: sides are multiples of `side_multiple`, and no side could be larger.

    Pixels are at most image_size squared, aspect ratios at most `max_aspect_ratio`; the square is among them.
    """
    budget, sizes = image_size * image_size, set[tuple[int, int]]()
    for side in range(side_multiple, budget // side_multiple + 1, side_multiple):
        other = budget // side // side_multiple * side_multiple
        if other and max(side, other) <= max_aspect_ratio * min(side, other):
            sizes |= {(side, other), (other, side)}
    # Rounding leaves some that fit into another one.
    return tuple(sorted(a for a in sizes if not any(a != b and a[0] <= b[0] and a[1] <= b[1] for b in sizes)))


def _chance(seed: int, sample_id: str, number: int) -> Iterator[float]:
    """Numbers in [0, 1) that depend on the arguments alone: random generators may change with their versions."""
    count = 0
    while True:
        digest = hashlib.sha256(f"{seed}\0{sample_id}\0{number}\0{count}".encode()).digest()
        yield int.from_bytes(digest[:6], "big") / (1 << 48)
        count += 1
