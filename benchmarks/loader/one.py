"""One loader, once, in a process of its own: the clock starts where the loader is built, imports excluded."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import pandas  # noqa: F401  pyarrow imports it at the first array it is given, where it is installed
import pyarrow.parquet  # noqa: F401  imported by every loader that reads Parquet, but lazily
import s3fs  # noqa: F401  the same, by those that read buckets through fsspec
import torch  # noqa: F401
import typer

from benchmarks.loader.packing import TOKENS, Source
from tatok.dataset.parts import TokenizedData

__all__ = ["Epoch", "app", "measure", "process_tree_bytes"]

app = typer.Typer(pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch was. `seconds` is from building the loader to the end of the last batch.
    `cpu_seconds` is the processor time of all its processes and threads meanwhile: it says more than `seconds` on a
    machine that others use too. `imports_bytes` is the process's memory just before: PSS, as in `process_tree_bytes`.
    """

    num_rows: int
    num_tokens: int
    num_batches: int
    largest_batch_tokens: int
    first_batch_tokens: int
    first_batch_seconds: float
    seconds: float
    cpu_seconds: float
    imports_bytes: int


def measure(module: str, variant: str, source: Source) -> Epoch:
    """Go through one epoch. The module is an adapter, such as loader_tatok; the variant one of its `VARIANTS`."""
    make, _ = import_module(module).VARIANTS[variant]
    imports_bytes = process_tree_bytes(os.getpid())
    cpu_begin, begin = _cpu_seconds(), time.perf_counter()
    first: tuple[float, int] | None = None
    rows = tokens = batches = largest = 0
    for batch in make(source):
        size = len(batch.tokens)
        if first is None:
            first = time.perf_counter() - begin, size
        rows += len(batch.cu_seqlens) - 1
        tokens += size
        batches += 1
        largest = max(largest, size)
    seconds = time.perf_counter() - begin
    assert first is not None, f"{module} {variant} gave no batch of {source.url}"
    assert largest <= TOKENS, f"{module} {variant} gave a batch of {largest} tokens"
    return Epoch(
        num_rows=rows,
        num_tokens=tokens,
        num_batches=batches,
        largest_batch_tokens=largest,
        first_batch_tokens=first[1],
        first_batch_seconds=first[0],
        seconds=seconds,
        cpu_seconds=_cpu_seconds() - cpu_begin,
        imports_bytes=imports_bytes,
    )


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended: a DataLoader's workers have, at the end of an epoch."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def process_tree_bytes(root: int) -> int:
    """Proportional set size of a process and all below it: memory that n processes share counts a n-th in each.

    Files mapped into memory count as far as they were touched. Processes that end meanwhile count nothing.
    """
    total, waiting = 0, [root]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        for listed in process.glob("task/*/children"):  # a thread may have children of its own
            waiting += map(int, _read(listed).split())
        found = re.search(r"^Pss:\s+(\d+) kB", _read(process / "smaps_rollup"), re.MULTILINE)
        total += int(found[1]) << 10 if found else 0
    return total


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""  # it has just ended


@app.command("measure")
def measure_command(
    module: str,
    variant: str,
    url: str,
    cache: Path,
    answer: Annotated[Path, typer.Option(help="Where to write the epoch, as JSON.")],
    workers: Annotated[int, typer.Option(help="Worker processes of the DataLoader.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    endpoint: Annotated[str | None, typer.Option(help="URL of the S3 server.")] = None,
) -> None:
    """Measure one epoch of one loader."""
    source = Source(url=url, cache=cache, num_workers=workers, seed=seed, endpoint_url=endpoint)
    answer.write_text(json.dumps(asdict(measure(module, variant, source))))


@app.command()
def convert(module: str, form: str, parts: Path, folder: Path) -> None:
    """Write a tokenized dataset in a loader's own format."""
    import_module(module).FORMATS[form](TokenizedData.open(parts), folder)


if __name__ == "__main__":
    app()
