"""JPEGs a second: the card's decoder against Pillow and simplejpeg, on one core and on all, and how pixels differ."""

from __future__ import annotations

import importlib
import importlib.util
import io
import multiprocessing
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.gpu.jpeg_workers import DECODERS, decode_seconds, hold, warm_up
from benchmarks.gpu.measure import Section, timed
from benchmarks.gpu.pictures import jpegs

__all__ = ["run"]

SIDE = 256


def on_one_core(decoder: str, files: list[bytes]) -> dict[str, Any]:
    """One process, one thread."""
    hold(files)
    seconds = sorted(decode_seconds(decoder) for _ in range(3))
    return {"images_per_s": len(files) / seconds[1], "least_s": seconds[0], "most_s": seconds[-1]}


def on_all_cores(decoder: str, files: list[bytes]) -> dict[str, Any]:
    """A process a core, each with all the files; the slowest counts."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores, initializer=hold, initargs=(files,)) as pool:
        pool.map(warm_up, [decoder] * cores, chunksize=1)
        seconds = sorted(pool.map(decode_seconds, [decoder] * cores, chunksize=1))
    return {
        "processes": cores,
        "images_per_s": cores * len(files) / seconds[-1],
        "images_per_s_a_core": len(files) / seconds[len(seconds) // 2],
    }


def _decode_on_device(files: list[Tensor], device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    decoded: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    return decoded


def on_device(
    files: list[bytes], device: torch.device, batch: int, then: Callable[[list[Tensor]], object]
) -> dict[str, Any]:
    """torchvision's nvJPEG in batches, and what shall follow, until all is done."""
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]

    def work() -> None:
        for start in range(0, len(tensors), batch):
            then(_decode_on_device(tensors[start : start + batch], device))

    return timed(work, device, repetitions=3, warmups=1, budget_s=3).told(len(files)) | {"batch": batch}


def _resized(pictures: list[Tensor]) -> Tensor:
    """As a batch of squares: the middle of each, bicubic and antialiased."""
    squares = []
    for picture in pictures:
        side = min(picture.shape[1:])
        top, left = ((length - side) // 2 for length in picture.shape[1:])
        square = picture[None, :, top : top + side, left : left + side].float()
        squares.append(F.interpolate(square, size=(SIDE, SIDE), mode="bicubic", antialias=True))
    return torch.cat(squares).round_().clamp_(0, 255).byte()


def difference_to_pillow(files: list[bytes], device: torch.device) -> dict[str, Any]:
    """Of pixels, 0 to 255."""
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    differences, shapes_differ = [], 0
    for file, got in zip(files, _decode_on_device(tensors, device), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        found = got.permute(1, 2, 0).cpu().numpy()
        if found.shape != expected.shape:
            shapes_differ += 1
            continue
        differences.append(np.abs(found.astype(np.int16) - expected))
    flat = np.concatenate([each.ravel() for each in differences])
    return {
        "photos": len(files),
        "shapes_differ": shapes_differ,
        "mean_difference": float(flat.mean()),
        "largest_difference": int(flat.max()),
        "pixels_equal": float((flat == 0).mean()),
        "pixels_off_by_more_than_2": float((flat > 2).mean()),
    }


def damaged_on_device(file: bytes, device: torch.device) -> dict[str, Any]:
    """What the card's decoder says of a file that is cut off, and whether it decodes the next."""
    told = {}
    for name, payload in (("cut", file[: len(file) // 2]), ("noise", bytes(range(256)) * 8), ("whole", file)):
        try:
            shape = _decode_on_device([torch.frombuffer(bytearray(payload), dtype=torch.uint8)], device)[0].shape
            told[name] = f"decoded, {list(shape)}"
        except Exception as error:  # of any kind
            told[name] = f"{type(error).__name__}: {error}"[:300]
    return told


def run(section: Section) -> None:
    """The CPU's decoders first, as long as this process has no CUDA context."""
    num = 3 if section.tiny else 256
    files = jpegs(section.photos, num)
    section.attempt("files", lambda: {"photos": num, "mean_bytes": float(np.mean([len(file) for file in files]))})
    for decoder in DECODERS:
        if decoder != "pillow" and importlib.util.find_spec(decoder) is None:
            section.attempt(f"{decoder}.one_core", lambda: {"skipped": "not installed"})
            continue
        one = section.attempt(f"{decoder}.one_core", partial(on_one_core, decoder, files))
        every = section.attempt(f"{decoder}.all_cores", partial(on_all_cores, decoder, files), needs_s=5)
        if one and every:
            section.headline(
                f"{decoder}: {one['images_per_s']:.0f} images/s on one core, "
                f"{every['images_per_s']:.0f} on {every['processes']}"
            )
    section.attempt("torchcodec", lambda: {"version": importlib.import_module("torchcodec").__version__})
    if not section.on_cuda:
        section.attempt("device", lambda: {"skipped": "needs CUDA"})
        return
    warnings.simplefilter("default")
    device = section.device
    for batch in (64, 16, 256):
        found = section.attempt(f"device.batch_{batch}", partial(on_device, files, device, batch, len))
        if found:
            section.headline(f"torchvision on the card, {batch} at a time: {found['images_per_s']:.0f} images/s")
    section.attempt("device.and_resized", lambda: on_device(files, device, 64, _resized))
    section.attempt("device.difference_to_pillow", lambda: difference_to_pillow(files[:32], device))
    section.attempt("device.damaged", lambda: damaged_on_device(files[0], device))
