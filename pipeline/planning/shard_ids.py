"""Which stretch of which source a shard is -> its id, and the version of a file that was split."""

from __future__ import annotations

import hashlib

from tatok.schemas.records import Shard, ShardKind

__all__ = ["file_version", "stretch_shard", "whole_file_id"]


def stretch_shard(
    uri: str,
    kind: ShardKind,
    *,
    start: int = 0,
    stop: int | None = None,
    num_bytes: int,
    file_bytes: int,
    etag: str,
    offset: int = 0,
) -> Shard:
    """The samples [start, stop) of one file, `num_bytes` of its `file_bytes`; the whole file has no version."""
    is_whole = start == 0 and stop is None
    return Shard(
        uri=uri,
        kind=kind,
        start=start,
        stop=stop,
        num_bytes=num_bytes,
        shard_id=_stretch_id(uri, start, stop, file_bytes, etag),
        offset=offset,
        version="" if is_whole else file_version(file_bytes, etag),
    )


def file_version(file_bytes: int, etag: str) -> str:
    """What is equal as long as a file is the same, as far as the store says."""
    return f"{file_bytes}:{etag}"


def whole_file_id(shard: Shard) -> str:
    """The id that the file of a stretch would have as one shard."""
    file_bytes, _, etag = shard.version.partition(":")
    return _stretch_id(shard.uri, 0, None, int(file_bytes), etag)


def _stretch_id(uri: str, start: int, stop: int | None, file_bytes: int, etag: str) -> str:
    return hashlib.sha256(f"{uri}\0{start}\0{stop}\0{file_bytes}\0{etag}".encode()).hexdigest()[:20]
