"""Side by side: tatok and others who tokenize the same photos by the same model into rows of the same contents.

`make bench-peers` runs it; docs/results/peers.md says what is measured. Each run is a process of its own
(one.py); peers take turns, so that what else the machine does meets all of them; tatok is compared with a peer
within a round. Whoever does not give tatok's own rows, token for token, is told so and is in no table.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import ROOT
from benchmarks.document import put_between
from benchmarks.machine import num_cores, python_and_cores, versions
from benchmarks.peers.one import process_tree
from benchmarks.peers.work import Row, Task, rows_of
from tests.support.photos import jpeg, tar_bytes

__all__ = ["PEERS", "Failure", "Peer", "Run", "Work", "bench", "run_once", "tables"]

RUN = ("-m", "benchmarks.peers.one")
PACKAGES = ("torch", "ray", "pyarrow", "datasets", "daft", "webdataset", "pillow")
MARK = "peers"
_LIMIT_S = 600.0
_MOST_OTHER_ROWS = 0.03
_TIMES_SLOWER, _START_S = 4, 20.0  # a way that takes so much longer than tatok is cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A name in the tables, its module, and its ways to do the work; the quickest of these counts."""

    name: str
    module: str
    variants: tuple[str, ...]


TATOK = Peer(name="tatok", module="benchmarks.peers.contenders.tatok", variants=("default resources",))
PEERS = (
    TATOK,
    Peer(
        name="Ray Data",
        module="benchmarks.peers.contenders.ray_data",
        variants=("batches", "batches, actor of half a CPU"),
    ),
    Peer(name="script", module="benchmarks.peers.contenders.script", variants=("2 workers", "1 worker")),
    Peer(name="datasets", module="benchmarks.peers.contenders.datasets", variants=("map", "map, 2 processes")),
    Peer(name="Daft", module="benchmarks.peers.contenders.daft", variants=("files", "files, model in a process")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all are given; `tokenizer` is the bundled checkpoint ("real") or `NearFree`."""

    name: str
    tokenizer: str
    num_shards: int
    num_photos: int
    image_size: int
    batch_size: int
    decoder: str = "pillow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One whole run; `seconds` begin when modules are imported and Ray, where needed, has started."""

    peer: str
    variant: str
    seconds: float
    cpu_s: float
    told: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a peer's way has no figures."""

    peer: str
    variant: str
    message: str


def own_photos(folder: Path, num_shards: int, photos_a_shard: int, side: int) -> list[Path]:
    """Tars of synthetic photos."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(num_shards):
        names = [f"photo-{number:03}-{i:04}.jpg" for i in range(photos_a_shard)]
        members = [(name, jpeg(number * photos_a_shard + i, side, side)) for i, name in enumerate(names)]
        paths.append(folder / f"photos-{number:03}.tar")
        paths[-1].write_bytes(tar_bytes(members))
    return paths


def repeated(tars: Sequence[Path], folder: Path, num_shards: int) -> list[Path]:
    """The tars again and again under other names, by links."""
    folder.mkdir(parents=True)
    paths = [folder / f"photos-{number:03}.tar" for number in range(num_shards)]
    for number, path in enumerate(paths):
        path.symlink_to(tars[number % len(tars)].absolute())
    return paths


def as_files(tars: Sequence[Path], folder: Path) -> int:
    """Write the photos as files, a folder a tar; returns how many there are."""
    count = 0
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    target = folder / path.stem / member.name.replace("/", "_")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = tar.extractfile(member)
                    assert source is not None
                    target.write_bytes(source.read())
                    count += 1
    return count


def run_once(peer: Peer, variant: str, task: Task, scratch: Path, *, limit_s: float = _LIMIT_S) -> Run | Failure:
    """One run in a process of its own, which is ended, with all below it, where it takes longer than `limit_s`."""
    (scratch / "task.json").write_text(json.dumps(asdict(task)))
    answer = scratch / "answer.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, *RUN, peer.module, variant, str(scratch / "task.json"), str(answer)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "DAFT_PROGRESS_BAR": "0"}
    with (scratch / "log.txt").open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=scratch)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            for pid in process_tree(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()
            return Failure(peer=peer.name, variant=variant, message=f"not done within {limit_s:.0f} s")
        log.seek(0)
        lines = log.read().strip().splitlines() or [f"ended with {process.returncode}"]
    if process.returncode or not answer.exists():
        return Failure(peer=peer.name, variant=variant, message=lines[-1])
    told = json.loads(answer.read_text())
    return Run(peer=peer.name, variant=variant, seconds=told["seconds"], cpu_s=told["cpu_s"], told=told["told"])


def difference(rows: Sequence[Row], expected: Sequence[Row]) -> str | None:
    """How rows, both sorted by key, differ from tatok's; None where they are the same work.

    Under other numbers of threads sums are rounded otherwise, so a near-tie may fall the other way now and then.
    """
    if [row.key for row in rows] != [row.key for row in expected]:
        return f"its {len(rows)} rows do not have the keys of tatok's {len(expected)}"
    others = sum(
        (row.codes, row.positions, row.num_global) != (wanted.codes, wanted.positions, wanted.num_global)
        for row, wanted in zip(rows, expected, strict=True)
    )
    if others > _MOST_OTHER_ROWS * len(rows):
        return f"{others} of its {len(rows)} rows have other tokens than tatok's"
    return None


def bench(
    work: Work,
    tars: Sequence[Path],
    scratch: Path,
    *,
    peers: Sequence[Peer],
    rounds: int,
    num_cpus: int,
    num_tried: int | None = None,
) -> tuple[list[list[Run]], list[Failure]]:
    """Every way of every peer over the first `num_tried` tars, rows held against tatok's; then each one's quickest.

    Those are measured in `rounds`, over all tars.
    """
    as_files(tars[:num_tried], scratch / "files-tried")
    failures: list[Failure] = []
    expected: list[Row] = []
    quickest: dict[str, Run] = {}

    def one(peer: Peer, variant: str, *, check: bool) -> Run | Failure:
        output = scratch / "output"
        given = tars[:num_tried] if check else tars
        task = Task(
            shards=tuple(map(str, given)),
            folder=str(scratch / ("files-tried" if check else "files")),
            output=str(output),
            tokenizer=work.tokenizer,  # type: ignore[arg-type]
            batch_size=work.batch_size,
            image_size=work.image_size,
            num_cpus=num_cpus,
            decoder=work.decoder,  # type: ignore[arg-type]
        )
        tatok = quickest.get(TATOK.name)
        limit_s = _LIMIT_S if tatok is None or not check else _START_S + _TIMES_SLOWER * tatok.seconds
        result = run_once(peer, variant, task, scratch, limit_s=limit_s)
        if isinstance(result, Run) and check:
            rows = sorted(rows_of(output), key=lambda row: row.key)
            if not expected:
                expected.extend(rows)
            message = difference(rows, expected)
            if message is not None:
                result = Failure(peer=peer.name, variant=variant, message=message)
        for path in (output, output.with_suffix(".cache")):
            shutil.rmtree(path, ignore_errors=True)
        _tell(result)
        return result

    for peer in peers:
        for variant in peer.variants:
            result = one(peer, variant, check=True)
            if isinstance(result, Failure):
                failures.append(result)
            elif peer.name not in quickest or result.seconds < quickest[peer.name].seconds:
                quickest[peer.name] = result
    if TATOK.name not in quickest:
        raise RuntimeError(f"tatok itself failed: {failures[0].message}")
    taking_part = [peer for peer in peers if peer.name in quickest]
    measured = []
    for number in range(rounds):
        in_turn = taking_part if number % 2 else taking_part[::-1]
        results = [one(peer, quickest[peer.name].variant, check=False) for peer in in_turn]
        failures += [result for result in results if isinstance(result, Failure)]
        measured.append([result for result in results if isinstance(result, Run)])
    return measured, failures


def _tell(result: Run | Failure) -> None:
    came_of_it = (
        result.message if isinstance(result, Failure) else f"{result.seconds:.1f} s, {result.cpu_s:.1f} s of CPU"
    )
    print(f"{result.peer} ({result.variant}): {came_of_it}", file=sys.stderr, flush=True)


def tables(document: dict[str, Any]) -> str:
    """The figures as Markdown."""
    return "\n".join(_lines(document))


def _lines(document: dict[str, Any]) -> Iterator[str]:
    for each in document["works"]:
        work, rounds = each["work"], each["rounds"]
        yield f"**{work['name']}**: {work['num_photos']:,} photos in {work['num_shards']} tars, {len(rounds)} rounds."
        yield ""
        yield "| | its quickest way | photos a second | seconds of CPU | tatok's speed over its |"
        yield "|---|---|---|---|---|"
        names = list(dict.fromkeys(run["peer"] for results in rounds for run in results))
        for name in sorted(names, key=lambda name: [peer.name for peer in PEERS].index(name)):
            runs = [run for results in rounds for run in results if run["peer"] == name]
            ratios = [
                run["seconds"] / tatok["seconds"]
                for results in rounds
                for run in results
                for tatok in results
                if run["peer"] == name and tatok["peer"] == TATOK.name
            ]
            rate = work["num_photos"] / statistics.median(run["seconds"] for run in runs)
            cpu_s = statistics.median(run["cpu_s"] for run in runs)
            ratio = (
                ""
                if name == TATOK.name
                else f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
            )
            yield f"| {name} | {runs[0]['variant']} | {rate:,.1f} | {cpu_s:.1f} | {ratio} |"
        yield ""
        for failure in each["failures"]:
            yield f"- {failure['peer']} ({failure['variant']}): {failure['message']}"
        if each["failures"]:
            yield ""
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    yield f"Machine: {machine}. Versions: {', '.join(f'{n} {v}' for n, v in document['versions'].items())}."


def main(
    photos: Annotated[str, typer.Option(help="Glob of tars of real photos.")] = "../shared/corpus/photos-raw-*.tar",
    shards: Annotated[int, typer.Option(help="Tars of real photos, the same ones again and again.")] = 16,
    small_photos: Annotated[int, typer.Option(help="Photos of 64x64 for the near-free model.")] = 120_000,
    rounds: Annotated[int, typer.Option(help="Times that each peer's quickest way is measured.")] = 3,
    only: Annotated[str | None, typer.Option(help="near-free or real; --json keeps its figures of the other.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every measurement here.")] = None,
    document: Annotated[Path | None, typer.Option(help="Put the tables between this file's marks.")] = None,
) -> None:
    """Measure tatok and its peers, with a near-free model (overhead alone) and with the bundled checkpoint."""
    num_cpus = num_cores()
    works: dict[tuple[str, str], dict[str, Any]] = {}
    num_photos: dict[str, int] = {}
    if only is not None and json_file is not None and json_file.exists():
        works = {
            (each["work"]["tokenizer"], each["work"].get("decoder", "pillow")): each
            for each in json.loads(json_file.read_text())["works"]
        }
    with tempfile.TemporaryDirectory(prefix="tatok-peers-") as folder:
        real = sorted(Path().glob(photos)) if not Path(photos).is_absolute() else sorted(Path("/").glob(photos[1:]))
        if not real:
            raise typer.BadParameter(f"no tar matches {photos}", param_hint="--photos")
        small = own_photos(Path(folder) / "small", 20, small_photos // 20, 64)
        large = repeated(real, Path(folder) / "large", shards)
        near_free = ("Overhead: a near-free model, photos of 64x64", "near-free", small, 64)
        real_model = ("The bundled checkpoint, raw photos", "real", large, 256)
        for (name, tokenizer, tars, side), (decoder, by) in product(
            (near_free, real_model),
            (("pillow", "the default decoder of each (Pillow)"), ("simplejpeg", "simplejpeg for all")),
        ):
            if only not in (None, tokenizer):
                continue
            scratch = Path(folder) / f"{tokenizer}-{decoder}"
            scratch.mkdir()
            files = Path(folder) / f"{tokenizer}-files"  # of both decoders
            if not files.exists():
                num_photos[tokenizer] = as_files(tars, files)
            (scratch / "files").symlink_to(files)
            work = Work(
                name=f"{name}; {by}",
                decoder=decoder,
                tokenizer=tokenizer,
                num_shards=len(tars),
                num_photos=num_photos[tokenizer],
                image_size=side,
                batch_size=16,
            )
            num_tried = 2 if tokenizer == "real" else 6  # small photos are soon done: else starting would decide
            measured, failures = bench(
                work, tars, scratch, peers=PEERS, rounds=rounds, num_cpus=num_cpus, num_tried=num_tried
            )
            works[tokenizer, decoder] = {
                "work": asdict(work),
                "rounds": [[asdict(run) for run in results] for results in measured],
                "failures": [asdict(failure) for failure in failures],
            }
            told = {
                "machine": python_and_cores(),
                "versions": versions(PACKAGES),
                "works": list(works.values()),
            }
            if json_file is not None:
                json_file.write_text(json.dumps(told, indent=1) + "\n")
    if document is not None:
        document.write_text(put_between(document.read_text(), MARK, tables(told)))
    print(tables(told))


if __name__ == "__main__":
    typer.run(main)
