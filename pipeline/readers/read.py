"""Shard -> samples as raw bytes, whatever its layout; what is damaged or unreadable becomes a reject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tatok.pipeline.readers.file_groups import pack_group, unpack_group
from tatok.pipeline.readers.files import read_files
from tatok.pipeline.readers.formats import format_of
from tatok.pipeline.readers.parquet import read_parquet, read_parquet_keys
from tatok.pipeline.readers.tar import read_tar
from tatok.pipeline.storage.source_file import open_source
from tatok.schemas.job import JobConfig
from tatok.schemas.records import LeftOut, LeftOutMembers, Reject, Sample, Shard, SourceFile

__all__ = ["Place", "ReadOptions", "read_places", "read_samples", "shards_at"]


_TAR_HEAD = 512
_COMPRESSED = (b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x08")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a job reads its source.

    `image_field` is the member of a tar's samples, or the column of a Parquet file; `label_from_folder` is for groups
    of files.
    """

    max_sample_bytes: int
    image_field: str | None = None
    label_from_folder: bool = False

    @staticmethod
    def of(config: JobConfig) -> ReadOptions:
        """Those of a job."""
        return ReadOptions(
            max_sample_bytes=config.limits.max_sample_bytes,
            image_field=config.image_field,
            label_from_folder=config.label_from_folder,
        )


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Which sample it is: its source file, its place there, its key."""

    uri: str
    index: int
    key: str


def read_samples(
    shard: Shard, options: ReadOptions, left_out: Counter[LeftOut] | None = None
) -> Iterator[Sample | Reject]:
    """Yield the samples of a shard in its order; those that cannot be read are rejects of stage "read".

    What belongs to no sample is counted in `left_out`, by the time of the end. Raises SourceError if the store fails:
    that is no fault of the data.
    """
    max_sample_bytes, image_field = options.max_sample_bytes, options.image_field
    match shard.kind:
        case "webdataset":
            for item in read_tar(shard, max_sample_bytes=max_sample_bytes, image_field=image_field):
                if not isinstance(item, LeftOutMembers):
                    yield item
                elif left_out is not None:
                    left_out.update(item.counts)
        case "parquet":
            yield from read_parquet(shard, max_sample_bytes=max_sample_bytes, image_field=image_field)
        case "files":
            yield from read_files(shard, max_sample_bytes=max_sample_bytes, label_from_folder=options.label_from_folder)


def read_places(shard: Shard, options: ReadOptions) -> Iterator[Place]:
    """Yield the place of every sample of a shard, also of those that are rejects; files and URIs are not opened for it.

    Raises SourceError if the store fails.
    """
    match shard.kind:
        case "webdataset":
            for sample in read_samples(shard, options):
                yield Place(sample.uri, sample.index, sample.key)
        case "parquet":
            for index, key in read_parquet_keys(shard, image_field=options.image_field):
                yield Place(shard.uri, index, key)
        case "files":
            for file in unpack_group(shard):
                yield Place(file.uri, file.index, file.key)


def shards_at(uri: str, indices: Collection[int]) -> Iterator[Shard]:
    """Shards that hold these samples of a source file, for reading again what a row names; they have no id.

    Raises SourceError if the store fails.
    """
    kind = format_of(uri)
    if kind == "unknown":
        # A name says nothing: an address on the web, out of a list, or an archive.
        with open_source(uri) as file:
            head = file.read(_TAR_HEAD)
        kind = "webdataset" if head[:4] in _COMPRESSED or head[257:262] == b"ustar" else "media"
    match kind:
        case "parquet":
            for index in sorted(indices):
                yield Shard(uri=uri, kind="parquet", start=index, stop=index + 1, num_bytes=0, shard_id="")
        case "webdataset":
            yield Shard(uri=uri, kind="webdataset", start=0, stop=max(indices) + 1, num_bytes=0, shard_id="")
        case _:
            yield pack_group([SourceFile(uri=uri, key=uri, index=index) for index in sorted(indices)], "")
