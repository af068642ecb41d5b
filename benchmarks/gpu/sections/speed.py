"""Images a second of the bundled checkpoint: end to end and part by part, and what the time goes into."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.launches import launches
from benchmarks.gpu.measure import Section, described, free_memory, timed
from benchmarks.gpu.pictures import clips, crops
from benchmarks.gpu.precisions import PRECISIONS, Mode, modes, tokenizer_in
from benchmarks.gpu.sections.machine import matmul_flops_per_s
from tatok.model.checkpoint import Checkpoint
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["flops_an_image", "of_batch", "rate_of", "run", "told_rates"]

BATCHES_AHEAD = 6


def flops_an_image(checkpoint: Checkpoint | None, side: int) -> dict[str, float]:
    """Multiplications and additions of one image, counted on the CPU, where attention is plain matrix products."""
    tokenizer = Tokenizer.load(device="cpu") if checkpoint is None else Tokenizer(checkpoint, torch.device("cpu"))
    pixels = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    counted = {}
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            full = tokenizer.full_rate(pixels)
        counted["full_rate_gflop"] = counter.get_total_flops() / 1e9
        with FlopCounterMode(display=False) as counter:
            filtered = tokenizer.filter(full)
        counted["filter_gflop"] = counter.get_total_flops() / 1e9
        with FlopCounterMode(display=False) as counter:
            tokenizer.rebuild(full, filtered.kept_BN)
        counted["decode_gflop"] = counter.get_total_flops() / 1e9
    return counted | {"encode_gflop": counted["full_rate_gflop"] + counted["filter_gflop"]}


def of_batch(tokenizer: Tokenizer, pixels: Tensor, *, repetitions: int, parts: bool = True) -> dict[str, Any]:
    """Encoding from pixels in the host's memory to sequences; with `parts`, its parts on the device, and decoding.

    What fails leaves its error in its place.
    """
    device, num = tokenizer.device, len(pixels)
    told: dict[str, Any] = {}

    def time(name: str, work: Callable[[], object], budget_s: float = 0.25, images: int = num) -> None:
        try:
            told[name] = timed(work, device, repetitions=repetitions, warmups=3, budget_s=budget_s).told(images)
        except Exception as error:  # of any kind: the rest continues
            told[name] = {"error": described(error)}

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    time("encode", lambda: tokenizer.encode(pixels), budget_s=0.5)
    there, pinned = pixels.to(device), pixels
    if device.type == "cuda":
        told["peak_memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        told["reserved_memory_mib"] = torch.cuda.max_memory_reserved(device) / 2**20
        pinned = pixels.pin_memory()
        time("encode_pinned", lambda: tokenizer.encode(pinned))
        time("encode_there", lambda: tokenizer.encode(there))
    if hasattr(tokenizer, "encode_async"):
        time("encode_ahead", lambda: ahead(tokenizer, pinned), budget_s=0.5, images=BATCHES_AHEAD * num)
    if not parts:
        return told
    if device.type == "cuda":
        time("copy_pageable", lambda: pixels.to(device))
        time("copy_pinned", lambda: pinned.to(device, non_blocking=True))
    full = tokenizer.full_rate(there)
    filtered = tokenizer.filter(full)
    rows = tokenizer.encode(there)
    time("full_rate", lambda: tokenizer.full_rate(there))
    time("filter", lambda: tokenizer.filter(full))
    time("sequences", lambda: tokenizer.sequences(full, filtered))
    time("rebuild", lambda: tokenizer.rebuild(full, filtered.kept_BN))
    time("decode", lambda: tokenizer.decode(rows))
    on_device_ms = told["full_rate"]["median_ms"] + told["filter"]["median_ms"]
    told["device_images_per_s"] = 1e3 * num / on_device_ms
    told["filter_share_of_device_time"] = told["filter"]["median_ms"] / on_device_ms
    return told


def ahead(tokenizer: Tokenizer, pixels: Tensor) -> None:
    """Some batches of which two are started before the result of another is asked for."""
    pending: deque[Any] = deque()
    for _ in range(BATCHES_AHEAD):
        pending.append(tokenizer.encode_async(pixels))
        if len(pending) > 2:
            pending.popleft().result()
    while pending:
        pending.popleft().result()


def rate_of(told: Mapping[str, Any], name: str) -> float:
    """Images a second of one of the times; 0 where it failed or was not taken."""
    return float(told.get(name, {}).get("images_per_s", 0.0))


def told_rates(told: Mapping[str, Any]) -> str:
    """For a headline: encode, the best of its other ways, and the device's parts."""
    best = max(rate_of(told, name) for name in ("encode_pinned", "encode_there", "encode_ahead"))
    return f"{rate_of(told, 'encode'):.0f}/{best:.0f}/{told.get('device_images_per_s', 0):.0f}"


def in_threads(tokenizer: Tokenizer, pixels: Tensor, num_threads: int) -> dict[str, Any]:
    """Several threads that encode at once: copies and host work of one beside device work of another."""
    with ThreadPoolExecutor(num_threads) as pool:
        timing = timed(
            lambda: list(pool.map(lambda _: tokenizer.encode(pixels), range(2 * num_threads))),
            tokenizer.device,
            repetitions=3,
            warmups=1,
        )
    return timing.told(2 * num_threads * len(pixels)) | {"threads": num_threads}


def of_clips(tokenizer: Tokenizer, frames: Tensor) -> dict[str, Any]:
    """Clips coded frame after frame."""
    timing = timed(lambda: tokenizer.encode_clips(frames), tokenizer.device, repetitions=3, warmups=1)
    return timing.told() | {"frames_per_s": frames.shape[0] * frames.shape[1] / timing.median_s}


class _Mode:
    """One mode's batches, launches, threads and clips."""

    def __init__(self, section: Section, mode: Mode, tokenizer: Tokenizer) -> None:
        self.section, self.mode, self.tokenizer = section, mode, tokenizer

    def measure(self, pixels: Tensor, frames: Tensor, gflop: float, ceiling: Mapping[str, Any] | None) -> None:
        """Everything, the most telling first."""
        section, name, tokenizer = self.section, self.mode.name, self.tokenizer
        rates = []
        for batch in (2,) if section.tiny else (256, 64, 1024, 16):
            part = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch]
            found = section.attempt(f"{name}.batch_{batch}", partial(self.of, part, gflop, ceiling))
            free_memory(section.device)
            rates += [f"{batch}: {told_rates(found)}"] if found else []
        section.headline(f"{name}, images/s encode/best/by parts: {'; '.join(rates)}")
        part = pixels[: 2 if section.tiny else 64]
        section.attempt(f"{name}.launches", partial(launches, lambda: tokenizer.encode(part), section.device))
        if not self.mode.graphs:
            parts = partial(launches, lambda: tokenizer.filter(tokenizer.full_rate(part)), section.device)
            section.attempt(f"{name}.launches_of_parts", parts)
        for threads in () if section.tiny or self.mode.precision == "tf32" else (2, 4):
            section.attempt(f"{name}.threads_{threads}", partial(in_threads, tokenizer, pixels, threads))
        section.attempt(f"{name}.clips", partial(of_clips, tokenizer, frames))

    def of(self, pixels: Tensor, gflop: float, ceiling: Mapping[str, Any] | None) -> dict[str, Any]:
        """One batch, and how much of the card's arithmetic it uses."""
        repetitions = 2 if self.section.tiny else 5
        told = of_batch(self.tokenizer, pixels, repetitions=repetitions, parts=not self.mode.graphs)
        for name, rate in (
            ("encode", rate_of(told, "encode")),
            ("encode_ahead", rate_of(told, "encode_ahead")),
            ("device", told.get("device_images_per_s", 0.0)),
        ):
            if rate:
                told[f"{name}_tflop_per_s"] = rate * gflop / 1e3
                told[f"{name}_share_of_ceiling"] = rate * gflop / 1e3 / ceiling["tflop_per_s"] if ceiling else None
        return told


def run(section: Section) -> None:
    """Every mode in turn."""
    num, side = (2, 64) if section.tiny else (256, 256)
    pixels = crops(section.photos, num, side)
    frames = clips(section.photos, *((1, 2, 32) if section.tiny else (8, 8, 256)))
    counted = section.attempt("flops", lambda: flops_an_image(None, side)) or {"encode_gflop": 0.0}
    ceilings = {
        precision: section.attempt(
            f"{precision}.ceiling",
            partial(matmul_flops_per_s, section.device, precision, 256 if section.tiny else 8192),
        )
        for precision in PRECISIONS
    }

    def of_mode(mode: Mode) -> dict[str, Any]:
        with tokenizer_in(mode, section.device) as tokenizer:
            of_it = _Mode(section, mode, tokenizer)
            of_it.measure(pixels, frames, counted["encode_gflop"], ceilings[mode.precision])
        return {"precision": mode.precision, "graphs": mode.graphs}

    for mode in sorted(modes(section.device), key=lambda mode: mode.precision == "tf32"):
        section.attempt(mode.name, partial(of_mode, mode), needs_s=4)
        free_memory(section.device)
