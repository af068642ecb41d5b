"""Whether the GPU gives the CPU's tokens: codes, kept sets, whole rows and pictures, by precision and by batch.

The reference is the CPU in float32, in batches of 16. "Rows" are what a dataset stores: codes and positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.measure import Section, free_memory
from benchmarks.gpu.pictures import clips, crops
from benchmarks.gpu.precisions import Mode, modes, settings_of, tokenizer_in
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["run", "same_rows"]

TARGET_SHARE = 0.999
REFERENCE_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """Images as one tokenizer codes them, batch after batch, and as it rebuilds them."""

    global_BM: np.ndarray
    patch_BN: np.ndarray
    rows: list[TokenSequence]
    rebuilt: Tensor


def coded(tokenizer: Tokenizer, pixels: Tensor, batch: int) -> Coded:
    """Full-rate codes, rows and rebuilt pictures."""
    globals_, patches, rows, rebuilt = [], [], [], []
    for part in pixels.split(batch):
        full = tokenizer.full_rate(part)
        globals_.append(full.codes.global_BM.cpu().numpy())
        patches.append(full.codes.patch_BN.cpu().numpy())
        rows += tokenizer.encode(part)
        rebuilt.append(tokenizer.decode(rows[-len(part) :]).cpu())
    return Coded(
        global_BM=np.concatenate(globals_), patch_BN=np.concatenate(patches), rows=rows, rebuilt=torch.cat(rebuilt)
    )


def psnr_db(one: Tensor, other: Tensor) -> float:
    """Of all the pictures together; infinite where they are equal."""
    error = (one.double() - other.double()).square().mean().item()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def same_rows(ones: Sequence[TokenSequence], others: Sequence[TokenSequence]) -> list[bool]:
    """Of each pair of rows, whether codes and positions are equal."""
    return [
        np.array_equal(one.codes, other.codes) and np.array_equal(one.positions, other.positions)
        for one, other in zip(ones, others, strict=True)
    ]


def comparison(got: Coded, reference: Coded, pixels: Tensor) -> dict[str, Any]:
    """Shares that are equal, and how far the pictures are apart; the first images of the reference are compared."""
    num = len(got.rows)
    expected = reference.rows[:num]
    pairs = list(zip(got.rows, expected, strict=True))
    same = same_rows(got.rows, expected)
    return {
        "images": num,
        "global_codes_equal": float((got.global_BM == reference.global_BM[:num]).mean()),
        "patch_codes_equal": float((got.patch_BN == reference.patch_BN[:num]).mean()),
        "kept_sets_equal": float(np.mean([np.array_equal(a.positions, b.positions) for a, b in pairs])),
        "rows_equal": float(np.mean(same)),
        "rows_that_differ": [number for number, equal in enumerate(same) if not equal][:20],
        "mean_tokens": float(np.mean([len(row.codes) for row in got.rows])),
        "reference_mean_tokens": float(np.mean([len(row.codes) for row in expected])),
        "psnr_db_of_original": psnr_db(got.rebuilt, pixels[:num]),
        "reference_psnr_db_of_original": psnr_db(reference.rebuilt[:num], pixels[:num]),
        "psnr_db_of_reference": psnr_db(got.rebuilt, reference.rebuilt[:num]),
        "largest_entropy_difference_bits": max(abs(a.entropy.entropy_bits - b.entropy.entropy_bits) for a, b in pairs),
    }


def decoder_alone(tokenizer: Tokenizer, reference: Coded) -> dict[str, Any]:
    """The reference's rows decoded here: what the decoder alone differs by."""
    num = min(len(reference.rows), 64)
    got, expected = tokenizer.decode(reference.rows[:num]).cpu(), reference.rebuilt[:num]
    difference = (got.int() - expected.int()).abs()
    return {
        "pixels_equal": float((difference == 0).double().mean()),
        "largest_difference": int(difference.max()),
        "psnr_db_of_reference": psnr_db(got, expected),
    }


def of_clips(tokenizer: Tokenizer, frames: Tensor, expected: list[TokenSequence], meant: Tensor) -> dict[str, Any]:
    """Clips coded and decoded here, against the reference's rows and pictures."""
    got = tokenizer.encode_clips(frames)
    shown = tokenizer.decode_clips(got).cpu()
    return {
        "clips": len(frames),
        "frames": frames.shape[1],
        "rows_equal": float(np.mean(same_rows(got, expected))),
        "mean_tokens": float(np.mean([len(row.codes) for row in got])),
        "reference_mean_tokens": float(np.mean([len(row.codes) for row in expected])),
        "psnr_db_of_original": psnr_db(shown, frames),
        "reference_psnr_db_of_original": psnr_db(meant, frames),
        "psnr_db_of_reference": psnr_db(shown, meant),
    }


class _Mode:
    """All batches of one mode, and whether they agree with each other."""

    def __init__(self, section: Section, name: str, tokenizer: Tokenizer, pixels: Tensor, reference: Coded) -> None:
        self.section, self.name, self.tokenizer = section, name, tokenizer
        self.pixels, self.reference = pixels, reference
        self.by_batch: dict[int, Coded] = {}

    def measure(self) -> None:
        """Everything about images of one size."""
        batches = (1, 2, 4) if self.section.tiny else (256, 64, 16, 1)
        told = {batch: self.section.attempt(f"{self.name}.batch_{batch}", partial(self.of, batch)) for batch in batches}
        shares = {batch: each["rows_equal"] for batch, each in told.items() if each}
        equal = ", ".join(f"{share:.4f} at {batch}" for batch, share in shares.items())
        self.section.headline(f"{self.name}: rows equal to the CPU's {equal}")
        if self.name.startswith("float32") and shares:
            worst = min(shares.values())
            holds = worst >= TARGET_SHARE
            self.section.attempt(
                f"{self.name}.target", lambda: {"share": worst, "target": TARGET_SHARE, "holds": holds}
            )
        if len(self.by_batch) > 1:
            self.section.attempt(f"{self.name}.independence_of_the_batch", self.independence)
        self.section.attempt(f"{self.name}.decoder_alone", lambda: decoder_alone(self.tokenizer, self.reference))

    def of(self, batch: int) -> dict[str, Any]:
        """Against the reference; the first two batches only warm up, as a graph needs it."""
        num = len(self.pixels) if batch > 1 else min(len(self.pixels), 64)
        for _ in range(2):
            self.tokenizer.encode(self.pixels[:batch])
        self.by_batch[batch] = coded(self.tokenizer, self.pixels[:num], batch)
        return comparison(self.by_batch[batch], self.reference, self.pixels)

    def independence(self) -> dict[str, Any]:
        """Images alone and in batches, against the largest batch; a part of that batch; and that batch again."""
        most = max(self.by_batch)
        largest = self.by_batch[most].rows

        def share(rows: list[TokenSequence]) -> float:
            return float(np.mean(same_rows(rows, largest[: len(rows)])))

        told = {f"batch_{batch}_equals_batch_{most}": share(each.rows) for batch, each in self.by_batch.items()}
        part = self.tokenizer.encode(self.pixels[: most - most // 4])
        return told | {"part_of_the_batch": share(part), "again": share(self.tokenizer.encode(self.pixels[:most]))}


def run(section: Section) -> None:
    """The reference once, then each mode."""
    num, side = (4, 64) if section.tiny else (256, 256)
    pixels = crops(section.photos, num, side)
    oblong = crops(section.photos, min(num, 32), side // 2, 3 * side // 2, seed=1)
    frames = clips(section.photos, *((1, 2, 32) if section.tiny else (4, 8, 128)))
    cpu = Tokenizer.load(device="cpu")
    section.attempt("identity", lambda: {**cpu.identity, "load_takes": ", ".join(settings_of(Tokenizer.load))})
    reference, of_oblong = coded(cpu, pixels, REFERENCE_BATCH), coded(cpu, oblong, REFERENCE_BATCH)
    clip_rows = cpu.encode_clips(frames)
    shown = cpu.decode_clips(clip_rows)
    section.attempt(
        "cpu.batch_64", lambda: comparison(coded(cpu, pixels[:64], 1 if section.tiny else 64), reference, pixels)
    )

    def of_mode(mode: Mode) -> dict[str, Any]:
        with tokenizer_in(mode, section.device) as tokenizer:
            _Mode(section, mode.name, tokenizer, pixels, reference).measure()
            section.attempt(f"{mode.name}.oblong", lambda: comparison(coded(tokenizer, oblong, 16), of_oblong, oblong))
            section.attempt(f"{mode.name}.clips", lambda: of_clips(tokenizer, frames, clip_rows, shown), needs_s=3)
        return {"precision": mode.precision, "graphs": mode.graphs}

    for mode in sorted(modes(section.device), key=lambda mode: mode.precision != "float32"):
        section.attempt(mode.name, partial(of_mode, mode))
        free_memory(section.device)
