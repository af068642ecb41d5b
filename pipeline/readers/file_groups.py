"""Files, in order -> groups of about equal work, cut where the files themselves say, and packed into shards.

Where a group ends depends on the names and sizes of the files in it alone. So files that are added or removed change
the group that they fall into and a few after it; all others keep their ids, and a next run finds them committed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence

from tatok.schemas.records import Shard, SourceFile

__all__ = ["file_identity", "group_files", "pack_group", "unpack_group"]

_ASSUMED_BYTES = 256 << 10  # of a file whose size nobody gave
_FIRST_CUT = 0.5  # of a full group: from here on a name may end it


def group_files(files: Iterable[SourceFile], uri: str, *, group_bytes: int, most_files: int) -> Iterator[Shard]:
    """Consecutive files in groups of at most `group_bytes` and `most_files`, half as much at least.

    Larger is only a file that is larger alone; smaller only what precedes one, and the last group. One group at a time
    is in memory. `uri` names the folder, pattern or list that the files come from.
    """
    group: list[SourceFile] = []
    filled = 0.0
    for file in files:
        size = _ASSUMED_BYTES if file.num_bytes is None else file.num_bytes
        share = max(size / group_bytes, 1 / most_files)
        if group and filled + share > 1 + 1e-9:
            yield pack_group(group, uri)
            group, filled = [], 0.0
        group.append(file)
        filled += share
        # In its second half a group is cut where a name says so, after an eighth of it on average: groups that begin at
        # different files soon end at the same one.
        if filled >= _FIRST_CUT and _unit_hash(file) < min(8 * share, 0.5):
            yield pack_group(group, uri)
            group, filled = [], 0.0
    if group:
        yield pack_group(group, uri)


def pack_group(files: Sequence[SourceFile], uri: str) -> Shard:
    """One shard of these files; its id hashes the identity of each."""
    rows = [
        [
            file.key,
            None if file.uri == _below(uri, file.key) else file.uri,
            file.index,
            file.num_bytes,
            file.version,
            list(file.sidecars),
            list(map(list, file.attachments)),
        ]
        for file in files
    ]
    columns = list(zip(*rows, strict=True))
    packed = zlib.compress(json.dumps(columns, ensure_ascii=False, separators=(",", ":")).encode(), 6)
    identity = hashlib.sha256(uri.encode())
    for file in files:
        identity.update(b"\0" + file_identity(file))
    return Shard(
        uri=uri,
        kind="files",
        start=0,
        stop=len(files),
        num_bytes=sum(file.num_bytes or 0 for file in files),
        shard_id=identity.hexdigest()[:20],
        listing=base64.b64encode(packed).decode("ascii"),
    )


def unpack_group(shard: Shard) -> list[SourceFile]:
    """The files of a shard of the kind "files", in order."""
    columns = json.loads(zlib.decompress(base64.b64decode(shard.listing)))
    return [
        SourceFile(
            key=key,
            uri=_below(shard.uri, key) if uri is None else uri,
            index=index,
            num_bytes=num_bytes,
            version=version,
            sidecars=tuple(sidecars),
            attachments=tuple((extension, text) for extension, text in attachments),
        )
        for key, uri, index, num_bytes, version, sidecars, attachments in zip(*columns, strict=True)
    ]


def file_identity(file: SourceFile) -> bytes:
    """16 bytes, equal as long as a file and what belongs to it are the same; a list's row number is left out."""
    parts = (file.uri, file.key, file.num_bytes, file.version, file.sidecars, file.attachments)
    return hashlib.sha256(repr(parts).encode()).digest()[:16]


def _unit_hash(file: SourceFile) -> float:
    return int.from_bytes(hashlib.blake2b(file.uri.encode(), digest_size=6).digest(), "big") / (1 << 48)


def _below(uri: str, key: str) -> str:
    return f"{uri.rstrip('/')}/{key}"
