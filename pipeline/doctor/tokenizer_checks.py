"""A tokenizer, tried by itself: whether it keeps what `tatok.tokenizer.protocol.AnyTokenizer` promises."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from tatok.pipeline.doctor.dry_run import read_some
from tatok.pipeline.doctor.notes import Check, Notes
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.tokenization.loading import LoadTokenizer
from tatok.schemas.errors import ConfigError, TatokError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor

    from tatok.tokenizer.protocol import AnyTokenizer

__all__ = ["Figures", "TokenizerCheck", "check_tokenizer", "read_images"]

_NUM_THREADS, _ROUNDS = 4, 3
_CLIP_FRAMES = 4
_TIMED_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured; `psnr_db` is the mean over images, None without a decoder.

    `peak_bytes` is the most memory of the device that was taken, on a CPU the most that this process ever had.
    """

    tokens_an_image: float
    images_per_s: float
    peak_bytes: int
    psnr_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerCheck:
    """All checks in order; no figures where it cannot encode."""

    checks: tuple[Check, ...]
    figures: Figures | None

    @property
    def passed(self) -> bool:
        """Nothing failed; there may be warnings."""
        return all(check.verdict != "failed" for check in self.checks)


def read_images(config: JobConfig, num_images: int) -> np.ndarray:
    """The first images of a job's source as it would tokenize them, uint8 [B, 3, H, W], all of the first one's size.

    Raises SourceError, and ConfigError where fewer than two can be decoded.
    """
    found: list[np.ndarray] = []
    for shard in plan_shards(config.source, image_field=config.image_field):
        for result in read_some(config, shard, num_images):
            if isinstance(result, Clip) and (not found or result.pixels[0].shape == found[0].shape):
                found.append(result.pixels[0])
        if len(found) >= num_images:
            break
    if len(found) < 2:
        raise ConfigError(f"{', '.join(config.source)} holds {len(found)} images that can be decoded; name two or more")
    return np.stack(found[:num_images])


def check_tokenizer(
    load: LoadTokenizer,
    images_BCHW: np.ndarray,
    device: str,
    *,
    on_check: Callable[[Check], None] = lambda check: None,
) -> TokenizerCheck:
    """Try a tokenizer on images, uint8 [B, 3, H, W] with B of at least 2; whatever it raises becomes a failed check."""
    notes = Notes(on_check, deadline_s=0)
    tried = _Trial(load, images_BCHW, device, notes)
    try:
        figures = tried.run()
    except _GivenUp:
        figures = None
    return TokenizerCheck(checks=tuple(notes.checks), figures=figures)


class _GivenUp(Exception):
    """What failed keeps the checks after it from being made."""


class _Trial:
    """The checks of one tokenizer, one after another."""

    def __init__(self, load: LoadTokenizer, images_BCHW: np.ndarray, device: str, notes: Notes) -> None:
        import torch

        self._load, self._device, self._notes = load, device, notes
        self._images = torch.from_numpy(images_BCHW)

    def run(self) -> Figures:
        """Every check that can be made. Raises _GivenUp where the tokenizer cannot be loaded or encode."""
        tokenizer = self._loaded()
        first = self._encoded(tokenizer)
        is_steady = self._is_deterministic(tokenizer, first)
        if is_steady:
            self._check_batches(tokenizer, first)
            self._check_threads(tokenizer)
        self._check_clips(tokenizer, first if is_steady else None)
        psnr_db = self._check_decoding(tokenizer, first)
        return self._measured(tokenizer, first, psnr_db)

    def _loaded(self) -> AnyTokenizer:
        try:
            tokenizer, again = self._load(self._device), self._load(self._device)
        except Exception as error:
            remedy = error.remedy if isinstance(error, TatokError) else None
            self._notes.fail("load", _said(error), remedy or "see docs/guides/tokenizers.md for what it must have")
            raise _GivenUp from error
        if tokenizer.fingerprint != again.fingerprint:
            self._notes.fail(
                "load",
                "loaded twice, it has two identities: "
                + ", ".join(k for k in tokenizer.identity if tokenizer.identity[k] != again.identity.get(k)),
                "make identity of what fixes the tokens alone, such as a hash of the weights: no time, no address",
            )
        else:
            self._notes.ok(
                "load",
                f"{tokenizer.vocab_size:,} codes, {tokenizer.patch_size} pixels a step, {tokenizer.num_global} global "
                f"tokens, {tokenizer.codes_per_position} code(s) a position, {tokenizer.fingerprint[:12]}",
            )
        return tokenizer

    def _encoded(self, tokenizer: AnyTokenizer) -> Sequence[TokenSequence]:
        from tatok.tokenizer.fixed_rate import WrongCodes

        patch, (height, width) = tokenizer.patch_size, self._images.shape[2:]
        if height % patch or width % patch:
            self._notes.fail("grid", f"images of {width}x{height} pixels", f"use an --image-size that {patch} divides")
            raise _GivenUp
        try:
            sequences = tokenizer.encode(self._images)
        except WrongCodes as error:
            if error.is_range:
                remedy = "correct vocab_size, or the codes: they count from 0, over all codebooks that share them"
                self._notes.fail("range", str(error), remedy)
            else:
                remedy = "return whole numbers [B, h, w] with h = H / patch_size, or [B, L] with image_size"
                self._notes.fail("grid", str(error), remedy)
            raise _GivenUp from error
        except Exception as error:
            self._notes.fail("grid", f"encode raises {_said(error)}", "it is given uint8 [B, 3, H, W], 0 .. 255, RGB")
            raise _GivenUp from error
        wrong = _misplaced(tokenizer, sequences, len(self._images), (height // patch, width // patch))
        if wrong is not None:
            self._notes.fail("grid", wrong, "one sequence an image, a code for every position, positions ascending")
            raise _GivenUp
        self._notes.ok("grid", f"{width}x{height} pixels become {' x '.join(map(str, sequences[0].grid))} positions")
        least = min(int(sequence.codes.min(initial=0)) for sequence in sequences)
        most = max(int(sequence.codes.max(initial=0)) for sequence in sequences)
        if least < 0 or most >= tokenizer.vocab_size:
            self._notes.fail("range", f"codes {least} .. {most} of {tokenizer.vocab_size:,}", "correct vocab_size")
            raise _GivenUp
        self._notes.ok("range", f"codes {least:,} .. {most:,} of {tokenizer.vocab_size:,}")
        return sequences

    def _is_deterministic(self, tokenizer: AnyTokenizer, first: Sequence[TokenSequence]) -> bool:
        changed = max(_num_changed(first, tokenizer.encode(self._images)) for _ in range(_ROUNDS))
        if changed:
            self._notes.fail(
                "deterministic",
                f"encoded again, {changed} of {len(first)} images have other tokens; a shard that is done again would "
                "give another part",
                "call eval() on the model, and let it draw no random numbers, or from a generator that it seeds anew",
            )
        else:
            self._notes.ok("deterministic", f"{len(first)} images have the same tokens each time")
        return not changed

    def _check_batches(self, tokenizer: AnyTokenizer, first: Sequence[TokenSequence]) -> None:
        """Other neighbours, another place in the batch, and no neighbours."""
        turned = list(reversed(tokenizer.encode(self._images.flip(0))))
        others = self._images.clone()
        others[1:] = 255 - others[1:]
        changed = max(_num_changed(first, turned), _num_changed(first[:1], tokenizer.encode(others)[:1]))
        remedy = "call eval() on the model: batch norms and statistics over the batch mix its images"
        if changed:
            self._notes.fail("batch", f"with other images beside them, {changed} images have other tokens", remedy)
            return
        alone = _num_changed(first, [tokenizer.encode(image[None])[0] for image in self._images])
        if alone and self._device == "cpu":
            self._notes.fail("batch", f"alone in a batch, {alone} of {len(first)} images have other tokens", remedy)
        elif alone:
            self._notes.warn(
                "batch",
                f"alone in a batch, {alone} of {len(first)} images have other tokens: sums of other batch sizes round "
                "otherwise on this device",
                "nothing, where these are near-ties; a job's batches are the same whenever it is repeated",
            )
        else:
            self._notes.ok("batch", "an image's tokens do not depend on its batch")

    def _check_threads(self, tokenizer: AnyTokenizer) -> None:
        """Several threads at once, each with images of its own, against what one thread gives."""
        batches = [self._images.roll(shift, 0)[:2] for shift in range(_NUM_THREADS)]
        expected = [tokenizer.encode(batch) for batch in batches]
        barrier = threading.Barrier(_NUM_THREADS)

        def work(number: int) -> int:
            barrier.wait()
            return sum(_num_changed(expected[number], tokenizer.encode(batches[number])) for _ in range(_ROUNDS))

        remedy = "keep nothing of a call on the object, or hold a threading.Lock while encoding"
        try:
            with ThreadPoolExecutor(_NUM_THREADS) as pool:
                changed = sum(pool.map(work, range(_NUM_THREADS)))
        except Exception as error:
            self._notes.fail("threads", f"called by {_NUM_THREADS} threads at once, it raises {_said(error)}", remedy)
            return
        if changed:
            total = 2 * _NUM_THREADS * _ROUNDS
            self._notes.fail(
                "threads", f"called by {_NUM_THREADS} threads at once, {changed} of {total} images have others", remedy
            )
        else:
            self._notes.ok("threads", f"{_NUM_THREADS} threads at once get what one gets")

    def _check_clips(self, tokenizer: AnyTokenizer, first: Sequence[TokenSequence] | None) -> None:
        """`first` are the tokens of the images, None where these are others each time."""
        remedy = "only jobs of videos need it; for images alone it may stay so"
        try:
            still = tokenizer.encode_clips(self._images[:, None])
        except Exception as error:
            self._notes.fail("clips", f"an image as a clip of one frame raises {_said(error)}", "images go this way")
            return
        if first is not None and (changed := _num_changed(first, still)):
            self._notes.fail(
                "clips",
                f"as clips of one frame, {changed} of {len(first)} images have other tokens",
                "let encode_clips of one frame give what encode gives",
            )
            return
        clip = self._images[list(islice(cycle(range(len(self._images))), _CLIP_FRAMES))][None]
        try:
            [sequence] = tokenizer.encode_clips(clip)
        except Exception as error:
            self._notes.warn("clips", f"a clip of {_CLIP_FRAMES} frames raises {_said(error)}", remedy)
            return
        self._notes.ok(
            "clips", f"{_CLIP_FRAMES} frames become {sequence.grid.frames} steps, {sequence.num_tokens} tokens"
        )

    def _check_decoding(self, tokenizer: AnyTokenizer, first: Sequence[TokenSequence]) -> float | None:
        remedy = "decode gives uint8 [B, 3, H, W] in 0 .. 255, of what encode was given"
        try:
            rebuilt = tokenizer.decode(first)
        except ConfigError as error:
            self._notes.warn("decode", str(error), "without it, datasets can be made and loaded, but not looked at")
            return None
        except Exception as error:
            self._notes.fail("decode", f"raises {_said(error)}", remedy)
            return None
        if str(rebuilt.dtype) != "torch.uint8" or rebuilt.shape != self._images.shape:
            self._notes.fail("decode", f"gives {rebuilt.dtype} {list(rebuilt.shape)}", remedy)
            return None
        errors_BB = _mean_squares(rebuilt.cpu(), self._images)
        own_B = np.diag(errors_BB)
        psnr_db = float(np.mean(10 * np.log10(255**2 / np.maximum(own_B, 1e-3))))
        strangers = int((errors_BB.argmin(axis=1) != np.arange(len(own_B))).sum())
        if strangers * 2 >= len(own_B):
            self._notes.fail(
                "decode",
                f"{strangers} of {len(own_B)} images come back nearer to another one (PSNR {psnr_db:.1f} dB)",
                f"{remedy}; look at the order of channels, and at how pixels are scaled",
            )
        else:
            self._notes.ok("decode", f"the images come back, at a PSNR of {psnr_db:.1f} dB on average")
        return psnr_db

    def _measured(self, tokenizer: AnyTokenizer, first: Sequence[TokenSequence], psnr_db: float | None) -> Figures:
        num_images, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < _TIMED_S or not num_images:
            num_images += len(tokenizer.encode(self._images))
        figures = Figures(
            tokens_an_image=sum(sequence.num_tokens for sequence in first) / len(first),
            images_per_s=num_images / seconds,
            peak_bytes=_peak_bytes(self._device),
            psnr_db=psnr_db,
        )
        self._notes.ok(
            "speed",
            f"{figures.images_per_s:,.1f} images a second in batches of {len(first)} on {self._device}, "
            f"{figures.tokens_an_image:,.1f} tokens each; at most {figures.peak_bytes / 1e9:.2f} GB of memory",
        )
        return figures


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}" if str(error).strip() else type(error).__name__


def _misplaced(
    tokenizer: AnyTokenizer, sequences: Sequence[TokenSequence], num_images: int, grid_hw: tuple[int, int]
) -> str | None:
    """What is wrong with the shapes of sequences; None where nothing is."""
    if len(sequences) != num_images:
        return f"{len(sequences)} sequences for {num_images} images"
    for number, sequence in enumerate(sequences):
        steps, height, width = sequence.grid
        if steps != 1 or (height != 1 and (height, width) != grid_hw):
            return f"image {number} has the grid {tuple(sequence.grid)}; expected {(1, *grid_hw)}"
        positions = sequence.positions.astype(np.int64)
        if len(sequence.codes) != sequence.num_global + len(positions):
            return (
                f"image {number} has {len(sequence.codes)} codes for {sequence.num_global} globals + {len(positions)}"
            )
        each, rest = divmod(len(positions), tokenizer.codes_per_position)
        ascend = rest == 0 and (np.diff(positions[:: tokenizer.codes_per_position]) > 0).all()
        if not ascend or (each and not 0 <= positions[0] <= positions[-1] < sequence.grid.num_positions):
            return f"image {number} has positions that do not ascend within its grid"
    return None


def _num_changed(before: Sequence[TokenSequence], after: Sequence[TokenSequence]) -> int:
    """How many of the images have other tokens or places."""
    if len(before) != len(after):
        return max(len(before), len(after))
    return sum(
        one.grid != other.grid
        or not np.array_equal(one.codes, other.codes)
        or not np.array_equal(one.positions, other.positions)
        for one, other in zip(before, after, strict=True)
    )


def _mean_squares(rebuilt: Tensor, originals: Tensor) -> np.ndarray:
    """Mean squared errors of every rebuilt image against every original, float [B, B]."""
    return np.array(
        [[float((one.float() - other.float()).square().mean()) for other in originals] for one in rebuilt], float
    )


def _peak_bytes(device: str) -> int:
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
