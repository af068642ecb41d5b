"""A large tar -> ranges of samples, by walking its headers; nothing but headers is read.

Measured (docs/results/scale.md): on a disk a header costs 20 microseconds. In a bucket it costs a request, so a tar
there is split only if its members are large; a tar of many small members is read faster from start to end by one worker
than its headers are. A compressed tar has no headers to walk.
"""

from __future__ import annotations

import tarfile
from typing import Any

from fsspec.spec import AbstractFileSystem

from tatok.pipeline.planning.shard_ids import stretch_shard
from tatok.pipeline.readers.tar_headers import SampleNames, is_data, is_hidden, open_tar
from tatok.pipeline.storage.listing import is_local
from tatok.pipeline.storage.source_file import source_error
from tatok.schemas.records import Shard

__all__ = ["may_be_split", "split_tar"]

_PROBED_MEMBERS = 32
_MIN_MEAN_BYTES = 1 << 20  # of a member, for a tar in a bucket to be split
_BLOCK_BYTES = 16 << 10


def may_be_split(path: str, file_bytes: int, range_bytes: int) -> bool:
    """Whether a tar is long enough, and can be entered in its middle: a compressed one cannot."""
    return file_bytes >= 2 * range_bytes and path.lower().endswith(".tar")


def split_tar(
    fs: AbstractFileSystem, path: str, uri: str, *, file_bytes: int, etag: str, range_bytes: int
) -> list[Shard]:
    """The shards of a plain tar: ranges of about `range_bytes`, cut between samples, or the whole file.

    Samples are those of `read_tar`. A tar whose headers cannot be walked to the end, or in which a block of zeros comes
    before it, is not split behind that place.

    Raises SourceError if the store fails.
    """
    whole = [stretch_shard(uri, "webdataset", num_bytes=file_bytes, file_bytes=file_bytes, etag=etag)]
    if not may_be_split(path, file_bytes, range_bytes):
        return whole
    try:
        with fs.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead") as file:
            min_mean_bytes = 0 if is_local(fs) else _MIN_MEAN_BYTES
            cuts = _cuts(file, range_bytes, min_mean_bytes)
    except Exception as error:  # every fsspec backend has exceptions of its own
        raise source_error(f"cannot read the headers of {uri}", error, uri) from error
    if cuts and file_bytes - cuts[-1][1] < range_bytes / 2:
        cuts.pop()
    starts = [(0, 0), *cuts]
    ends = [*cuts, (None, file_bytes)]
    if len(starts) == 1:
        return whole
    return [
        stretch_shard(
            uri,
            "webdataset",
            start=start,
            stop=stop,
            offset=offset,
            num_bytes=end - offset,
            file_bytes=file_bytes,
            etag=etag,
        )
        for (start, offset), (stop, end) in zip(starts, ends, strict=True)
    ]


def _cuts(file: Any, range_bytes: int, min_mean_bytes: int) -> list[tuple[int, int]]:
    """(sample, offset of its first header) wherever a range ends; none where the tar is not to be split."""
    cuts: list[tuple[int, int]] = []
    index, names = -1, SampleNames()
    last_cut = num_members = 0
    try:
        tar = open_tar(file, "r:")
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has seen
            num_members += 1
            if tar.pax_headers:
                return []  # they hold for the whole archive, and a range would not see them
            if num_members == _PROBED_MEMBERS and member.offset < _PROBED_MEMBERS * min_mean_bytes:
                return []
            if is_data(member) and not is_hidden(member.name) and names.begins(member.name):
                index += 1
                if index and member.offset - last_cut >= range_bytes:
                    last_cut = member.offset
                    cuts.append((index, last_cut))
    except (tarfile.TarError, EOFError):
        pass  # whoever reads the last range finds the damage, and reports it
    return cuts
