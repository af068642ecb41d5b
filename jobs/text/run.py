"""A run's summary as `tatok tokenize` prints it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from tatok.jobs.text.folding import folded
from tatok.jobs.text.plan import all_committed
from tatok.schemas.records import count_text, left_out_text

if TYPE_CHECKING:
    from tatok.pipeline.run import RunSummary
    from tatok.schemas.records import ShardReport

__all__ = ["print_summary"]


def print_summary(summary: RunSummary, *, quiet: bool = False) -> None:
    """What there is now, what this run did, and what was lost with what to do about it.

    `quiet`: what there is now, and what keeps the dataset from being complete.
    """
    row = "row" if summary.num_clips < summary.num_rows else "clip"
    _say(
        f"{summary.output}: {count_text(summary.num_parts, 'part')}, {_rows(summary)}, "
        f"{count_text(summary.num_tokens, 'token')} "
        f"({summary.num_tokens / max(summary.num_rows, 1):.1f} {f'a {row}' if summary.num_clips else 'an image'})"
    )
    if not quiet:
        _print_run(summary)
    for shard, failure in summary.failed.items():
        _say(f"failed: {shard.uri}: {failure.message}", sys.stderr)
    if summary.failed:
        _say(f"{count_text(len(summary.failed), 'shard')} failed; run the same command again to retry them", sys.stderr)
    if summary.status == "too_many_failed_shards":
        _say(
            "stopped: limits.max_failed_shards was reached, so the fault is hardly in single files; fix it, or raise "
            "--max-failed-shards",
            sys.stderr,
        )
    if summary.status == "too_many_rejects":
        _say(
            "stopped: more rejects than limits.max_reject_fraction allows; look at the reasons in "
            f"{summary.layout.rejects}/, "
            "then fix the source or raise --max-reject-fraction",
            sys.stderr,
        )


def _print_run(summary: RunSummary) -> None:
    if summary.reports:
        shards = count_text(len(summary.reports), "shard")
        _say(f"this run: {shards}, {_rows(*summary.reports)} in {summary.seconds:.1f} s")
    elif summary.status == "complete":
        _say(f"nothing to do: {all_committed(summary.num_shards)} ({summary.seconds:.1f} s)")
    if summary.num_rejects:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.rejects.items())
        _say(f"{count_text(summary.num_rejects, 'reject')}: {reasons}; see {summary.output}/{summary.layout.rejects}")
    if summary.left_out:
        _say(f"left out: {left_out_text(summary.left_out)}")


def _say(line: str, stream: TextIO | None = None) -> None:
    to = stream or sys.stdout
    print(folded(line, to), file=to)


def _rows(*counted: RunSummary | ShardReport) -> str:
    num_rows, num_clips, num_frames = (
        sum(getattr(each, name) for each in counted) for name in ("num_rows", "num_clips", "num_frames")
    )
    clips = f"{count_text(num_clips, 'clip')} of {count_text(num_frames, 'frame')}"
    if not num_clips:
        return count_text(num_rows, "image")
    return clips if num_clips == num_rows else f"{count_text(num_rows - num_clips, 'image')} and {clips}"
