"""Numbers of bytes, and what a dataset's rows are called, as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tatok.schemas.manifest import LAYOUT_0_2

if TYPE_CHECKING:
    from tatok.dataset.parts import TokenizedData
    from tatok.statistics.summary import DatasetStatistics

__all__ = ["Noun", "bytes_text", "noun_of", "noun_of_parts", "with_article"]

Noun = Literal["image", "clip", "row"]


def noun_of(statistics: DatasetStatistics) -> Noun:
    """What a row is: "image" or "clip", or "row" where there are both."""
    are_clips = {count.grid.frames > 1 for count in statistics.grids}
    return "row" if len(are_clips) > 1 else "clip" if are_clips == {True} else "image"


def noun_of_parts(data: TokenizedData) -> Noun:
    """The same from the manifest alone, where no column has been read; "row" also where it cannot say."""
    num_clips = sum(part.num_clips for part in data.parts)
    if not num_clips:
        return "row" if data.layout == LAYOUT_0_2 else "image"  # tatok 0.1 and 0.2 did not count clips
    return "clip" if num_clips == data.num_rows else "row"


def with_article(noun: Noun) -> str:
    """The noun after its article."""
    return f"an {noun}" if noun == "image" else f"a {noun}"


def bytes_text(count: float) -> str:
    """A size such as "1.4 GB": units are powers of 1000, as those of disks and buckets are."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} bytes"
