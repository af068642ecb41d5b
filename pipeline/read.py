"""Shard -> samples as raw bytes, whatever its layout; damage and misfits become rejects."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pipeline.file_groups import pack_group, unpack_group
from pipeline.formats import format_of
from pipeline.read_files import read_files
from pipeline.read_parquet import read_parquet, read_parquet_keys
from pipeline.read_tar import read_tar
from pipeline.source_file import open_source
from schemas.records import Reject, Sample, Shard, SourceFile

__all__ = ["Place", "read_places", "read_samples", "shards_at"]


_TAR_HEAD = 512
_COMPRESSED = (b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x08")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Which sample it is: its source file, its place there, its key."""

    uri: str
    index: int
    key: str


def read_samples(
    shard: Shard, *, max_sample_bytes: int, image_field: str | None = None, label_from_folder: bool = False
) -> Iterator[Sample | Reject]:
    """Yield the samples of a shard in its order; those that cannot be read are rejects of stage "read".

    `image_field` is the member of a tar's samples, or the column of a Parquet file; `label_from_folder` is for groups
    of files. Raises SourceError where the store fails: that is no fault of the data.
    """
    match shard.kind:
        case "webdataset":
            yield from read_tar(shard, max_sample_bytes=max_sample_bytes, image_field=image_field)
        case "parquet":
            yield from read_parquet(shard, max_sample_bytes=max_sample_bytes, image_field=image_field)
        case "files":
            yield from read_files(shard, max_sample_bytes=max_sample_bytes, label_from_folder=label_from_folder)


def read_places(shard: Shard, *, max_sample_bytes: int, image_field: str | None = None) -> Iterator[Place]:
    """Yield the place of every sample of a shard, also of those that are rejects; files and URIs are not opened for it.

    Raises SourceError where the store fails.
    """
    match shard.kind:
        case "webdataset":
            for sample in read_tar(shard, max_sample_bytes=max_sample_bytes, image_field=image_field):
                yield Place(sample.uri, sample.index, sample.key)
        case "parquet":
            for index, key in read_parquet_keys(shard, image_field=image_field):
                yield Place(shard.uri, index, key)
        case "files":
            for file in unpack_group(shard):
                yield Place(file.uri, file.index, file.key)


def shards_at(uri: str, indices: Collection[int]) -> Iterator[Shard]:
    """Shards that hold these samples of a source file, for reading again what a row names; they have no id.

    Raises SourceError where the store fails.
    """
    kind = format_of(uri)
    if kind == "unknown":
        # A name tells nothing: an address on the web, out of a list, or an archive.
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
