"""A WebDataset tar -> samples, streamed, plain or compressed; what is damaged or unreadable becomes a reject.

Members are iterated with the standard library's tarfile, not with webdataset's: its iterator, like a bare
`for member in tar`, ends without a word at a truncated or corrupt header, and reads members of any size. Keys and
grouping follow webdataset's rules, so that a sample here is the sample that a WebDataset loader sees; they are written
out because its package imports torch, for which decoders and driver would wait, and need its memory, to no end.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from functools import lru_cache

from tatok.pipeline.readers.formats import ATTACHMENTS, HEAD_BYTES, is_media, media_of
from tatok.pipeline.readers.tar_headers import (
    CheckedTar,
    Readable,
    SampleNames,
    damage_reason,
    decompressed,
    end_damage,
    is_data,
    is_hidden,
    open_tar,
)
from tatok.pipeline.readers.tar_links import LinkTargets
from tatok.pipeline.readers.unreadable import Unreadable, unreadable_reject
from tatok.pipeline.storage.source_file import SourceReader, open_forward
from tatok.schemas.records import LeftOut, LeftOutMembers, Reject, Sample, Shard

__all__ = ["read_tar"]

_MAX_ATTACHMENT_BYTES = 16 << 20

_Group = dict[str, "bytes | Unreadable"]
"""A sample's members: extension -> content, b"" where nobody wants it."""


def read_tar(
    shard: Shard, *, max_sample_bytes: int, image_field: str | None = None
) -> Iterator[Sample | Reject | LeftOutMembers]:
    """Yield the samples of a shard in the archive's order; members of one sample are next to each other.

    A key ends at the first dot of the base name (the folder is kept). A key that comes back later, or a member name
    that comes twice in a row, is a sample of its own, told apart by `index`. The payload is the member with the
    extension `image_field`, else the only image or video. Members other than .txt, .cls, .json and these are not read.
    A link to a file of the same archive is a member with its content.

    Members with a hidden name are no part of any sample; if there are any, their number comes last. Folders are
    nothing.

    Rejects, all of stage "read": "no_image", "ambiguous_image" (several images or videos and no image_field),
    "too_large", "dangling_link", "unsupported_member" (with holes, a device), "truncated_archive", "corrupt_archive",
    "data_after_end", "empty_archive", "not_an_archive". A damaged archive yields every complete sample before the
    damage, then one reject for the rest: under the key of the sample that is cut, or under the archive's own name where
    the damage lies between samples.

    Raises SourceError if the store fails (missing file, lost connection, fewer bytes than planned): that is no
    fault of the data.
    """
    with open_forward(shard.uri) as file:
        if shard.offset:
            file.seek(shard.offset)
        source = SourceReader(file, shard.uri, num_bytes=shard.num_bytes)
        stream = decompressed(source)
        with LinkTargets(shard.uri, is_compressed=stream is not source, num_bytes=shard.num_bytes) as links:
            members = _Members(shard, stream, links, max_sample_bytes=max_sample_bytes, image_field=image_field)
            index = members.first - 1
            for index, (key, group) in enumerate(members, members.first):
                if index >= shard.start:
                    yield _to_sample(key, group, shard.uri, index, image_field)
            if members.damage is not None:
                # No sample can be named, so the archive itself is.
                yield unreadable_reject(shard.uri, index + 1, shard.uri.rpartition("/")[2], members.damage)
            if members.num_hidden:
                yield LeftOutMembers(counts={LeftOut("hidden"): members.num_hidden})


def _to_sample(
    key: str, group: Mapping[str, bytes | Unreadable], uri: str, index: int, image_field: str | None
) -> Sample | Reject:
    members = dict[str, bytes]()
    for extension, value in group.items():
        if isinstance(value, Unreadable) and (value.ends_archive or _is_wanted(extension, image_field)):
            return unreadable_reject(uri, index, key, value)
        members[extension.removeprefix(".")] = b"" if isinstance(value, Unreadable) else value
    names = (
        [image_field]
        if image_field in members
        else []
        if image_field
        else [name for name in members if _is_payload("." + name, None)]
    )
    if len(names) != 1:
        found = ", ".join(f".{name}" if name else "a file without extension" for name in members)
        if names:
            unreadable = Unreadable(
                reason="ambiguous_image", detail=f"several images or videos ({found}); set image_field"
            )
        else:
            wanted = f".{image_field}" if image_field else "image or video"
            unreadable = next(
                (value for value in group.values() if isinstance(value, Unreadable)),
                Unreadable(reason="no_image", detail=f"no {wanted} member among {found}"),
            )
        return unreadable_reject(uri, index, key, unreadable)
    return Sample(
        key=key,
        uri=uri,
        index=index,
        media=media_of("." + names[0], members[names[0]][:HEAD_BYTES]),
        extension=names[0],
        payload=members[names[0]],
        attachments={name: members[name] for name in ATTACHMENTS if name in members and name != names[0]},
    )


@lru_cache(maxsize=256)  # asked of every member, and there are few extensions
def _is_payload(extension: str, image_field: str | None) -> bool:
    return extension.removeprefix(".") == image_field if image_field else is_media(extension)


def _is_wanted(extension: str, image_field: str | None) -> bool:
    return _is_payload(extension, image_field) or extension.removeprefix(".") in ATTACHMENTS


class _Members:
    """The members of a shard, grouped: each sample's key, and extension -> content; `first` is the first one's index.

    They end where the shard does. `damage` says, afterwards, what ended them too early, `num_hidden` how many hidden
    members follow the samples [start, stop), or come before the first of the archive.
    """

    def __init__(
        self, shard: Shard, stream: Readable, links: LinkTargets, *, max_sample_bytes: int, image_field: str | None
    ) -> None:
        self.first = shard.start if shard.offset else 0
        self.damage: Unreadable | None = None
        self.num_hidden = 0
        self._shard = shard
        self._stream = stream
        self._links = links
        self._max_sample_bytes = max_sample_bytes
        self._image_field = image_field

    def __iter__(self) -> Iterator[tuple[str, _Group]]:
        try:
            tar = open_tar(self._stream, "r|")
        except (tarfile.TarError, EOFError) as error:
            if str(error) == "empty file":
                self.damage = Unreadable(reason="empty_archive", detail="the file is empty")
            else:
                self.damage = Unreadable(reason="not_an_archive", detail=f"not a tar file: {error}")
            return
        with tar:
            yield from self._groups(tar)

    def _groups(self, tar: CheckedTar) -> Iterator[tuple[str, _Group]]:
        key, group, group_bytes = "", _Group(), 0
        names, index = SampleNames(), self.first - 1
        for member in self._data(tar):
            if is_hidden(member.name):
                self.num_hidden += self._is_in_shard(max(index, self.first))
                continue
            if names.begins(member.name):
                if group:
                    yield key, group
                index, group, group_bytes = index + 1, {}, 0
                if self._shard.stop is not None and index >= self._shard.stop:
                    return
            key, extension = names.last
            value: bytes | Unreadable = b""
            is_unsupported = member.issparse() or not (member.isreg() or member.issym() or member.islnk())
            if is_unsupported:
                value = _unsupported(member)
            elif _is_wanted(extension, self._image_field):
                value, num_bytes = self._content(tar, member, extension, group_bytes)
                group_bytes += num_bytes
            group[extension] = value
            if isinstance(value, Unreadable) and value.ends_archive:
                break
        if group:
            yield key, group

    def _is_in_shard(self, index: int) -> bool:
        return index >= self._shard.start and (self._shard.stop is None or index < self._shard.stop)

    def _data(self, tar: CheckedTar) -> Iterator[tarfile.TarInfo]:
        last_name = ""
        while True:
            try:
                member = tar.next()
                if member is None:
                    self.damage = end_damage(tar, last_name)
                    return
            except (tarfile.TarError, EOFError) as error:
                # Either a header is bad, or the last member, which was skipped unread, is cut short.
                self.damage = Unreadable(reason=damage_reason(error), detail=f"{error}, after the member {last_name!r}")
                return
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has seen
            last_name = member.name
            if is_data(member):
                yield member

    def _content(
        self, tar: CheckedTar, member: tarfile.TarInfo, extension: str, group_bytes: int
    ) -> tuple[bytes | Unreadable, int]:
        """What a member holds, and how much that is, beside the `group_bytes` that its sample has already."""
        target = None if member.isreg() else self._links.find(member, self._shard.offset + member.offset)
        if isinstance(target, Unreadable):
            return target, 0
        size = member.size if target is None else target.member.size
        is_payload = _is_payload(extension, self._image_field)
        limit = self._max_sample_bytes if is_payload else min(_MAX_ATTACHMENT_BYTES, self._max_sample_bytes)
        if size > limit or group_bytes + size > self._max_sample_bytes:
            return Unreadable(
                reason="too_large",
                detail=f"{member.name} has {size} bytes; at most {limit}, and "
                f"{self._max_sample_bytes} for the whole sample, are read (limits.max_sample_bytes)",
            ), size
        return (_read(tar, member) if target is None else target.read()), size


def _read(tar: CheckedTar, member: tarfile.TarInfo) -> bytes | Unreadable:
    stream = tar.fileobj  # whose `extractfile` would put two objects between, for every member
    try:
        stream.seek(member.offset_data)
        content: bytes = stream.read(member.size)
        if len(content) < member.size:
            raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, EOFError) as error:
        return Unreadable(reason=damage_reason(error), detail=f"{error} in {member.name}", ends_archive=True)
    return content


def _unsupported(member: tarfile.TarInfo) -> Unreadable:
    if member.issparse():
        what = "is stored with holes (sparse); pack it without --sparse"
    elif member.isdev():
        what = "is a device or a pipe"
    else:
        what = f"is of the type {member.type!r}, which is none of a file"
    return Unreadable(reason="unsupported_member", detail=f"{member.name} {what}")
