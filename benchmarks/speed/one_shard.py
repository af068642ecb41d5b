"""A source of one shard on all cores: worked on by one process, as before loans, and by all of them, in turns.

    make bench-one-shard

A tar of photos, one Parquet file, a folder of videos and one long video, each a single shard. The long video is given
to a model that costs nearly nothing, so that decoding is what takes its time, as on a GPU node. "Alone" is the same job
with `num_tokenizers: 1`, whose process has all cores as torch threads: what such a source had before. Both use one Ray
that is up; what is measured is the time that the shard takes (a second model loads meanwhile), and beside it the whole
job. Then one process with one thread does it once more, as each of those that share: its part must be the same byte for
byte. (Entropies differ in their last bits between one torch thread and two.)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import ROOT
from benchmarks.document import put_between
from benchmarks.machine import num_cores, processor

__all__ = ["Pair", "Source", "SourceResult", "is_same_by_one_thread", "measure", "sources", "table"]

MARK = "one shard"
_CORPUS = ROOT.parent / "shared" / "corpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source of one shard, and the settings of its job, by the bundled checkpoint or a near-free model."""

    name: str
    source: str
    settings: Mapping[str, Any]
    is_near_free: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Seconds of the shard, and of the job from its call to its summary, Ray's own start left out."""

    alone_s: float
    shared_s: float
    alone_job_s: float
    shared_job_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceResult:
    """What became of a source; `ratios` are shared over alone, pair by pair, of the shard's time.

    `same_bytes` is None until somebody has looked.
    """

    name: str
    num_rows: int
    same_bytes: bool | None
    pairs: tuple[Pair, ...]
    ratios: tuple[float, ...]
    job_ratios: tuple[float, ...]
    load_average: float


def sources(corpus: Path, work: Path, *, num_photos: int, num_rows: int, num_times: int) -> list[Source]:
    """Of the corpus: one tar of photos, one Parquet file, one folder of videos, and one video many times in a row."""
    photos = work / "photos"
    photos.mkdir(parents=True)
    _tar_of(sorted(corpus.glob("photos-raw-*.tar")), photos / "photos.tar", num_photos)
    rows = work / "rows"
    rows.mkdir()
    pq.write_table(pq.read_table(corpus / "mini64-test.parquet").slice(0, num_rows), rows / "rows.parquet")
    long = work / "long"
    long.mkdir()
    _in_a_row(corpus / "video" / "car-detection.mp4", long / "long.mp4", num_times)
    num_videos = sum(path.is_file() for path in (corpus / "video").iterdir())
    return [
        Source(name=f"a tar of {num_photos} photos", source=str(photos), settings={}),
        Source(
            name=f"a Parquet file of {num_rows} rows",
            source=str(rows),
            settings={"preprocessing": {"image_size": 64}},
        ),
        Source(
            name=f"a folder of {num_videos} videos, a frame a second in clips of 4",
            source=str(corpus / "video"),
            settings={"video": {"fps": 1, "frames_per_clip": 4}, "resources": {"batch_size": 4}},
        ),
        Source(
            name="a long video, 8 frames a second in clips of 8, a near-free model",
            source=str(long),
            settings={"video": {"fps": 8, "frames_per_clip": 8}},
            is_near_free=True,
        ),
    ]


def _in_a_row(video: Path, target: Path, num_times: int) -> None:
    """The packets of a video, so many times one after the other."""
    import av

    with av.open(target, "w", options={"movflags": "faststart"}) as out:
        written, shift = None, 0
        for _ in range(num_times):
            with av.open(video) as container:
                stream, end = container.streams.video[0], 0
                written = written or out.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, written
                    out.mux(packet)
                shift += end


def _tar_of(tars: Sequence[Path], target: Path, num_photos: int) -> None:
    """A tar of so many photos of these, again from the start where they do not suffice."""
    import tarfile

    num_written = 0
    with tarfile.open(target, "w") as out:
        while num_written < num_photos:
            for path in tars:
                with tarfile.open(path) as tar:
                    for member in tar:
                        if not member.name.endswith(".jpg") or num_written == num_photos:
                            continue
                        content = tar.extractfile(member)
                        member.name = f"{num_written:05}.jpg"
                        out.addfile(member, content)
                        num_written += 1


def measure(
    source: Source,
    work: Path,
    *,
    num_pairs: int,
    load_tokenizer: Callable[[str], Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> SourceResult:
    """Run the pairs on the Ray that is up, the one that goes first alternating."""
    pairs, num_rows = [], 0
    for number in range(num_pairs):
        took = {}
        for way in ("alone", "shared") if number % 2 else ("shared", "alone"):
            took[way], num_rows = _run(source, _output(source, work, way, number), way, load_tokenizer)
            tell(f"{source.name}, pair {number}, {way}: {took[way][0]:.1f} s, the job {took[way][1]:.1f} s")
        pairs.append(
            Pair(
                alone_s=round(took["alone"][0], 2),
                shared_s=round(took["shared"][0], 2),
                alone_job_s=round(took["alone"][1], 2),
                shared_job_s=round(took["shared"][1], 2),
            )
        )
    return SourceResult(
        name=source.name,
        num_rows=num_rows,
        same_bytes=None,
        pairs=tuple(pairs),
        ratios=tuple(round(pair.shared_s / pair.alone_s, 3) for pair in pairs),
        job_ratios=tuple(round(pair.shared_job_s / pair.alone_job_s, 3) for pair in pairs),
        load_average=round(os.getloadavg()[0], 1),
    )


def is_same_by_one_thread(
    source: Source, work: Path, *, num_pairs: int, load_tokenizer: Callable[[str], Any] | None = None
) -> bool:
    """Whether the parts of the pairs that were shared are that of one process, on a Ray that is up with one CPU."""
    output = _output(source, work, "one thread", 0)
    _run(source, output, "alone", load_tokenizer)
    return all(_parts(_output(source, work, "shared", number)) == _parts(output) for number in range(num_pairs))


def _output(source: Source, work: Path, way: str, number: int) -> Path:
    return work / "outputs" / f"{source.name} {way} {number}"


def _parts(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "data").iterdir()}


def _run(
    source: Source, output: Path, way: str, load_tokenizer: Callable[[str], Any] | None
) -> tuple[tuple[float, float], int]:
    from tatok.pipeline.run import run_job
    from tatok.schemas.job import JobConfig

    resources = dict(source.settings.get("resources", {})) | ({"num_tokenizers": 1} if way == "alone" else {})
    document = {"source": source.source, "output": str(output), "device": "cpu"}
    config = JobConfig.model_validate({**document, **source.settings, "resources": resources})
    started = time.monotonic()
    summary = run_job(config, load_tokenizer=load_tokenizer)
    job_s = time.monotonic() - started
    if summary.status != "complete" or summary.num_parts != 1:
        raise RuntimeError(f"{source.name}: {summary.status}, {summary.num_parts} parts instead of one")
    return (summary.reports[0].seconds, job_s), summary.num_rows


def table(results: Sequence[SourceResult], machine: str) -> str:
    """For the document."""
    lines = [
        f"{machine}; median of the pairs, least and most in brackets.",
        "",
        "| one shard | rows | alone | shared | shared / alone | the whole job | parts |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        alone = statistics.median(pair.alone_s for pair in result.pairs)
        shared = statistics.median(pair.shared_s for pair in result.pairs)
        same = {True: "same bytes", False: "**differ**", None: "not compared"}[result.same_bytes]
        lines.append(
            f"| {result.name} | {result.num_rows:,} | {alone:.1f} s | {shared:.1f} s | **{_spread(result.ratios)}** | "
            f"{_spread(result.job_ratios)} | {same} |"
        )
    return "\n".join(lines)


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> int:
    """Print the figures; exit code 1 where parts differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=_CORPUS)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--times", type=int, default=25, help="the long video is this often a short one")
    parser.add_argument("--only", type=int, action="append", choices=range(4), help="tar, Parquet file, videos, long")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path)
    options = parser.parse_args()
    import tatok.pipeline.cluster.driver  # noqa: F401  sets Ray's environment before the import below

    import ray  # isort: skip
    from tests.support.fake_tokenizer import load_fake

    local = {"address": "local", "include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = sources(options.corpus, work, num_photos=options.photos, num_rows=options.rows, num_times=options.times)
        chosen = [found[number] for number in options.only or range(len(found))]
        ray.init(**local)
        for source in chosen:
            tell = partial(print, flush=True)
            load = load_fake if source.is_near_free else None
            results.append(measure(source, work, num_pairs=options.pairs, load_tokenizer=load, tell=tell))
        ray.shutdown()
        ray.init(num_cpus=1, **local)
        for number, source in enumerate(chosen):
            load = load_fake if source.is_near_free else None
            same = is_same_by_one_thread(source, work, num_pairs=options.pairs, load_tokenizer=load)
            results[number] = replace(results[number], same_bytes=same)
        ray.shutdown()
    machine = f"{num_cores()} cores, {processor()}"
    print(table(results, machine))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine, "sources": list(map(asdict, results))}, indent=1) + "\n"
        )
    if options.document:
        text = options.document.read_text(encoding="utf-8")
        options.document.write_text(put_between(text, MARK, table(results, machine)), encoding="utf-8")
    return 0 if all(result.same_bytes for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
