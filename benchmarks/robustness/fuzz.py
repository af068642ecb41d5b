"""20,000 mutated images, archives, tables, lists and job files against the real job: nothing crashes, hangs or is lost.

    make fuzz

Mutated images are in archives among good photos; a mutated archive or Parquet file is a shard by itself. One real run
on a local Ray (reader, decoders, the tests' fake model, commits) takes them all. Then every image that was put in must
be one row or one reject, every good photo among them one row, every sample of an archive that lies before its first
changed byte a row, every row of a Parquet file's untouched row groups with an untouched footer a row, and `tatok verify
--source` must find nothing. That counts every archive and table by other means than the readers (pipeline/census), so
that the reader is not asked what it has read. Job files are loaded, and Parquet files and lists planned, in a process
of their own: each must give a configuration or shards, or a ConfigError, which for a Parquet file says that no column
is the image's; a list that is planned must give as many files as its independent count. The seed fixes every input.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import json
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.robustness.fuzz_inputs import IMAGE_KINDS, LIST_KINDS, FuzzInput, Kind, fuzz_input
from tatok.pipeline.census.lists import count_listed
from tatok.pipeline.monitoring.events import Event, ShardRetried
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.run import run_job
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.job import JobConfig, load_job
from tatok.schemas.manifest import LAYOUT
from tatok.schemas.records import Shard
from tests.support.fake_tokenizer import FakeTokenizer, load_fake
from tests.support.photos import photo_members, tar_bytes

IMAGES_A_SHARD = 40
DEADLINE_S = 20.0  # of a batch of images, of one image after a decoder was lost, and of a job file
_JUDGED_A_CALL = 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzReport:
    """What became of the inputs; each `findings` is one that broke a promise."""

    seed: int
    num_inputs: int
    inputs: dict[str, int]
    num_shards: int
    num_rows: int
    rejects: dict[str, int]
    jobs_accepted: int
    jobs_refused: int
    tables_accepted: int
    tables_refused: int
    lists_accepted: int
    lists_refused: int
    num_counted: int
    num_retries: int
    longest_shard_s: float
    run_s: float
    findings: tuple[str, ...]


def fuzz(
    num_inputs: int,
    seed: int,
    work: Path,
    *,
    load_tokenizer: Callable[..., FakeTokenizer] = load_fake,
    num_decoders: int = 2,
) -> FuzzReport:
    """Make the inputs in `work`, run the job over them, load the job files, and check.

    `num_decoders`: 0 lets tokenizers read and decode, in the process in which `load_tokenizer` is called.
    """
    inputs = [fuzz_input(seed, number) for number in range(num_inputs)]
    images = [each for each in inputs if each.kind in IMAGE_KINDS]
    archives = [each for each in inputs if each.kind == "tar"]
    tables = [each for each in inputs if each.kind == "parquet"]
    source = work / "source"
    source.mkdir(parents=True)
    good = _write_image_shards(images, source)
    for archive in archives:
        (source / f"{archive.name}.tar").write_bytes(archive.data)
    of_jobs = _verdicts([each for each in inputs if each.kind == "job"], _load, work)
    of_tables = _verdicts(tables, _plan, work)
    of_lists: dict[str, str] = {}
    for kind in LIST_KINDS:
        of_lists |= _verdicts([each for each in inputs if each.kind == kind], partial(_plan_list, kind), work)
    tables = [table for table in tables if of_tables[table.name] == "accepted"]
    for table in tables:
        (source / table.name).write_bytes(table.data)

    config = JobConfig.model_validate(
        {
            "source": str(source),
            "output": str(work / "tokens"),
            "preprocessing": {"image_size": 32},
            "resources": {"num_decoders": num_decoders, "decode_timeout_s": DEADLINE_S},
            "limits": {"max_reject_fraction": 1, "max_failed_shards": num_inputs, "max_pixels": 1 << 24},
        }
    )
    retries: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, ShardRetried):
            retries.append(f"{event.shard.uri}: {event.reason}")

    started = time.monotonic()
    summary = run_job(config, load_tokenizer=load_tokenizer, on_event=note)
    run_s = time.monotonic() - started
    findings = [f"given up: {shard.uri}: {failure.message}" for shard, failure in summary.failed.items()]
    verification = verify_output(str(work / "tokens"), [str(source)])
    findings += [f"verify: {finding.check} {finding.file}: {finding.message}" for finding in verification.findings]
    findings += [f"not counted: {each}" for each in verification.uncounted]
    findings += _missing(work / "tokens", images, archives, good)
    findings += _lost_rows(work / "tokens", tables)
    verdicts = (of_jobs | of_tables | of_lists).items()
    findings += [f"{name}: {verdict}" for name, verdict in verdicts if verdict not in ("accepted", "refused")]
    return FuzzReport(
        seed=seed,
        num_inputs=num_inputs,
        inputs=dict(Counter(each.kind for each in inputs)),
        num_shards=summary.num_shards,
        num_rows=summary.num_rows,
        rejects=dict(summary.rejects),
        jobs_accepted=list(of_jobs.values()).count("accepted"),
        jobs_refused=list(of_jobs.values()).count("refused"),
        tables_accepted=list(of_tables.values()).count("accepted"),
        tables_refused=list(of_tables.values()).count("refused"),
        lists_accepted=list(of_lists.values()).count("accepted"),
        lists_refused=list(of_lists.values()).count("refused"),
        num_counted=verification.num_counted,
        num_retries=len(retries),
        longest_shard_s=round(max((report.seconds for report in summary.reports), default=0.0), 2),
        run_s=round(run_s, 1),
        findings=tuple(findings),
    )


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _write_image_shards(images: Sequence[FuzzInput], folder: Path) -> set[str]:
    """A good photo before and after every ten mutated images; returns the good ones' keys."""
    good = set()
    for number, shard in enumerate(_chunks(images, IMAGES_A_SHARD)):
        members: list[tuple[str, bytes]] = []
        for ten in _chunks(shard, 10):
            key = f"good-{number:05}-{len(members):02}"
            good.add(key)
            members.append((f"{key}.jpg", photo_members(number, 1)[0][1]))
            members += [(each.name, each.data) for each in ten]
        (folder / f"images-{number:05}.tar").write_bytes(tar_bytes(members))
    return good


def _missing(
    output: Path, images: Iterable[FuzzInput], archives: Iterable[FuzzInput], good: Iterable[str]
) -> list[str]:
    """Inputs that are not accounted for exactly once."""
    rows, rejects = (
        Counter(
            (Path(uri).name, key)
            for batch in ds.dataset(output / folder).to_batches(columns=["source_uri", "key"])
            for uri, key in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        for folder in ("data", LAYOUT.rejects)
    )
    findings = []
    by_key = Counter[str]()
    for (_, key), count in (rows + rejects).items():
        by_key[key] += count
    for image in images:
        times = by_key[image.name.partition(".")[0]]
        if times != 1:
            findings.append(f"{image.name} is accounted for {times} times")
    row_keys = Counter[str]()
    for (_, key), count in rows.items():
        row_keys[key] += count
    findings += [f"the good photo {key} gave {row_keys[key]} rows" for key in good if row_keys[key] != 1]
    for archive in archives:
        findings += [
            f"{archive.name} lost {key}, which lies before its first changed byte"
            for key in _intact_keys(archive)
            if not rows[f"{archive.name}.tar", key]
        ]
    return findings


def _intact_keys(archive: FuzzInput) -> list[str]:
    """Keys of the samples that lie before an archive's first changed byte, with all their members."""
    if archive.base[:2] == b"\x1f\x8b":
        return []  # compressed: what a byte spoils is not told by its place
    with tarfile.open(fileobj=io.BytesIO(archive.base)) as tar:
        ends: dict[str, int] = {}
        for member in tar:
            folder, slash, name = member.name.rpartition("/")
            if member.isdir() or name.startswith("."):
                continue  # no sample's
            ends[folder + slash + name.partition(".")[0]] = member.offset_data + member.size
    # The next header belongs to the sample too: its reader looks there whether the sample continues.
    return [key for key, end in ends.items() if end + 2 * 512 <= archive.num_intact_bytes]


def _lost_rows(output: Path, tables: Iterable[FuzzInput]) -> list[str]:
    """Rows of untouched row groups in Parquet files with an untouched footer that the dataset does not hold."""
    rows = {
        (Path(uri).name, index)
        for batch in ds.dataset(output / "data").to_batches(columns=["source_uri", "source_index"])
        for uri, index in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    }
    return [
        f"{table.name} lost row {index}, which lies in an untouched row group"
        for table in tables
        for index in _intact_rows(table)
        if (table.name, index) not in rows
    ]


def _intact_rows(table: FuzzInput) -> Iterator[int]:
    base, data = table.base, table.data
    if len(base) != len(data):
        return
    footer_bytes = 8 + int.from_bytes(base[-8:-4], "little")
    if base[-footer_bytes:] != data[-footer_bytes:]:
        return
    metadata = pq.read_metadata(io.BytesIO(base))
    row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(at) for at in range(group.num_columns)]
        starts = [c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset for c in columns]
        ends = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
        stretch = slice(min(starts), max(ends))
        if base[stretch] == data[stretch]:
            yield from range(row, row + group.num_rows)
        row += group.num_rows


def _verdicts(inputs: Sequence[FuzzInput], judge: Callable[[bytes, Path], object], work: Path) -> dict[str, str]:
    """By name, what `judge` makes of each input in a process of its own: "accepted", "refused", or what went wrong."""
    verdicts: dict[str, str] = {}
    pending = list(_chunks(inputs, _JUDGED_A_CALL))
    while pending:
        with concurrent.futures.ProcessPoolExecutor(max_workers=1) as pool:
            while pending:
                some = pending.pop(0)
                try:
                    told = pool.submit(_judge, judge, [each.data for each in some], work).result()
                except BrokenProcessPool:
                    told = ["crashed the process"]
                    if len(some) > 1:  # which one it was is found by judging each alone
                        pending = [*_chunks(some, 1), *pending]
                        break
                verdicts |= zip((each.name for each in some), told, strict=True)
                if told == ["crashed the process"]:
                    break
    return verdicts


def _judge(judge: Callable[[bytes, Path], object], inputs: Sequence[bytes], work: Path) -> list[str]:
    """In a child."""
    verdicts = []
    signal.signal(signal.SIGALRM, _too_late)
    for data in inputs:
        signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
        try:
            judge(data, work)
            verdicts.append("accepted")
        except ConfigError:
            verdicts.append("refused")
        except BaseException as error:
            verdicts.append(f"{type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return verdicts


def _load(data: bytes, work: Path) -> JobConfig:
    path = work / "job.yaml"
    path.write_bytes(data)
    return load_job(path)


def _plan(data: bytes, work: Path) -> list[Shard]:
    path = work / "table.parquet"
    path.write_bytes(data)
    return plan_shards([str(path)])


def _plan_list(kind: Kind, data: bytes, work: Path) -> None:
    """Plan a list, and count it otherwise; raises AssertionError where the two differ."""
    path = work / f"list.{kind}"
    path.write_bytes(data)
    num_rows = count_listed(str(path), kind)
    try:
        num_planned = sum(shard.num_samples or 0 for shard in plan_shards([str(path)]))
    except SourceError:  # names nothing
        num_planned = 0
    if num_planned != num_rows:
        raise AssertionError(f"{num_rows} rows by its lines, {num_planned} planned")


def _too_late(*_: object) -> None:
    raise TimeoutError("took longer than the deadline")


def main() -> int:
    """Exit code 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(options.inputs, options.seed, options.work or Path(folder))
    print(json.dumps(asdict(report), indent=1))
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    for finding in islice(report.findings, 50):
        print(finding, file=sys.stderr)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
