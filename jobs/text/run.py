"""A run's summary as `tatok tokenize` prints it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tatok.schemas.records import left_out_text

if TYPE_CHECKING:
    from tatok.pipeline.run import RunSummary

__all__ = ["print_summary"]


def print_summary(summary: RunSummary) -> None:
    """What there is now, what this run did, and what was lost with what to do about it."""
    images = sum(report.num_rows for report in summary.reports)
    print(
        f"{summary.output}: {summary.num_parts} parts, {summary.num_rows:,} images, {summary.num_tokens:,} tokens "
        f"({summary.num_tokens / max(summary.num_rows, 1):.1f} an image)"
    )
    if summary.reports:
        print(f"this run: {len(summary.reports)} shards, {images:,} images in {summary.seconds:.1f} s")
    elif summary.status == "complete":
        print(f"nothing to do: all {summary.num_shards} shards are committed ({summary.seconds:.1f} s)")
    if summary.num_rejects:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.rejects.items())
        print(f"{summary.num_rejects:,} rejects: {reasons}; see {summary.output}/rejects")
    if summary.left_out:
        print(f"left out: {left_out_text(summary.left_out)}")
    for shard, failure in summary.failed.items():
        print(f"failed: {shard.uri}: {failure.message}", file=sys.stderr)
    if summary.failed:
        print(f"{len(summary.failed)} shards failed; run the same command again to retry them", file=sys.stderr)
    if summary.status == "too_many_failed_shards":
        print(
            "stopped: limits.max_failed_shards was reached, so the fault is hardly in single files; fix it, or raise "
            "--max-failed-shards",
            file=sys.stderr,
        )
    if summary.status == "too_many_rejects":
        print(
            "stopped: more rejects than limits.max_reject_fraction allows; look at the reasons in rejects/, "
            "then fix the source or raise --max-reject-fraction",
            file=sys.stderr,
        )
