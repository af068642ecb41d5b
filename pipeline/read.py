"""Shard -> samples: a WebDataset tar, streamed over fsspec, as raw bytes; damage and misfits become rejects.

Members are iterated with the standard library's tarfile, not with webdataset's: its iterator, like a bare
`for member in tar`, ends without a word at a truncated or corrupt header, and reads members of any size. Keys and
grouping are webdataset's own, so that a sample here is the sample that a WebDataset loader sees.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import fsspec
from PIL import Image
from webdataset.tariterators import base_plus_ext, group_by_keys

from pipeline.permanent import is_permanent
from schemas.errors import SourceError
from schemas.records import Reject, Sample, Shard

__all__ = ["ATTACHMENTS", "IMAGE_EXTENSIONS", "read_samples"]

ATTACHMENTS = ("txt", "cls", "json")
IMAGE_EXTENSIONS = frozenset(extension.removeprefix(".") for extension in Image.registered_extensions())

_MAX_ATTACHMENT_BYTES = 16 << 20
_MAX_HEADER_BYTES = 1 << 20  # of a long name or a pax record, which tarfile reads whole
_HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_BLOCK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class _Misfit:
    """Stands in a group for a member that could not be read."""

    reason: str
    detail: str
    ends_archive: bool = False


def read_samples(shard: Shard, *, max_sample_bytes: int, image_field: str | None = None) -> Iterator[Sample | Reject]:
    """Yield the samples of a shard in the archive's order; members of one sample stand next to each other.

    A key ends at the first dot of the base name (the folder is kept). A key that comes back later, or a member name
    that comes twice in a row, is a sample of its own, told apart by `index`. The payload is the member with the
    extension `image_field`, else the only image member. Members other than .txt, .cls, .json and images are not read.

    Rejects, all of stage "read": "no_image", "ambiguous_image" (several image members and no image_field),
    "too_large", "truncated_archive", "corrupt_archive", "empty_archive", "not_an_archive". A damaged archive
    yields every complete sample before the damage, then one reject for the rest: under the key of the sample that is
    cut, or under the archive's own name where the damage lies between samples.

    Raises SourceError where the store fails (missing file, lost connection, fewer bytes than planned): that is no
    fault of the data.
    """
    try:
        opened = fsspec.open(shard.uri, "rb").open()
    except Exception as error:  # every fsspec backend has exceptions of its own
        raise SourceError(
            f"cannot open {shard.uri}: {str(error) or type(error).__name__}", is_permanent=is_permanent(error)
        ) from error
    with opened as file:
        members = _Members(_Source(file, shard), max_sample_bytes=max_sample_bytes, image_field=image_field)
        index = -1
        for index, group in enumerate(group_by_keys(iter(members), keys=_split)):
            if index < shard.start:
                continue
            if shard.stop is not None and index >= shard.stop:
                return
            yield _to_sample(group, shard.uri, index, image_field)
        if members.damage is not None:
            # No sample can be named, so the archive itself is.
            yield _reject(shard.uri, index + 1, shard.uri.rpartition("/")[2], members.damage)


def _to_sample(group: dict[str, Any], uri: str, index: int, image_field: str | None) -> Sample | Reject:
    key: str = group["__key__"]
    members = {name.removeprefix("."): value for name, value in group.items() if name.startswith(".")}
    for value in members.values():
        if isinstance(value, _Misfit):
            return _reject(uri, index, key, value)
    names = [image_field] if image_field in members else [] if image_field else list(filter(_is_image, members))
    if len(names) != 1:
        found = ", ".join(f".{name}" if name else "a file without extension" for name in members)
        if names:
            misfit = _Misfit(reason="ambiguous_image", detail=f"several image members ({found}); set image_field")
        else:
            wanted = f".{image_field}" if image_field else "image"
            misfit = _Misfit(reason="no_image", detail=f"no {wanted} member among {found}")
        return _reject(uri, index, key, misfit)
    return Sample(
        key=key,
        uri=uri,
        index=index,
        media="image",
        extension=names[0],
        payload=members[names[0]],
        attachments={name: members[name] for name in ATTACHMENTS if name in members and name != names[0]},
    )


def _reject(uri: str, index: int, key: str, misfit: _Misfit) -> Reject:
    return Reject(key=key, uri=uri, index=index, stage="read", reason=misfit.reason, detail=misfit.detail)


def _split(name: str) -> tuple[str, str]:
    """Member name -> key and "." + lower-case extension.

    The leading dot keeps names such as `a.__key__` apart from webdataset's own entries in a group.
    """
    key, extension = base_plus_ext(name)
    return (name, ".") if key is None else (key, "." + extension.lower())


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


class _Members:
    """The members of one tar as webdataset's file samples; `damage` tells, afterwards, what ended it too early."""

    def __init__(self, source: _Source, *, max_sample_bytes: int, image_field: str | None) -> None:
        self.damage: _Misfit | None = None
        self._source = source
        self._max_sample_bytes = max_sample_bytes
        self._image_field = image_field

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            # Names that are not UTF-8 must still be text: Arrow refuses surrogates.
            tar: _StreamedTar = _StreamedTar.open(  # type: ignore[call-overload]  # stream mode calls `read` alone
                fileobj=self._source,
                mode="r|*",
                tarinfo=_CheckedTarInfo,
                bufsize=_BLOCK_BYTES,
                encoding="utf-8",
                errors="backslashreplace",
            )
        except (tarfile.TarError, EOFError) as error:
            if self._source.num_bytes == 0:
                self.damage = _Misfit(reason="empty_archive", detail="the file is empty")
            else:
                self.damage = _Misfit(reason="not_an_archive", detail=f"not a tar file: {error}")
            return
        with tar:
            yield from self._read(tar)

    def _read(self, tar: _StreamedTar) -> Iterator[dict[str, Any]]:
        key, extensions, group_bytes, last_name = None, set[str](), 0, ""
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, EOFError) as error:
                # Either a header is bad or the last member, which was skipped unread, is cut short.
                self.damage = _Misfit(reason=_damage_reason(error), detail=f"{error}, after the member {last_name!r}")
                return
            if member is None:
                if not isinstance(tar.header_error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                    self.damage = _Misfit(
                        reason=_damage_reason(tar.header_error),
                        detail=f"{tar.header_error} where a header should be, after the member {last_name!r}",
                    )
                return
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has seen
            last_name = member.name
            if not member.isreg():
                continue
            member_key, extension = _split(member.name)
            if member_key != key or extension in extensions:
                if member_key == key:
                    yield {}  # ends webdataset's group, which would refuse the second member of the same name
                key, extensions, group_bytes = member_key, set(), 0
            extensions.add(extension)
            value: bytes | _Misfit = b""
            wanted = extension.removeprefix(".")
            is_payload = wanted == self._image_field if self._image_field else _is_image(wanted)
            if is_payload or wanted in ATTACHMENTS:
                limit = self._max_sample_bytes if is_payload else min(_MAX_ATTACHMENT_BYTES, self._max_sample_bytes)
                group_bytes += member.size
                if member.size > limit or group_bytes > self._max_sample_bytes:
                    value = _Misfit(
                        reason="too_large",
                        detail=f"{member.name} has {member.size} bytes; at most {limit}, and "
                        f"{self._max_sample_bytes} for the whole sample, are read (limits.max_sample_bytes)",
                    )
                else:
                    value = self._content(tar, member)
            yield {"fname": member.name, "data": value, "__url__": ""}
            if isinstance(value, _Misfit) and value.ends_archive:
                return

    def _content(self, tar: _StreamedTar, member: tarfile.TarInfo) -> bytes | _Misfit:
        file = tar.extractfile(member)
        assert file is not None, "regular members have content"
        try:
            return file.read()
        except (tarfile.TarError, EOFError) as error:
            return _Misfit(reason=_damage_reason(error), detail=f"{error} in {member.name}", ends_archive=True)


def _damage_reason(error: BaseException | None) -> str:
    message = str(error)
    cut = "unexpected end" in message or "truncated" in message or "end of file" in message or "empty header" in message
    return "truncated_archive" if cut else "corrupt_archive"


class _StreamedTar(tarfile.TarFile):
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


class _Source:
    """The stored file as tarfile reads it: counts bytes, and tells the store's failures from the archive's.

    A file that ends before the size that it was planned with was cut by the store or on its way: the archive may be
    whole, so that is no damage of the data.
    """

    def __init__(self, file: IO[bytes], shard: Shard) -> None:
        self.num_bytes = 0
        self._file = file
        self._uri = shard.uri
        self._expected_bytes = shard.num_bytes

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise SourceError(
                f"cannot read {self._uri} at byte {self.num_bytes}: {error!r}", is_permanent=is_permanent(error)
            ) from error
        self.num_bytes += len(data)
        if not data and size and self.num_bytes < self._expected_bytes:
            raise SourceError(
                f"{self._uri} ended after {self.num_bytes} of {self._expected_bytes} bytes: the connection was cut, or "
                "the file was replaced after it was listed; run the job again"
            )
        return data

    def close(self) -> None:
        with suppress(Exception):  # nothing was written: a failing close loses nothing
            self._file.close()
