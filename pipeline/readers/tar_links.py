"""Links in a tar -> the members that they lead to, read from a second place in the archive.

Nothing is opened before the first link comes. Then the headers are walked once, from the start; 16 bytes are kept of
each member. A compressed archive cannot be sought in: it is decompressed to a temporary file, which has no name.
"""

from __future__ import annotations

import posixpath
import tarfile
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from typing import IO, Any, Self

import numpy as np

from tatok.pipeline.readers.tar_headers import damage_reason, decompressed, open_tar
from tatok.pipeline.readers.unreadable import Unreadable
from tatok.pipeline.storage.source_file import SourceReader, open_forward, open_source, source_error
from tatok.schemas.errors import SourceError

__all__ = ["LinkTargets"]

_MOST_LINKS = 8  # one behind the other
_COPY_BYTES = 1 << 20


class LinkTargets:
    """The members of one archive by name; a context manager, for it may hold a file.

    `num_bytes` is what a compressed archive has, as planned.
    """

    def __init__(self, uri: str, *, is_compressed: bool, num_bytes: int) -> None:
        self._uri = uri
        self._is_compressed = is_compressed
        self._num_bytes = num_bytes
        self._opened = ExitStack()
        self._index: _Index | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def find(self, link: tarfile.TarInfo, offset: int) -> _Target | Unreadable:
        """The regular member that `link`, whose header is at `offset`, leads to: "dangling_link" if there is none.

        A hard link leads to the last member of that name before it, a symbolic link to the last one in the archive.
        Raises SourceError if the store fails.
        """
        if self._index is None:
            file = (
                _copy(self._uri, self._num_bytes) if self._is_compressed else _Stored(open_source(self._uri), self._uri)
            )
            self._index = _Index(self._opened.enter_context(file))
        name, leads_to = link.name, link.linkname
        for _ in range(_MOST_LINKS):
            found = self._index.last(_path_of_target(link), before=offset if link.islnk() else None)
            if found is None:
                return _dangling(name, leads_to, f"which is no member of the archive{self._index.cut}")
            if found.member.issparse():
                return Unreadable(
                    reason="unsupported_member", detail=f"{name} is a link to {leads_to}, which is stored with holes"
                )
            if found.member.isreg():
                return found
            if not found.member.issym() and not found.member.islnk():
                return _dangling(name, leads_to, "which is no file")
            link, offset = found.member, found.member.offset
        return _dangling(name, leads_to, f"and that to others: more than {_MOST_LINKS} in all, or a circle of them")


class _Target:
    """A regular member that a link leads to."""

    def __init__(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self.member = member
        self._tar = tar

    def read(self) -> bytes | Unreadable:
        """The content; raises SourceError if the store fails."""
        file = self._tar.extractfile(self.member)
        assert file is not None, "regular members have content"
        try:
            return file.read()
        except (tarfile.TarError, EOFError) as error:
            return Unreadable(
                reason=damage_reason(error), detail=f"{error} in {self.member.name}, to which a link leads"
            )


def _path_of_target(link: tarfile.TarInfo) -> str:
    return _normal(link.linkname if link.islnk() else posixpath.join(posixpath.dirname(link.name), link.linkname))


def _normal(name: str) -> str:
    path = posixpath.normpath(name)
    return path[1:] if path.startswith("//") else path


def _dangling(name: str, leads_to: str, why: str) -> Unreadable:
    return Unreadable(reason="dangling_link", detail=f"{name} is a link to {leads_to}, {why}")


class _Index:
    """Where the members of an archive are, by name: hashes and offsets of their headers, in two sorted arrays.

    `cut` says, in words, where the walk of the headers ended too early.
    """

    def __init__(self, file: Any) -> None:
        self.cut = ""
        self._file = file
        hashes, offsets = array("Q"), array("Q")
        for member in self._members():
            hashes.append(_hash(_normal(member.name)))
            offsets.append(member.offset)
        by_hash = np.array(hashes, dtype=np.uint64)
        order = np.argsort(by_hash, kind="stable")  # equal ones stay in the archive's order
        self._hashes, self._offsets = by_hash[order], np.array(offsets, dtype=np.uint64)[order]

    def last(self, path: str, *, before: int | None) -> _Target | None:
        """The last member of that path, or the last one before a place."""
        wanted = np.uint64(_hash(path))
        first, stop = np.searchsorted(self._hashes, wanted, "left"), np.searchsorted(self._hashes, wanted, "right")
        for offset in reversed(self._offsets[first:stop].tolist()):
            if before is not None and offset >= before:
                continue
            self._file.seek(offset)
            tar = open_tar(self._file, "r:")
            member = tar.next()
            if member is not None and _normal(member.name) == path:  # and not another one's hash
                return _Target(tar, member)
        return None

    def _members(self) -> Iterator[tarfile.TarInfo]:
        last_name = ""
        try:
            tar = open_tar(self._file, "r:")
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has seen
                last_name = member.name
                yield member
            if tar.is_at_an_end:
                return
            error: Exception | None = tar.header_error
        except (tarfile.TarError, EOFError) as damage:
            error = damage
        self.cut = f", as far as it can be read ({error}, after the member {last_name!r})"


def _hash(path: str) -> int:
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _copy(uri: str, num_bytes: int) -> IO[bytes]:
    """A compressed archive, decompressed."""
    copy = tempfile.TemporaryFile(prefix="tatok-tar-")  # noqa: SIM115  # the caller closes it
    try:
        with open_forward(uri) as stored:
            stream = decompressed(SourceReader(stored, uri, num_bytes=num_bytes))
            while block := stream.read(_COPY_BYTES):
                copy.write(block)
    except (tarfile.TarError, EOFError):
        pass  # the stream that is read forward comes to the same damage, and reports it
    except OSError as error:
        copy.close()
        raise SourceError(
            f"cannot follow the links of {uri}: {error}; it is compressed, and is decompressed to a file in "
            f"{tempfile.gettempdir()} for them (TMPDIR says where)"
        ) from error
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


class _Stored:
    """A stored file for tarfile, whose failures are SourceErrors: nothing takes them for damage."""

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file, self._uri = file, uri

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise source_error(f"cannot read {self._uri}", error, self._uri) from error

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except Exception as error:
            raise source_error(f"cannot read {self._uri}", error, self._uri) from error

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True
