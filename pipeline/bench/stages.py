"""Each stage of a job by itself, on this machine and these samples: how many items a second it can do.

    read -> decode -> copy in -> encode -> prior and DTF -> copy out -> write

An item is what becomes one row or one reject. No Ray; nothing is published but in `store`, which is the caller's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from tatok.pipeline.bench.model_rates import ModelRates, measure_model, num_cores
from tatok.pipeline.bench.own_processes import meet, processes
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.tokenization.loading import LoadTokenizer
from tatok.schemas.errors import SourceError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, Reject, Sample, Shard

if TYPE_CHECKING:
    from tatok.pipeline.output.tables import TokenizedBatch
    from tatok.pipeline.storage.store import OutputStore

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

# The rest of the model's part is the host's: what comes from the device is made sequences by Python.
_ON_DEVICE: tuple[StageName, ...] = ("copy in", "encode", "prior and DTF")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRate:
    """What one stage does a second. `on` says where: "core" is one busy core while all others do the same."""

    name: StageName
    items_per_s: float
    on: Literal["core", "device"]

    @property
    def seconds_an_item(self) -> float:
        """Of one core, or of the device."""
        return 1 / self.items_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSamples:
    """Encoded samples to measure with, and what reading them showed."""

    samples: tuple[Sample, ...]
    shard: Shard
    read_items_per_s: float
    items_a_shard: int


def read_for_stages(config: JobConfig, shards: Sequence[Shard], *, seconds: float, num_samples: int) -> StageSamples:
    """Read shards one after another for some `seconds`, and keep the first samples.

    Raises SourceError if the store fails, or nothing can be read.
    """
    from tatok.pipeline.readers.read import ReadOptions, read_samples

    kept: list[Sample] = []
    kept_bytes = num_read = 0
    items_of_shards: list[int] = []
    started = time.perf_counter()
    for shard in shards:
        in_shard = 0
        for sample in read_samples(shard, ReadOptions.of(config)):
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
    load_tokenizer: LoadTokenizer,
    store: OutputStore,
    sizes: Sizes,
    *,
    seconds: float,
    on_cluster: bool,
) -> tuple[list[StageRate], str]:
    """The rates of all stages that this job has, in their order, and the device's name; each for about `seconds`.

    On CPUs as many processes as the job has tokenizers load one each, and are measured all at once. `on_cluster`: a GPU
    is one of the connected Ray, and all else is measured here. Raises SourceError if none of the samples can be
    decoded.
    """
    from tatok.pipeline.output.tables import TokenizedBatch, token_table

    decode_rate, clips = _decode_rate(config, found.samples, seconds)
    pixels_BTCHW, alike = batch_of(clips, sizes.batch_size)
    model = measure_model(load_tokenizer, pixels_BTCHW, sizes, seconds=seconds, on_cluster=on_cluster)
    rows = token_table(
        alike,
        model.encoded,
        vocab_size=model.vocab_size,
        patch_entropy=config.write.patch_entropy,
        patch_worth=config.write.patch_worth,
        has_entropy=model.has_entropy,
    )
    batch = TokenizedBatch(rows=rows, rejects=(), num_tokens=sum(sequence.num_tokens for sequence in model.encoded))
    write_rate = _write_rate(config, found, model, batch, store, seconds)
    rates: dict[StageName, float] = {"read": found.read_items_per_s, "decode": decode_rate, "write": write_rate}
    rates.update(model.items_per_s.items())
    on_device = _ON_DEVICE if sizes.gpus_per_tokenizer else ()
    stages = [
        StageRate(name=name, items_per_s=rates[name], on="device" if name in on_device else "core")
        for name in STAGES
        if name in rates
    ]
    return stages, model.device


def _decode_rate(config: JobConfig, samples: Sequence[Sample], seconds: float) -> tuple[float, list[Clip]]:
    """Items a second of one core while every core decodes, and clips of the samples."""
    count = num_cores()
    with processes(count) as pool:
        futures = [pool.submit(_decode_for, samples, config, seconds, keep=number == 0) for number in range(count)]
        results = [future.result() for future in futures]
    clips = results[0][1]
    if not clips:
        raise SourceError(f"none of {len(samples)} samples from {samples[0].uri} can be decoded; try `tatok doctor`")
    return sum(rate for rate, _ in results) / count, clips


def _decode_for(
    samples: Sequence[Sample], config: JobConfig, seconds: float, *, keep: bool
) -> tuple[float, list[Clip]]:
    from tatok.pipeline.decode.sample import decode_sample
    from tatok.pipeline.video.local_video import local_video

    def decoded(sample: Sample) -> Iterator[Clip | Reject]:
        with local_video(sample) as local:
            yield from decode_sample(local, config.preprocessing, config.limits, video=config.video)

    clips = [clip for sample in samples[: _MOST_CLIPS if keep else 1] for clip in decoded(sample)]
    meet()
    num_items = 0
    started = time.perf_counter()
    for sample in cycle(samples):
        num_items += sum(1 for _ in decoded(sample))
        if time.perf_counter() - started > seconds:
            break
    rate = num_items / (time.perf_counter() - started)
    return rate, [clip for clip in clips if isinstance(clip, Clip)] if keep else []


def batch_of(clips: Sequence[Clip], batch_size: int) -> tuple[np.ndarray, list[Clip]]:
    """The clips of the commonest shape, repeated to a full batch: uint8 [B, T, 3, H, W]."""
    shape, _ = Counter(clip.pixels.shape for clip in clips).most_common(1)[0]
    alike = list(islice(cycle([clip for clip in clips if clip.pixels.shape == shape]), batch_size))
    return np.stack([clip.pixels for clip in alike]), alike


def _write_rate(
    config: JobConfig,
    found: StageSamples,
    model: ModelRates,
    batch: TokenizedBatch,
    store: OutputStore,
    seconds: float,
) -> float:
    """Rows a second into parts of the size that the source's shards give, each committed."""
    from tatok.pipeline.output.commit import commit_shard

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
            vocab_size=model.vocab_size,
            patch_entropy=config.write.patch_entropy,
            patch_worth=config.write.patch_worth,
            has_entropy=model.has_entropy,
            row_group_rows=config.write.row_group_rows,
        )
        num_rows += report.num_rows
    return num_rows / (time.perf_counter() - started)
