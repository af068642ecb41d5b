"""Planned shards and committed parts -> what is left to do, also where the source has grown since."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from tatok.pipeline.planning.shard_ids import whole_file_id
from tatok.pipeline.readers.file_groups import file_identity, pack_group, unpack_group
from tatok.schemas.records import Shard

__all__ = ["Progress", "compare_with_committed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What of a source is done: `committed` are the ids of its parts, `unplanned` those of other or older sources."""

    pending: tuple[Shard, ...]
    committed: frozenset[str]
    unplanned: frozenset[str]

    @property
    def num_shards(self) -> int:
        """Of the whole source, done or not."""
        return len(self.pending) + len(self.committed)


def compare_with_committed(
    planned: Sequence[Shard], committed: Collection[str], shards_of: Callable[[Iterable[str]], Iterable[Shard]]
) -> Progress:
    """What is to be done, in the plan's order, so that no sample is tokenized twice.

    A group of files that has changed since is pending with those of its files that no part holds; a file is another one
    if its size, etag or caption is. A part whose files are all still in the source belongs to it, whatever it is named.
    A stretch of a file that was committed whole is done. `shards_of` gives the shards of parts by their ids; it is
    asked only for those that the plan does not have.
    """
    ids = frozenset(shard.shard_id for shard in planned)
    done = ids & frozenset(committed)
    unknown = frozenset(committed) - ids
    pending = [shard for shard in planned if shard.shard_id not in done]
    if not unknown:
        return Progress(pending=tuple(pending), committed=done, unplanned=frozenset())
    whole = {whole_file_id(shard): shard for shard in pending if shard.version} if pending else {}
    split_since = unknown & whole.keys()
    pending = [shard for shard in pending if not shard.version or whole_file_id(shard) not in split_since]
    done, unknown = done | split_since, unknown - split_since
    if any(shard.kind == "files" for shard in planned):
        pending, grown = _without_committed_files(planned, pending, shards_of(sorted(unknown)))
        done, unknown = done | grown, unknown - grown
    return Progress(pending=tuple(pending), committed=done, unplanned=unknown)


def _without_committed_files(
    planned: Sequence[Shard], pending: Sequence[Shard], committed: Iterable[Shard]
) -> tuple[list[Shard], frozenset[str]]:
    """The pending shards without the files of the committed ones, which of those hold only files of the source."""
    part_of: dict[bytes, str] = {}
    missing: dict[str, int] = {}  # files of a part that the source has not been found to have
    for shard in committed:
        if shard.kind == "files":
            held = set(map(file_identity, unpack_group(shard)))
            part_of |= dict.fromkeys(held, shard.shard_id)
            missing[shard.shard_id] = len(held)
    if not part_of:
        return list(pending), frozenset()
    waiting = {shard.shard_id for shard in pending}
    left: list[Shard] = []
    seen: set[bytes] = set()
    for shard in planned:
        if shard.kind != "files":
            left += [shard] if shard.shard_id in waiting else []
            continue
        files = unpack_group(shard)
        identities = [file_identity(file) for file in files]
        for identity in identities:
            if identity in part_of and identity not in seen:
                seen.add(identity)
                missing[part_of[identity]] -= 1
        if shard.shard_id in waiting:
            rest = [file for file, identity in zip(files, identities, strict=True) if identity not in part_of]
            if rest:
                left.append(shard if len(rest) == len(files) else pack_group(rest, shard.uri))
    return left, frozenset(shard_id for shard_id, count in missing.items() if not count)
