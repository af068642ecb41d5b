"""Each stage of a job by itself, on this machine and these samples: how many items a second it can do.

    read -> decode -> copy in -> encode -> prior and DTF -> copy out -> write

An item is what becomes one row or one reject. No Ray; nothing is published but in `store`, which is the caller's.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from pipeline.sizes import Sizes
from schemas.errors import SourceError
from schemas.job import JobConfig
from schemas.records import Clip, Reject, Sample, Shard

if TYPE_CHECKING:
    import torch

    from pipeline.store import OutputStore
    from pipeline.tokenize import TokenizedBatch
    from tatok.tokenizer import Tokenizer

__all__ = [
    "STAGES",
    "StageName",
    "StageRate",
    "StageSamples",
    "batch_of",
    "measure_stages",
    "num_cores",
    "read_for_stages",
]

StageName = Literal["read", "decode", "copy in", "encode", "prior and DTF", "copy out", "write"]
STAGES: tuple[StageName, ...] = ("read", "decode", "copy in", "encode", "prior and DTF", "copy out", "write")

_MOST_SAMPLE_BYTES = 256 << 20  # of encoded samples, held at a time
_MOST_CLIPS = 64
_MOST_PART_ROWS = 8192
_START_S = 120.0  # that decoders may take to start on a machine that is busy

_Result = TypeVar("_Result")

_barrier: Barrier | None = None  # in a decoding process: where all of them start together


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRate:
    """What one stage does a second. `on` tells where: "core" is one busy core while all others do the same."""

    name: StageName
    items_per_s: float
    on: Literal["core", "device"]

    @property
    def seconds_an_item(self) -> float:
        """Of one core, or of the device."""
        return 1 / self.items_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSamples:
    """Encoded samples to measure with, and what reading them told."""

    samples: tuple[Sample, ...]
    shard: Shard
    read_items_per_s: float
    items_a_shard: int


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_for_stages(config: JobConfig, shards: Sequence[Shard], *, seconds: float, num_samples: int) -> StageSamples:
    """Read shards one after another for some `seconds`, and keep the first samples.

    Raises SourceError where the store fails, or where nothing can be read.
    """
    from pipeline.read import read_samples

    kept: list[Sample] = []
    kept_bytes = num_read = 0
    items_of_shards: list[int] = []
    started = time.perf_counter()
    for shard in shards:
        in_shard = 0
        for sample in read_samples(
            shard,
            max_sample_bytes=config.limits.max_sample_bytes,
            image_field=config.image_field,
            label_from_folder=config.label_from_folder,
        ):
            num_read += 1
            in_shard += 1
            if isinstance(sample, Sample) and len(kept) < num_samples and kept_bytes < _MOST_SAMPLE_BYTES:
                kept.append(sample)
                kept_bytes += len(sample.payload)
            if time.perf_counter() - started > seconds and kept:
                break
        items_of_shards.append(in_shard)
        if time.perf_counter() - started > seconds and kept:
            break
    if not kept:
        raise SourceError(f"no sample can be read from {shards[0].uri}; try `tatok plan`")
    return StageSamples(
        samples=tuple(kept),
        shard=shards[0],
        read_items_per_s=num_read / (time.perf_counter() - started),
        items_a_shard=max(1, round(float(np.median(items_of_shards)))),
    )


def measure_stages(
    config: JobConfig,
    found: StageSamples,
    tokenizer: Tokenizer,
    load_tokenizer: Callable[[], Tokenizer],
    store: OutputStore,
    sizes: Sizes,
    *,
    seconds: float,
) -> list[StageRate]:
    """The rates of all stages that this job has, in their order; each is measured for about `seconds`.

    Where `tokenizer` is on the CPU, as many processes as the job has tokenizers load one each, by `load_tokenizer`,
    and are measured all at once. Raises SourceError where none of the samples can be decoded.
    """
    from pipeline.columns import token_table
    from pipeline.tokenize import TokenizedBatch

    decode_rate, clips = _decode_rate(config, found.samples, seconds)
    pixels_BTCHW, alike = batch_of(clips, config.resources.batch_size)
    if tokenizer.device.type == "cpu":
        of_model = _rates_on_cores(load_tokenizer, pixels_BTCHW, sizes, seconds)
    else:
        of_model = _rates_on_device(tokenizer, pixels_BTCHW, seconds)
    encoded = tokenizer.encode_clips(pixels_BTCHW)
    rows = token_table(alike, encoded, vocab_size=tokenizer.vocab_size, patch_entropy=config.write.patch_entropy)
    batch = TokenizedBatch(rows=rows, rejects=(), num_tokens=sum(sequence.num_tokens for sequence in encoded))
    return [
        StageRate(name="read", items_per_s=found.read_items_per_s, on="core"),
        StageRate(name="decode", items_per_s=decode_rate, on="core"),
        *of_model,
        StageRate(name="write", items_per_s=_write_rate(config, found, tokenizer, batch, store, seconds), on="core"),
    ]


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, which can meet at `_barrier`."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    barrier = context.Barrier(count)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_meet_at, initargs=(barrier,)) as pool:
        yield pool


def _decode_rate(config: JobConfig, samples: Sequence[Sample], seconds: float) -> tuple[float, list[Clip]]:
    """Items a second of one core while every core decodes, and clips of the samples."""
    count = num_cores()
    with _processes(count) as pool:
        futures = [pool.submit(_decode_for, samples, config, seconds, keep=number == 0) for number in range(count)]
        results = [future.result() for future in futures]
    clips = results[0][1]
    if not clips:
        raise SourceError(f"none of {len(samples)} samples from {samples[0].uri} can be decoded; try `tatok doctor`")
    return sum(rate for rate, _ in results) / count, clips


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _decode_for(
    samples: Sequence[Sample], config: JobConfig, seconds: float, *, keep: bool
) -> tuple[float, list[Clip]]:
    from pipeline.decode import decode_sample
    from pipeline.video_file import local_video

    def decoded(sample: Sample) -> Iterator[Clip | Reject]:
        with local_video(sample) as local:
            yield from decode_sample(local, config.preprocessing, config.limits, video=config.video)

    clips = [clip for sample in samples[: _MOST_CLIPS if keep else 1] for clip in decoded(sample)]
    assert _barrier is not None
    _barrier.wait(_START_S)
    num_items = 0
    started = time.perf_counter()
    for sample in cycle(samples):
        num_items += sum(1 for _ in decoded(sample))
        if time.perf_counter() - started > seconds:
            break
    rate = num_items / (time.perf_counter() - started)
    return rate, [clip for clip in clips if isinstance(clip, Clip)] if keep else []


def batch_of(clips: Sequence[Clip], batch_size: int) -> tuple[torch.Tensor, list[Clip]]:
    """The clips of the commonest shape, repeated to a full batch."""
    import torch

    shape, _ = Counter(clip.pixels.shape for clip in clips).most_common(1)[0]
    alike = list(islice(cycle([clip for clip in clips if clip.pixels.shape == shape]), batch_size))
    return torch.from_numpy(np.stack([clip.pixels for clip in alike])), alike


def _rates_on_cores(
    load_tokenizer: Callable[[], Tokenizer], pixels_BTCHW: torch.Tensor, sizes: Sizes, seconds: float
) -> list[StageRate]:
    """Rates of one core, while all of the job's tokenizers work."""
    count = sizes.num_tokenizers
    with _processes(count) as pool:
        arguments = (load_tokenizer, pixels_BTCHW.numpy(), sizes.torch_threads, seconds)
        futures = [pool.submit(_encode_for, *arguments) for _ in range(count)]
        found = [future.result() for future in futures]
    # Of processes beyond the cores each has a part of one; one process may have several.
    return [
        StageRate(name=name, items_per_s=sum(rates[name] for rates in found) / num_cores(), on="core")
        for name in found[0]
    ]


def _encode_for(
    load_tokenizer: Callable[[], Tokenizer], pixels_BTCHW: np.ndarray, torch_threads: int, seconds: float
) -> dict[StageName, float]:
    import torch

    from pipeline.allocator import keep_freed_memory

    keep_freed_memory()  # as the job's tokenizers do
    torch.set_num_threads(torch_threads)
    return _time_batches(load_tokenizer(), torch.from_numpy(pixels_BTCHW), seconds, start=_barrier)


def _rates_on_device(tokenizer: Tokenizer, pixels_BTCHW: torch.Tensor, seconds: float) -> list[StageRate]:
    rates = _time_batches(tokenizer, pixels_BTCHW, seconds, start=None)
    return [StageRate(name=name, items_per_s=rate, on="device") for name, rate in rates.items()]


def _time_batches(
    tokenizer: Tokenizer, pixels_BTCHW: torch.Tensor, seconds: float, *, start: Barrier | None
) -> dict[StageName, float]:
    """Items a second of the model's stages, timed one by one on whole batches, once all are at `start`."""
    import torch

    spent: dict[StageName, float] = dict.fromkeys(STAGES[2:6], 0.0)

    def timed(name: StageName, call: Callable[[], _Result]) -> _Result:
        started = time.perf_counter()
        result = call()
        if tokenizer.device.type == "cuda":
            torch.cuda.synchronize(tokenizer.device)
        spent[name] += time.perf_counter() - started
        return result

    def one_batch() -> list[object]:
        if pixels_BTCHW.shape[1] > 1:  # frames are coded one after another; their steps are not told apart
            return list(timed("encode", lambda: tokenizer.encode_clips(pixels_BTCHW)))
        pixels_BCHW = pixels_BTCHW[:, 0]
        if tokenizer.device.type != "cpu":
            pixels_BCHW = timed("copy in", lambda: pixels_BCHW.to(tokenizer.device))
        full = timed("encode", lambda: tokenizer.full_rate(pixels_BCHW))
        filtered = timed("prior and DTF", lambda: tokenizer.filter(full))
        return list(timed("copy out", lambda: tokenizer.sequences(full, filtered)))

    one_batch()  # kernels are chosen and memory is taken at the first call
    if start is not None:
        start.wait(_START_S)
    spent.update(dict.fromkeys(spent, 0.0))
    num_items = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or not num_items:
        num_items += len(one_batch())
    return {name: num_items / spent[name] for name in STAGES[2:6] if spent[name]}


def _write_rate(
    config: JobConfig,
    found: StageSamples,
    tokenizer: Tokenizer,
    batch: TokenizedBatch,
    store: OutputStore,
    seconds: float,
) -> float:
    """Rows a second into parts of the size that the source's shards give, each committed."""
    from pipeline.commit import commit_shard

    batches = max(1, min(found.items_a_shard, _MOST_PART_ROWS) // len(batch.rows))
    num_rows = number = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or not num_rows:
        number += 1
        report = commit_shard(
            store,
            replace(found.shard, shard_id=f"{number:032x}"),
            [batch] * batches,
            fingerprint={},
            vocab_size=tokenizer.vocab_size,
            patch_entropy=config.write.patch_entropy,
            row_group_rows=config.write.row_group_rows,
        )
        num_rows += report.num_rows
    return num_rows / (time.perf_counter() - started)
