"""What a dataset holds of each source file, against an independent count of the source (pipeline/census)."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tatok.pipeline.census.source import Count, NoCount
from tatok.pipeline.planning.pending import Progress
from tatok.pipeline.readers.file_groups import unpack_group
from tatok.pipeline.verify.part import Finding, VerifiedPart
from tatok.schemas.records import Shard, SourceFile, count_text

__all__ = ["Held", "compare_counts", "held_of"]

_AT_ONCE = 4096  # files that are looked up together
_NONE = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the dataset holds of one shard: its samples, each once, whatever number of clips it has.

    `rests` are the rows of a table from which on the rest of a damaged row group is one reject; `files` are hashes of
    the files of a group, 8 bytes each.
    """

    shard_id: str
    uri: str
    num_samples: int
    rests: tuple[int, ...] = ()
    files: np.ndarray | None = None


def held_of(part: VerifiedPart, shard: Shard) -> Held:
    """Take note of a shard while the places of its part are in memory."""
    if shard.kind == "files":
        firsts: dict[str, set[int]] = {}
        present: list[SourceFile] = []
        for file in unpack_group(shard):
            if file.uri not in firsts:
                firsts[file.uri] = {index for index, clip in part.places.get(file.uri, ()) if clip == 0}
            if file.index in firsts[file.uri]:
                present.append(file)
        return Held(
            shard_id=shard.shard_id,
            uri=shard.uri,
            num_samples=len(present),
            files=_hashes(file.uri for file in present),
        )
    stop = math.inf if shard.stop is None else shard.stop
    found = {index for index, clip in part.places.get(shard.uri, ()) if clip == 0 and shard.start <= index < stop}
    rests = (index for index in part.rests.get(shard.uri, ()) if shard.start <= index < stop)
    return Held(shard_id=shard.shard_id, uri=shard.uri, num_samples=len(found), rests=tuple(rests))


def compare_counts(
    counts: Iterable[Count | NoCount], held: Sequence[Held], progress: Progress
) -> tuple[list[Finding], int, tuple[str, ...]]:
    """Findings, how many source files were counted, and those that could not be, with the reason.

    What `progress` calls pending has no part, and what it calls unplanned is of another source or version: both are
    findings elsewhere, and none here. Memory: 8 bytes a file of the dataset, and the findings.
    """
    pending = progress.pending
    stale = [each for each in held if each.shard_id in progress.unplanned]
    held = [each for each in held if each.shard_id not in progress.unplanned]
    findings: list[Finding] = []
    uncounted: list[str] = []
    num_counted = 0
    lists: set[str] = set()
    num_held = Counter[str]()
    rests: dict[str, list[int]] = defaultdict(list)
    for each in held:
        num_held[each.uri] += each.num_samples
        rests[each.uri] += each.rests
    told = {shard.uri for shard in pending if shard.kind != "files"}
    told |= {each.uri for each in stale if each.files is not None}  # lists of which a part holds an older version
    num_waiting = Counter[str]()
    for shard in pending:
        num_waiting[shard.uri] += shard.num_samples or 0 if shard.kind == "files" else 0
    # A group with an older version of one file holds the others all the same.
    files = _Files([*held, *stale], pending)
    for some in _chunks(counts, _AT_ONCE):
        files.look_up([count for count in some if isinstance(count, Count) and count.kind == "file"])
        for count in some:
            if isinstance(count, NoCount):
                uncounted.append(f"{count.uri}: {count.reason}")
                continue
            num_counted += 1
            if count.kind == "list":
                lists.add(count.uri)
            if count.kind == "file" or count.uri in told:
                continue
            wrong = _wrong(count, num_held[count.uri], num_waiting[count.uri], rests[count.uri])
            if wrong:
                findings.append(Finding(check="count", file=count.uri, message=wrong))
    findings += files.missing()
    if not uncounted:  # else they may be what could not be listed
        findings += files.unlisted(each for each in held if each.uri not in lists)
    return findings, num_counted, tuple(uncounted)


_BY: Mapping[str, str] = {"tar": "samples by its headers", "table": "rows by its footer", "list": "rows by its lines"}


def _wrong(count: Count, num_held: int, num_waiting: int, rests: Sequence[int]) -> str | None:
    """What is wrong with the number of samples that the dataset holds of a file; None where nothing is."""
    behind = _behind(count.row_groups, rests)
    least, most = count.least - behind, math.inf if count.most is None else count.most - behind
    found = num_held + num_waiting
    if least <= found <= most or (count.is_optional and not found):
        return None
    told = f"{count.least:,}" if count.least == count.most else f"at least {count.least:,}"
    if found > most:
        told = f"{count.most:,}"
    told = f"holds {told} {_BY[count.kind]}, the dataset has {num_held:,} of it"
    if num_waiting:
        told += f", and {num_waiting:,} have no part yet"
    if behind:
        told += f", where rejects stand for {behind:,} more behind them"
    return told


def _behind(row_groups: Sequence[int], rests: Iterable[int]) -> int:
    """How many rows are not accounted for one by one: those behind a reject for the rest of its row group."""
    ends = np.array([0, *accumulate(row_groups)])
    first: dict[int, int] = {}  # end of a row group -> its first such reject
    for index in rests:
        at = int(np.searchsorted(ends, index, side="right"))
        if at < len(ends):
            end = int(ends[at])
            first[end] = min(index, first.get(end, index))
    return sum(end - index - 1 for end, index in first.items())


class _Files:
    """Images and videos that are source files of their own: each must be in the dataset."""

    def __init__(self, held: Iterable[Held], pending: Iterable[Shard]) -> None:
        waiting = [_hashes(file.uri for file in unpack_group(shard)) for shard in pending if shard.kind == "files"]
        of_dataset = [each.files for each in held if each.files is not None]
        self._there = np.unique(np.concatenate([_NONE, *of_dataset, *waiting]))
        self._is_listed = np.zeros(len(self._there), bool)
        self._of_pattern: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def look_up(self, counts: Sequence[Count]) -> None:
        """Note which are there."""
        hashes = _hashes(count.uri for count in counts)
        at = np.minimum(np.searchsorted(self._there, hashes), max(len(self._there) - 1, 0))
        is_there = self._there[at] == hashes if len(self._there) else np.zeros(len(counts), bool)
        self._is_listed[at[is_there]] = True
        for count, there in zip(counts, is_there.tolist(), strict=True):
            self._of_pattern[count.pattern] += 1
            if not there and not count.is_optional:
                self._missing[count.pattern] += 1
                self._first[count.pattern] = min(count.uri, self._first.get(count.pattern, count.uri))

    def missing(self) -> list[Finding]:
        """One finding for each pattern that names files of which the dataset has nothing."""
        return [
            Finding(
                check="count",
                file=pattern,
                message=f"has {self._of_pattern[pattern]:,} images and videos by its listing, the dataset nothing of "
                f"{count:,} of them, first {self._first[pattern]}",
            )
            for pattern, count in self._missing.items()
        ]

    def unlisted(self, held: Iterable[Held]) -> list[Finding]:
        """One finding for each folder or glob of which the dataset has files that its listing has not."""
        others = self._there[~self._is_listed]
        extra = Counter[str]()
        for each in held:
            if each.files is not None:
                extra[each.uri] += int(np.isin(each.files, others).sum())
        return [
            Finding(
                check="count", file=uri, message=f"does not list {count_text(count, 'file')} that the dataset has of it"
            )
            for uri, count in extra.items()
            if count
        ]


def _hashes(uris: Iterable[str]) -> np.ndarray:
    digests = (hashlib.blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=8).digest() for uri in uris)
    return np.frombuffer(b"".join(digests), np.uint64)


def _chunks(items: Iterable[Count | NoCount], size: int) -> Iterator[list[Count | NoCount]]:
    chunk: list[Count | NoCount] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    yield chunk
