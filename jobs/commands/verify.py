"""The command that checks a dataset: verify."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tatok.jobs.exit_codes import EXIT_FINDINGS
from tatok.jobs.job_file import read_job
from tatok.jobs.text.folding import folded
from tatok.jobs.verbosity import Quiet
from tatok.schemas.records import count_text

if TYPE_CHECKING:
    from tatok.pipeline.verify.dataset import Verification

__all__ = ["verify"]

_SHOWN = 20  # findings of one check


def verify(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="The dataset: the folder or URL that tokenize wrote.")
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Also read and count this source again: every sample must be a row or a reject. May be repeated."
        ),
    ] = None,
    job: Annotated[Path | None, typer.Option(help="Job file whose `storage` says how the buckets are reached.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    quiet: Quiet = False,
) -> None:
    """Check a dataset: files against manifest, checksums, codes, positions, ids, duplicates, the source's keys, counts.

    Exit codes: 0 everything is right; 1 the check cannot be done; 3 something is wrong. Nothing is written.
    """
    from tatok.pipeline.storage.options import storage_options
    from tatok.pipeline.verify.dataset import verify_output

    storage = read_job(job).storage if job is not None else {}
    with storage_options(storage), _progress(is_shown=not quiet) as on_part:
        found = verify_output(output, source or (), on_part=on_part)
    print(_json(found) if as_json else folded(_text(found), sys.stdout))
    if not found.passed:
        raise typer.Exit(EXIT_FINDINGS)


def _text(found: Verification) -> str:
    from tatok.jobs.text.query import printable
    from tatok.pipeline.verify.part import CHECKS

    lines = [
        f"{found.url}: {count_text(found.num_parts, 'part')}, {count_text(found.num_rows, 'row')}, "
        f"{count_text(found.num_rejects, 'reject')}"
    ]
    if found.num_samples is not None:
        lines[0] += f"; the source: {count_text(found.num_samples, 'sample')} in committed shards"
        lines.append(f"counted without the readers: {found.num_counted:,} source files; not: {len(found.uncounted):,}")
        lines += [f"    {printable(each)}" for each in found.uncounted[:_SHOWN]]
    for check, count in found.checks.items():
        verdict = "ok" if not count else f"{count:,} wrong"
        lines.append(f"  {check:<11} {verdict:<9} {CHECKS[check]}")
        of_check = [finding for finding in found.findings if finding.check == check]
        lines += [f"    {printable(f'{each.file}: {each.message}')}" for each in of_check[:_SHOWN]]
        if len(of_check) > _SHOWN:
            lines.append(f"    and {len(of_check) - _SHOWN:,} more; --json lists all")
    return "\n".join(lines)


def _json(found: Verification) -> str:
    return json.dumps({"passed": found.passed, "checks": dict(found.checks)} | asdict(found), indent=1)


@contextmanager
def _progress(*, is_shown: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("parts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (is_shown and console.is_terminal)
    ) as progress:
        task = progress.add_task("parts", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
