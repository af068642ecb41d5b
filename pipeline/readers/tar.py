"""A WebDataset tar -> samples, streamed, plain or compressed; what is damaged or unreadable becomes a reject.

Members are iterated with the standard library's tarfile, not with webdataset's: its iterator, like a bare
`for member in tar`, ends without a word at a truncated or corrupt header, and reads members of any size. Keys and
grouping follow webdataset's rules, so that a sample here is the sample that a WebDataset loader sees; they are written
out because its package imports torch, for which decoders and driver would wait, and need its memory, to no end.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import pyarrow as pa

from tatok.pipeline.readers.formats import ATTACHMENTS, HEAD_BYTES, is_media, media_of
from tatok.pipeline.readers.unreadable import Unreadable, unreadable_reject
from tatok.pipeline.storage.source_file import SourceReader, open_forward
from tatok.schemas.records import Reject, Sample, Shard

__all__ = ["CheckedTar", "open_tar", "read_tar", "split_member_name"]

_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's
_MAX_ATTACHMENT_BYTES = 16 << 20
_MAX_HEADER_BYTES = 1 << 20  # of a long name or a pax record, which tarfile reads whole
_HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_BLOCK_BYTES = 1 << 16  # tarfile copies what is left of a block at every read of it


class _Bytes(Protocol):
    def read(self, size: int = -1) -> bytes:
        """What tarfile's stream mode calls."""


def read_tar(shard: Shard, *, max_sample_bytes: int, image_field: str | None = None) -> Iterator[Sample | Reject]:
    """Yield the samples of a shard in the archive's order; members of one sample are next to each other.

    A key ends at the first dot of the base name (the folder is kept). A key that comes back later, or a member name
    that comes twice in a row, is a sample of its own, told apart by `index`. The payload is the member with the
    extension `image_field`, else the only image or video. Members other than .txt, .cls, .json and these are not read.

    Rejects, all of stage "read": "no_image", "ambiguous_image" (several images or videos and no image_field),
    "too_large", "truncated_archive", "corrupt_archive", "empty_archive", "not_an_archive". A damaged archive
    yields every complete sample before the damage, then one reject for the rest: under the key of the sample that is
    cut, or under the archive's own name where the damage lies between samples.

    Raises SourceError if the store fails (missing file, lost connection, fewer bytes than planned): that is no
    fault of the data.
    """
    with open_forward(shard.uri) as file:
        if shard.offset:
            file.seek(shard.offset)
        source = SourceReader(file, shard.uri, num_bytes=shard.num_bytes)
        members = _Members(source, max_sample_bytes=max_sample_bytes, image_field=image_field)
        first = shard.start if shard.offset else 0
        index = first - 1
        for index, (key, group) in enumerate(members, first):
            if index < shard.start:
                continue
            if shard.stop is not None and index >= shard.stop:
                return
            yield _to_sample(key, group, shard.uri, index, image_field)
        if members.damage is not None:
            # No sample can be named, so the archive itself is.
            yield unreadable_reject(shard.uri, index + 1, shard.uri.rpartition("/")[2], members.damage)


def open_tar(source: Any, mode: str) -> CheckedTar:
    """A tarfile that refuses absurd headers and gives names as text that Arrow takes.

    Raises tarfile.TarError or EOFError if there is no tar.
    """
    return CheckedTar.open(  # type: ignore[call-overload]  # stream mode calls `read` alone
        fileobj=source,
        mode=mode,
        tarinfo=_CheckedTarInfo,
        bufsize=_BLOCK_BYTES,
        encoding="utf-8",
        errors="backslashreplace",
    )


def _to_sample(
    key: str, group: Mapping[str, bytes | Unreadable], uri: str, index: int, image_field: str | None
) -> Sample | Reject:
    members = dict[str, bytes]()
    for extension, value in group.items():
        if isinstance(value, Unreadable):
            return unreadable_reject(uri, index, key, value)
        members[extension.removeprefix(".")] = value
    names = (
        [image_field]
        if image_field in members
        else []
        if image_field
        else [name for name in members if is_media("." + name)]
    )
    if len(names) != 1:
        found = ", ".join(f".{name}" if name else "a file without extension" for name in members)
        if names:
            unreadable = Unreadable(
                reason="ambiguous_image", detail=f"several images or videos ({found}); set image_field"
            )
        else:
            wanted = f".{image_field}" if image_field else "image or video"
            unreadable = Unreadable(reason="no_image", detail=f"no {wanted} member among {found}")
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


def split_member_name(name: str) -> tuple[str, str]:
    """Member name -> key and "." + lower-case extension; the whole name is the key where there is none."""
    match = _KEY_AND_EXTENSION.match(name)
    return (name, ".") if match is None else (match[1], "." + match[2].lower())


class _Members:
    """The members of one tar, grouped: each sample's key, and extension -> content.

    `damage` says, afterwards, what ended it too early.
    """

    def __init__(self, source: SourceReader, *, max_sample_bytes: int, image_field: str | None) -> None:
        self.damage: Unreadable | None = None
        self._source = source
        self._max_sample_bytes = max_sample_bytes
        self._image_field = image_field

    def __iter__(self) -> Iterator[tuple[str, dict[str, bytes | Unreadable]]]:
        try:
            # Names that are not UTF-8 must still be text: Arrow refuses surrogates.
            tar = open_tar(_decompressed(self._source), "r|*")
        except (tarfile.TarError, EOFError) as error:
            if self._source.num_bytes == 0:
                self.damage = Unreadable(reason="empty_archive", detail="the file is empty")
            else:
                self.damage = Unreadable(reason="not_an_archive", detail=f"not a tar file: {error}")
            return
        with tar:
            yield from self._groups(tar)

    def _groups(self, tar: CheckedTar) -> Iterator[tuple[str, dict[str, bytes | Unreadable]]]:
        key, group, group_bytes = "", dict[str, bytes | Unreadable](), 0
        for member in self._regular(tar):
            member_key, extension = split_member_name(member.name)
            if group and (member_key != key or extension in group):
                yield key, group
                group, group_bytes = {}, 0
            key = member_key
            value: bytes | Unreadable = b""
            wanted = extension.removeprefix(".")
            is_payload = wanted == self._image_field if self._image_field else is_media(extension)
            if is_payload or wanted in ATTACHMENTS:
                limit = self._max_sample_bytes if is_payload else min(_MAX_ATTACHMENT_BYTES, self._max_sample_bytes)
                group_bytes += member.size
                if member.size > limit or group_bytes > self._max_sample_bytes:
                    value = Unreadable(
                        reason="too_large",
                        detail=f"{member.name} has {member.size} bytes; at most {limit}, and "
                        f"{self._max_sample_bytes} for the whole sample, are read (limits.max_sample_bytes)",
                    )
                else:
                    value = self._content(tar, member)
            group[extension] = value
            if isinstance(value, Unreadable) and value.ends_archive:
                break
        if group:
            yield key, group

    def _regular(self, tar: CheckedTar) -> Iterator[tarfile.TarInfo]:
        last_name = ""
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, EOFError) as error:
                # Either a header is bad or the last member, which was skipped unread, is cut short.
                self.damage = Unreadable(
                    reason=_damage_reason(error), detail=f"{error}, after the member {last_name!r}"
                )
                return
            if member is None:
                if not isinstance(tar.header_error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                    self.damage = Unreadable(
                        reason=_damage_reason(tar.header_error),
                        detail=f"{tar.header_error} where a header should be, after the member {last_name!r}",
                    )
                return
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has seen
            last_name = member.name
            if member.isreg():
                yield member

    def _content(self, tar: CheckedTar, member: tarfile.TarInfo) -> bytes | Unreadable:
        file = tar.extractfile(member)
        assert file is not None, "regular members have content"
        try:
            return file.read()
        except (tarfile.TarError, EOFError) as error:
            return Unreadable(reason=_damage_reason(error), detail=f"{error} in {member.name}", ends_archive=True)


def _damage_reason(error: BaseException | None) -> str:
    message = str(error)
    cut = "unexpected end" in message or "truncated" in message or "end of file" in message or "empty header" in message
    return "truncated_archive" if cut else "corrupt_archive"


class CheckedTar(tarfile.TarFile):
    """A TarFile that remembers why its last header was none: `next` returns None for a good end and a bad one."""

    header_error: tarfile.HeaderError | None = None


class _CheckedTarInfo(tarfile.TarInfo):
    """Refuses headers that would make tarfile read gigabytes or run backwards."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.header_error = error  # type: ignore[attr-defined]
            raise

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        # tarfile names this method as the entry point for subclasses.
        if self.size < 0:
            raise tarfile.HeaderError(f"negative size of the member {self.name!r}")
        if self.type in _HEADER_TYPES and self.size > _MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f"header record of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def _decompressed(source: SourceReader) -> _Bytes:
    """The tar in a .zst; what is not one is left to tarfile, which knows gzip, bzip2 and xz by their first bytes."""
    return _Unzstd(source) if source.peek(len(_ZSTD_MAGIC)) == _ZSTD_MAGIC else source


class _Unzstd:
    """Decompresses Zstandard frames as they come; damage is tarfile's kind of error."""

    def __init__(self, source: SourceReader) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd")

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except OSError as error:  # Arrow's own; a SourceError passes through it as it is
            cut = "runcated" in str(error)
            raise tarfile.ReadError("unexpected end of data" if cut else f"corrupt Zstandard data ({error})") from error
