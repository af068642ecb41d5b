"""Tars, opened: decompressed, their headers checked, their end looked at, their members told apart.

tarfile takes the first block of zeros for the end, whatever follows, and compressed data to end with its first stream;
both would lose what comes after without a word.
"""

from __future__ import annotations

import bz2
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa

from tatok.pipeline.readers.unreadable import Unreadable
from tatok.pipeline.storage.listing import hidden_part
from tatok.pipeline.storage.source_file import SourceReader

__all__ = [
    "CheckedTar",
    "SampleNames",
    "damage_reason",
    "decompressed",
    "end_damage",
    "is_data",
    "is_hidden",
    "open_tar",
    "split_member_name",
]

_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's
_MAX_HEADER_BYTES = 1 << 20  # of a long name or a pax record, which tarfile reads whole
_HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_NO_DATA_TYPES = (tarfile.DIRTYPE, b"D", b"V")  # folders, GNU's folders of incremental backups, GNU's volume labels
_BLOCK_BYTES = 1 << 16  # tarfile copies what is left of a block at every read of it
_ZEROS = bytes(_BLOCK_BYTES)


# typeshed does not know these names.
_NOTHING: type[tarfile.HeaderError] = tarfile.EmptyHeaderError  # type: ignore[attr-defined]
_BLOCK_OF_ZEROS: type[tarfile.HeaderError] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_NOT_UNDERSTOOD: type[tarfile.HeaderError] = tarfile.InvalidHeaderError  # type: ignore[attr-defined]


class Readable(Protocol):
    """What tarfile's stream mode calls."""

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, b"" at the end."""


class CheckedTar(tarfile.TarFile):
    """A TarFile that remembers why its last header was none: `next` returns None for a good end and a bad one."""

    header_error: tarfile.HeaderError | None = None

    @property
    def is_at_an_end(self) -> bool:
        """Whether there was nothing, or a block of zeros, where the next header would have been."""
        return isinstance(self.header_error, (_NOTHING, _BLOCK_OF_ZEROS))


class _CheckedTarInfo(tarfile.TarInfo):
    """Refuses headers that would make tarfile read gigabytes or run backwards."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.header_error = error  # type: ignore[attr-defined]
            raise
        except (ArithmeticError, LookupError, ValueError) as error:  # of numbers and maps that are none
            failure = _NOT_UNDERSTOOD(f"a header that cannot be understood ({error})")
            tar.header_error = failure  # type: ignore[attr-defined]
            raise failure from error

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        # tarfile names this method as the entry point for subclasses.
        if self.type in _HEADER_TYPES and self.size > _MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f"header record of {self.size} bytes")
        # A pax record may say another size than the header that follows it.
        member: tarfile.TarInfo = self if self.size < 0 else super()._proc_member(tar)  # type: ignore[misc]
        if member.size < 0:
            raise tarfile.HeaderError(f"negative size of the member {member.name!r}")
        return member


def open_tar(source: Any, mode: str) -> CheckedTar:
    """A tarfile that refuses absurd headers and gives names as text that Arrow takes.

    Raises tarfile.TarError or EOFError if there is no tar.
    """
    return CheckedTar.open(  # type: ignore[call-overload]  # stream mode calls `read` alone
        fileobj=source,
        mode=mode,
        tarinfo=_CheckedTarInfo,
        bufsize=_BLOCK_BYTES,
        # Names that are not UTF-8 must still be text: Arrow refuses surrogates.
        encoding="utf-8",
        errors="backslashreplace",
    )


def end_damage(tar: CheckedTar, last_name: str) -> Unreadable | None:
    """What is wrong with the place where `tar`, a stream, has no further member; None where it is a good end.

    A good end is one block of zeros or several, and then the end of the file, which is read for it. A file that ends
    behind a member without any was cut there, as far as anybody can tell.
    """
    if isinstance(tar.header_error, _NOTHING):
        return Unreadable(
            reason="truncated_archive",
            detail=f"the file ends after the member {last_name!r}, without the zeros that end a tar",
        )
    if not tar.is_at_an_end:
        return Unreadable(
            reason=damage_reason(tar.header_error),
            detail=f"{tar.header_error} where a header should be, after the member {last_name!r}",
        )
    read = tar.fileobj.read
    second = read(tarfile.BLOCKSIZE)
    if second != _ZEROS[: len(second)]:
        return Unreadable(
            reason="corrupt_archive",
            detail=f"a single block of zeros and further data behind it, after the member {last_name!r}",
        )
    while block := read(_BLOCK_BYTES):
        if block != _ZEROS[: len(block)]:
            return Unreadable(
                reason="data_after_end",
                detail=f"the archive ends after the member {last_name!r}, and the file goes on: tars one behind the "
                "other are not read as one; store them as files of their own",
            )
    return None


def damage_reason(error: BaseException | None) -> str:
    """The reason of the reject for what tarfile says of an archive."""
    message = str(error)
    cut = "unexpected end" in message or "truncated" in message or "end of file" in message or "empty header" in message
    return "truncated_archive" if cut else "corrupt_archive"


def is_data(member: tarfile.TarInfo) -> bool:
    """Whether a member is one of a sample: all are, but folders and the labels of volumes."""
    return member.type not in _NO_DATA_TYPES


def is_hidden(name: str) -> bool:
    """Whether any part of a member's name begins with a dot."""
    return hidden_part(name) is not None


def split_member_name(name: str) -> tuple[str, str]:
    """Member name -> key and "." + lower-case extension; the whole name is the key where there is none."""
    match = _KEY_AND_EXTENSION.match(name)
    return (name, ".") if match is None else (match[1], "." + match[2].lower())


class SampleNames:
    """Members one after the other -> which of them begin a sample; `last` is the last one's name, split."""

    def __init__(self) -> None:
        self.last = "", ""
        self._key: str | None = None
        self._extensions = set[str]()

    def begins(self, name: str) -> bool:
        """Whether this member, the next one, has another key than the one before it, or a name that its sample has.

        So do those without an extension, and what follows them.
        """
        self.last = key, extension = split_member_name(name)
        has_extension = "." in name.rpartition("/")[2]
        begins = not has_extension or key != self._key or extension in self._extensions
        if begins:
            self._extensions = set()
        self._key = key if has_extension else None
        self._extensions.add(extension)
        return begins


def decompressed(source: SourceReader) -> Readable:
    """The tar in a .zst, .gz, .bz2 or .xz, known by its first bytes; what is none of them is a tar as it is.

    Damage of the compression is tarfile's kind of error.
    """
    head = source.peek(_HEAD_BYTES)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _Unzstd(source)
    if head.startswith(b"\x1f\x8b\x08"):
        return _Decompressed(source, _Gunzip)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return _Decompressed(source, bz2.BZ2Decompressor)
    if head.startswith((b"\x5d\x00\x00\x80", b"\xfd7zXZ")):
        return _Decompressed(source, lzma.LZMADecompressor)
    return source


_HEAD_BYTES = 10
_COMPRESSED_BYTES = 16 << 10  # of which gzip makes 17 MB at the most


class _Unzstd:
    """Decompresses Zstandard frames as they come."""

    def __init__(self, source: SourceReader) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd")

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except (OSError, pa.ArrowException) as error:  # Arrow's own; a SourceError passes through it as it is
            cut = "runcated" in str(error)
            raise tarfile.ReadError("unexpected end of data" if cut else f"corrupt Zstandard data ({error})") from error


class _Decompressor(Protocol):
    """The face of bz2's and lzma's decompressors."""

    eof: bool
    unused_data: bytes
    needs_input: bool

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most `max_length` bytes."""


class _Gunzip:
    """zlib's decompressor with the face of the others; it checks sums, and bounds its output by its input alone."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._damage: zlib.error | None = None

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return self._damage is None

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if self._damage is not None:
            raise self._damage
        before = self._inflate.copy()
        try:
            return self._inflate.decompress(data)
        except zlib.error as error:
            # With the exception goes what came out before the damage: often all there is, for the sum comes last.
            self._inflate, self._damage = before, error
            made = b""
            for byte in data:
                try:
                    made += before.decompress(bytes([byte]))
                except zlib.error:
                    break
            return made


class _Decompressed:
    """Decompresses one stream behind the other, as the tools on the command line do; zeros may pad them."""

    def __init__(self, source: SourceReader, begin: Callable[[], Any]) -> None:
        self._source = source
        self._begin = begin
        self._stream: _Decompressor = begin()
        self._block, self._at = b"", 0

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "tarfile asks for so many bytes"
        while self._at == len(self._block):
            block = self._next_block()
            if block is None:
                return b""
            self._block, self._at = block, 0
        data = self._block[self._at : self._at + size]
        self._at += len(data)
        return data

    def _next_block(self) -> bytes | None:
        """What a little more input makes, which may be b""; None at the end."""
        data = b""
        if self._stream.eof:
            data = self._stream.unused_data.lstrip(b"\0")
            while not data:
                data = self._source.read(_COMPRESSED_BYTES)
                if not data:
                    return None
                data = data.lstrip(b"\0")
            self._stream = self._begin()
        elif self._stream.needs_input:
            data = self._source.read(_COMPRESSED_BYTES)
            if not data:
                raise tarfile.ReadError("unexpected end of data")
        try:
            return self._stream.decompress(data, _BLOCK_BYTES)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise tarfile.ReadError(f"invalid compressed data ({error})") from error
