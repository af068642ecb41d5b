"""A source, looked over before it is tokenized: what there is, and what an output has of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tatok.pipeline.output.commit import committed_shards, shards_of_parts
from tatok.pipeline.planning.pending import Progress, compare_with_committed
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.file_groups import unpack_group
from tatok.pipeline.readers.formats import extension_of
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.records import LeftOut, Shard, ShardKind, count_text

__all__ = ["KindCounts", "Survey", "survey_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindCounts:
    """The shards of one kind; `num_samples` is None where tars, which must be read for it, are among them.

    `num_bytes` are those whose size is known. `extensions` counts the files of groups.
    """

    num_shards: int
    num_samples: int | None
    num_bytes: int
    smallest_bytes: int
    largest_bytes: int
    extensions: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found, by kind, what of it is no sample, and what is done; `progress` is None without an output."""

    shards: Sequence[Shard]
    kinds: Mapping[ShardKind, KindCounts]
    left_out: Mapping[LeftOut, int]
    progress: Progress | None

    def __repr__(self) -> str:
        samples = "samples unknown" if self.num_samples is None else count_text(self.num_samples, "sample")
        left_out = f"; left out: {sum(self.left_out.values()):,}" if self.left_out else ""
        done = "" if self.progress is None else f"; {count_text(len(self.progress.committed), 'shard')} done"
        kinds = ", ".join(self.kinds)
        return (
            f"Survey({count_text(self.num_shards, 'shard')} of {kinds}: {samples}, {self.num_bytes:,} "
            f"bytes{left_out}{done})"
        )

    @property
    def num_shards(self) -> int:
        """Of all kinds."""
        return len(self.shards)

    @property
    def num_samples(self) -> int | None:
        """Of all kinds; None where tars, which must be read for it, are among them."""
        counts = [kind.num_samples for kind in self.kinds.values()]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def num_bytes(self) -> int:
        """Of all kinds, where sizes are known."""
        return sum(kind.num_bytes for kind in self.kinds.values())

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that would be read: tars, tables, images and videos."""
        each = (
            (file.uri for file in unpack_group(shard)) if shard.kind == "files" else (shard.uri,)
            for shard in self.shards
        )
        return tuple(dict.fromkeys(uri for uris in each for uri in uris))


def survey_source(source: Sequence[str], *, image_field: str | None = None, output: str | None = None) -> Survey:
    """Plan a source as `run_job` would, and compare it with what `output` holds already; nothing is written.

    Names, sizes, Parquet footers and headers of large tars are read, no image is. Raises what `plan_shards` raises,
    and CommitError if the output holds something else than parts.
    """
    left_out = Counter[LeftOut]()
    shards = plan_shards(source, image_field=image_field, left_out=left_out)
    kinds: dict[ShardKind, list[Shard]] = {}
    for shard in shards:
        kinds.setdefault(shard.kind, []).append(shard)
    progress = None
    if output is not None:
        store = OutputStore.open(output)
        progress = compare_with_committed(shards, committed_shards(store), partial(shards_of_parts, store))
    counts = {kind: _counts(of_kind) for kind, of_kind in kinds.items()}
    return Survey(shards=shards, kinds=counts, left_out=left_out, progress=progress)


def _counts(shards: Sequence[Shard]) -> KindCounts:
    extensions = Counter[str]()
    for shard in shards:
        if shard.kind == "files":
            extensions.update(extension_of(file.uri) or "(none)" for file in unpack_group(shard))
    counts = [shard.num_samples for shard in shards]
    known = [count for count in counts if count is not None]
    sizes = [shard.num_bytes for shard in shards]
    return KindCounts(
        num_shards=len(shards),
        num_samples=sum(known) if len(known) == len(counts) else None,
        num_bytes=sum(sizes),
        smallest_bytes=min(sizes),
        largest_bytes=max(sizes),
        extensions=dict(extensions.most_common()),
    )
