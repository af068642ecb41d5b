"""A few samples read, decoded and tokenized in one process, each stage timed; and what a whole job would take.

No Ray; nothing is published.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.doctor.recorded_rates import GpuForecast, RecordedRate, forecast_by
from tatok.pipeline.monitoring.machine_load import why_busy
from tatok.pipeline.tokenization.loading import LoadTokenizer
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, Reject, Shard

if TYPE_CHECKING:
    import torch

    from tatok.pipeline.tokenization.tokenize import TooLarge
    from tatok.schemas.records import TokenSequence
    from tatok.tokenizer.protocol import AnyTokenizer

__all__ = ["DryRun", "Forecast", "dry_run", "forecast", "read_some"]

_TAR_BYTES_A_MEMBER = 512 + 256  # its header, and the padding of its content

Stage = Literal["reading and decoding", "the tokenizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What came of the samples, and the seconds of each stage on one process of its kind, which had `torch_threads`.

    `doubt`: why these seconds say little.
    """

    num_samples: int
    num_rows: int
    num_tokens: int
    rejects: Mapping[str, int]
    sample_bytes: int
    part_bytes: int
    decode_s: float
    encode_s: float
    torch_threads: int = 1
    num_frames: int = 0
    num_pixels: int = 0  # of all frames
    doubt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A whole job at the speed of its slowest stage; estimates, from `DryRun` and the source's bytes."""

    num_samples: int
    samples_per_s: float
    seconds: float
    gpu_hours: float
    output_bytes: int
    bottleneck: Stage
    slack: float  # how many times faster the other stage is
    doubt: str | None = None
    """Why this is too slow, and says nothing of which stage is the bottleneck."""

    recorded: GpuForecast | None = None
    """The same job on a GPU that was measured elsewhere; where the job has none of its own and its rows are images."""


def read_some(
    config: JobConfig, shard: Shard, num_samples: int, *, on_bytes: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[Clip | Reject]:
    """The first samples of a shard, decoded; `on_bytes` is told about how long each is. Raises SourceError."""
    from tatok.pipeline.decode.filters import apply_filter, load_filter
    from tatok.pipeline.decode.sample import decode_sample
    from tatok.pipeline.readers.read import ReadOptions, read_samples

    keep = None if config.filter is None else load_filter(config.filter)
    for number, sample in enumerate(read_samples(shard, ReadOptions.of(config))):
        if number == num_samples:
            return
        if isinstance(sample, Reject):
            yield sample
        else:
            members = (sample.payload, *sample.attachments.values())
            on_bytes(sum(len(member) + _TAR_BYTES_A_MEMBER for member in members))
            decoded = decode_sample(sample, config.preprocessing, config.limits)
            yield from decoded if keep is None else apply_filter(keep, sample, decoded)


def dry_run(
    config: JobConfig, shard: Shard, load_tokenizer: LoadTokenizer, sizes: Sizes, *, num_samples: int, most_s: float
) -> DryRun:
    """Do all of a job but publishing with the first samples of a shard; stops early after `most_s` seconds."""
    from tatok.pipeline.output.parquet import PartWriter
    from tatok.pipeline.storage.options import storage_options
    from tatok.pipeline.tokenization.tokenize import FittingEncode, tokenize_clips
    from tatok.schemas.tokens import token_schema

    doubt = why_busy()
    tokenizer = load_tokenizer(sizes.device)
    size = config.preprocessing.image_size
    _encode_blank(tokenizer, size)  # kernels are chosen and memory is taken at the first call
    decode_s = encode_s = 0.0
    num_frames = num_pixels = 0
    rejects, seen, bytes_of = Counter[str](), set[int](), list[int]()
    deadline = time.monotonic() + most_s

    def encode(pixels_BTCHW: torch.Tensor) -> Sequence[TokenSequence | TooLarge]:
        nonlocal encode_s, num_frames, num_pixels
        num_clips, frames, _, height, width = pixels_BTCHW.shape
        num_frames, num_pixels = num_frames + num_clips * frames, num_pixels + num_clips * frames * height * width
        started = time.perf_counter()
        sequences = fitting(pixels_BTCHW)
        encode_s += time.perf_counter() - started
        return sequences

    def decoded() -> Iterator[Clip | Reject]:
        nonlocal decode_s
        results = read_some(config, shard, num_samples, on_bytes=bytes_of.append)
        while time.monotonic() < deadline:
            started = time.perf_counter()
            result = next(results, None)
            decode_s += time.perf_counter() - started
            if result is None:
                return
            seen.add(result.index)
            if isinstance(result, Reject):
                rejects[result.reason] += 1
            yield result

    fitting = FittingEncode(tokenizer.encode_clips)
    columns = {
        "patch_entropy": config.write.patch_entropy,
        "patch_worth": config.write.patch_worth,
        "has_entropy": tokenizer.has_entropy,
    }
    schema = token_schema(tokenizer.vocab_size, **columns)
    num_tokens = 0
    with storage_options(config.storage), tempfile.TemporaryDirectory(prefix="tatok-dry-run-") as folder:
        part = Path(folder) / "part.parquet"
        with PartWriter(part, schema, row_group_rows=config.write.row_group_rows) as writer:
            for batch in tokenize_clips(
                decoded(),
                encode,
                batch_size=sizes.batch_size,
                vocab_size=tokenizer.vocab_size,
                **columns,
            ):
                writer.write(batch.rows)
                rejects.update(each.reason for each in batch.rejects if each.stage == "tokenize")
                num_tokens += batch.num_tokens
            writer.finish({})
        return DryRun(
            num_samples=len(seen),
            num_rows=writer.num_rows,
            num_tokens=num_tokens,
            rejects=dict(rejects),
            sample_bytes=sum(bytes_of),
            part_bytes=part.stat().st_size,
            decode_s=decode_s,
            encode_s=encode_s,
            torch_threads=_num_threads(),
            num_frames=num_frames,
            num_pixels=num_pixels,
            doubt=doubt,
        )


def forecast(
    found: DryRun, sizes: Sizes, *, source_bytes: int, num_cpus: float, recorded: RecordedRate | None = None
) -> Forecast:
    """What a source of so many bytes, of samples like those tried, would take with these actors.

    Decoders share the CPUs that there are; a tokenizer that decodes in place does one after the other. `recorded` is a
    rate of the job's checkpoint on a card, for jobs without one.
    """
    decode_s, encode_s = max(found.decode_s, 1e-9), max(found.encode_s, 1e-9)
    if sizes.decodes_in_place:
        if not sizes.gpus_per_tokenizer:  # what several threads did together takes so much longer by fewer of them
            encode_s *= found.torch_threads / sizes.torch_threads
        decode_rate = sizes.num_tokenizers * found.num_samples / decode_s
        encode_rate = sizes.num_tokenizers * found.num_samples / encode_s
        rate = 1 / (1 / decode_rate + 1 / encode_rate)
    else:
        used = 0 if sizes.gpus_per_tokenizer else sizes.num_tokenizers
        decode_rate = min(sizes.num_decoders, max(num_cpus - used, 1)) * found.num_samples / decode_s
        encode_rate = sizes.num_tokenizers * found.num_samples / encode_s
        rate = min(decode_rate, encode_rate)
    num_samples = max(round(source_bytes * found.num_samples / max(found.sample_bytes, 1)), found.num_samples)
    seconds = num_samples / rate
    return Forecast(
        num_samples=num_samples,
        samples_per_s=rate,
        seconds=seconds,
        gpu_hours=sizes.num_tokenizers * sizes.gpus_per_tokenizer * seconds / 3600,
        output_bytes=round(found.part_bytes / max(found.num_samples, 1) * num_samples),
        bottleneck="reading and decoding" if decode_rate < encode_rate else "the tokenizer",
        slack=max(decode_rate, encode_rate) / min(decode_rate, encode_rate),
        doubt=found.doubt,
        recorded=_recorded(found, sizes, recorded, num_samples),
    )


def _recorded(found: DryRun, sizes: Sizes, rate: RecordedRate | None, num_samples: int) -> GpuForecast | None:
    is_of_images = 0 < found.num_frames == found.num_rows
    if rate is None or sizes.gpus_per_tokenizer or not is_of_images:
        return None
    return forecast_by(
        rate,
        num_images=round(num_samples * found.num_rows / max(found.num_samples, 1)),
        pixels_an_image=found.num_pixels / found.num_frames,
        decode_s_an_image=found.decode_s / found.num_rows,
    )


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()


def _encode_blank(tokenizer: AnyTokenizer, size: int) -> None:
    import torch

    tokenizer.encode(torch.zeros((1, 3, size, size), dtype=torch.uint8))
