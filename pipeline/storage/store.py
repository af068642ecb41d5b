"""The output location: listing, atomic replacement and create-only publishing, on a disk or an fsspec store.

Every request to a store has a deadline, whoever makes it: nobody waits without end, and in silence, for a server.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal, TypeVar, cast

from fsspec.spec import AbstractFileSystem

from tatok.pipeline.storage.background import ANSWER_S, LISTING_S, AnsweringFile, answered, in_steps
from tatok.pipeline.storage.listing import list_directly_in
from tatok.pipeline.storage.remedies import NO_PACKAGE_REMEDY, access_remedy
from tatok.pipeline.storage.unfinished import abort_stale_uploads
from tatok.schemas.errors import CommitError, ConfigError, TatokError
from tatok.schemas.manifest import LAYOUT, Layout, layout_of
from tatok.schemas.urls import filesystem_of

__all__ = ["OutputStore"]

_STALE_SCRATCH_S = 24 * 3600
_IN_PIECES_BYTES = 32 << 20
_SLOWEST_BYTES_A_S = 256 << 10  # a transfer that is slower, beyond what an answer takes, is given up
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStore:
    """One dataset's folder as one run uses it; names are relative to it and use "/". Pickles by its URL.

    On a disk, files appear under their final names complete and synced or not at all. Elsewhere one PUT is the
    store's own atom; `create_only` says whether the store refuses to replace an object (`probe` finds out). `layout`
    is that of a new dataset unless `of_dataset` has looked.
    """

    url: str
    create_only: bool = True
    layout: Layout = LAYOUT
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @staticmethod
    def open(url: str) -> OutputStore:
        """Raises ConfigError if the URL has no usable backend, CommitError if it is, or lies below, a local file."""
        try:
            fs, path = filesystem_of(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"cannot write to {url!r}: {error}; install the scheme's fsspec package", remedy=NO_PACKAGE_REMEDY
            ) from error
        if _is_local(fs) and (
            file := next((each for each in (Path(path), *Path(path).parents) if each.is_file()), None)
        ):
            raise CommitError(f"cannot write to {url!r}: {file} is a file", remedy="name a folder, or one to be made")
        # Workers may run in another folder, so the address must not depend on this process.
        return OutputStore(url=path if _is_local(fs) else url.rstrip("/"))

    @staticmethod
    def of_dataset(url: str) -> OutputStore:
        """`open`, and by one listing the names that the dataset there was begun with.

        Raises SourceError if two versions of tatok wrote into it, CommitError if the store does not answer.
        """
        store = OutputStore.open(url)
        return replace(store, layout=layout_of(store.names(), store.url))

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a disk of this machine."""
        return _is_local(self._fs)

    def probe(self) -> OutputStore:
        """Make sure that the location can be written, and learn whether it honours create-only.

        Raises CommitError if nothing can be written.
        """
        name = f".tmp/probe-{self.run_id}"
        try:
            if self.is_local:
                self._local(name).parent.mkdir(parents=True, exist_ok=True)
                return self
            answered(lambda: self._fs.pipe_file(self._full(name), b"", mode="create"))
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise CommitError(
                f"cannot write to {self.url}: {error}; check the path and your permissions",
                remedy=access_remedy(error, self.url, "write"),
            ) from error
        with suppress(OSError):  # FileExistsError by the book; SeaweedFS answers EINVAL
            answered(lambda: self._fs.pipe_file(self._full(name), b"replaced", mode="create"))
        refuses = self._ask("read", name, lambda: self._fs.cat_file(self._full(name))) == b""
        self._ask("write", name, lambda: self._fs.rm_file(self._full(name)))
        return replace(self, create_only=refuses)

    def names(self) -> frozenset[str]:
        """The names of the files and folders directly in this one, by one listing; none where there is no folder.

        Raises CommitError if the store does not answer.
        """
        self._fs.invalidate_cache()
        root = self._full("").rstrip("/")
        try:
            with self._worded("list", ""):
                paths = self._fs.ls(root, detail=False) if self.is_local else answered(lambda: self._fs.ls(root, False))
        except FileNotFoundError:
            return frozenset()
        return frozenset(path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != root)

    def list_files(self, folder: str) -> dict[str, int]:
        """Name -> size in bytes of the files directly in `folder`, by one listing; empty where there is none.

        Raises CommitError if the store does not answer.
        """
        self._fs.invalidate_cache()
        path = self._full(folder)
        try:
            if self.is_local:
                entries = [entry for entry in self._fs.ls(path, detail=True) if entry["type"] == "file"]
            else:
                step_s = ANSWER_S if "s3" in self._fs.protocol else LISTING_S
                with self._worded("list", folder):
                    entries = list(in_steps(lambda: list_directly_in(self._fs, path), step_s))
        except FileNotFoundError:
            return {}
        return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries}

    def exists(self, name: str) -> bool:
        """Whether the file is there now, past every cache."""
        self._fs.invalidate_cache()
        return bool(self._ask("read", name, lambda: self._fs.exists(self._full(name))))

    def size(self, name: str) -> int | None:
        """The file's size in bytes, past every cache; None where there is no such file."""
        self._fs.invalidate_cache()
        try:
            return int(self._ask("read", name, lambda: self._fs.size(self._full(name))))
        except FileNotFoundError:
            return None

    def read_text(self, name: str) -> str | None:
        """The file's text, or None where there is no such file."""
        self._fs.invalidate_cache()
        try:
            return self._ask("read", name, lambda: cast("bytes", self._fs.cat_file(self._full(name)))).decode("utf-8")
        except FileNotFoundError:
            return None

    def write_text(self, name: str, text: str, *, create: bool = False) -> bool:
        """Write atomically; with `create`, only where there is none: False says that another came first.

        Raises CommitError if the disk or the store refuses.
        """
        with self.scratch_file() as path:
            try:
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise CommitError(f"cannot write {path}: {error}; free space, then run again") from error
            return self.publish(path, name, create=create)

    def remove(self, name: str) -> None:
        """Remove a file; none there is fine."""
        with suppress(FileNotFoundError):
            self._ask("write", name, lambda: self._fs.rm_file(self._full(name)))

    def open_input(self, name: str) -> IO[bytes]:
        """A file of the dataset, to be read in binary mode; raises CommitError if the store does not answer."""
        if self.is_local:
            return cast("IO[bytes]", self._fs.open(self._full(name), "rb"))
        file = self._ask("read", name, lambda: self._fs.open(self._full(name), "rb"))
        return cast("IO[bytes]", AnsweringFile(file, lambda read: self._ask("read", name, read)))

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """The file on a disk of this machine: itself, or a copy for the time being. Raises OSError if that fails."""
        if self.is_local:
            path = self._local(name)
            path.stat()
            yield path
            return
        seconds = _transfer_s(self.size(name) or 0)
        with self.scratch_file() as path:
            try:
                answered(lambda: self._fs.get_file(self._full(name), str(path)), seconds)
            except OSError:
                raise
            except Exception as error:  # every fsspec backend has exceptions of its own
                raise OSError(f"cannot read {self.url}/{name}: {error}") from error
            yield path

    def etag(self, name: str) -> str | None:
        """The store's own checksum of a file, where it keeps one."""
        info = self._ask("read", name, lambda: self._fs.info(self._full(name)))
        etag = info.get("ETag") or info.get("etag")
        return None if etag is None else str(etag).strip('"')

    def publish(self, path: Path, name: str, *, create: bool) -> bool:
        """Give the finished scratch file `path` its final name.

        With `create` an existing file stays as it is and the answer is False: the race is lost, which is fine.
        Raises CommitError if the store refuses.
        """
        try:
            if self.is_local:
                return self._publish_local(path, self._local(name), create=create)
            return self._publish_remote(path, self._full(name), create=create)
        except FileExistsError:
            return False
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise CommitError(
                f"cannot publish {self.url}/{name}: {error}; free space or fix permissions, then run again",
                remedy=access_remedy(error, self.url, "write"),
            ) from error

    @contextmanager
    def scratch_file(self) -> Iterator[Path]:
        """A path for a file in the making, outside every published folder; deleted at the end."""
        folder = self._scratch_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.run_id}.{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def sweep_scratch(self) -> None:
        """Delete this run's scratch files, and those that a killed run left behind more than a day ago.

        In an S3 store the pieces of its unfinished uploads, too, if the store lets us.
        """
        if not self.is_local:
            with suppress(Exception):  # not all who may write may list uploads; a later run tries again
                answered(lambda: abort_stale_uploads(self._fs, self._full("")))
        folder = self._scratch_folder()
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            with suppress(OSError):
                if path.name.startswith(self.run_id) or time.time() - path.stat().st_mtime > _STALE_SCRATCH_S:
                    path.unlink()
        with suppress(OSError):  # not empty: another run is at work
            folder.rmdir()

    def _publish_local(self, path: Path, target: Path, *, create: bool) -> bool:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        _make_folder(target.parent)
        if create:
            try:
                os.link(path, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if target.exists():  # a file system without hard links: not atomic against a second run
                    return False
                os.replace(path, target)
        else:
            os.replace(path, target)
        _sync_folder(target.parent)
        return True

    def _publish_remote(self, path: Path, target: str, *, create: bool) -> bool:
        seconds = _transfer_s(path.stat().st_size)
        if not create:
            answered(lambda: self._fs.put_file(str(path), target), seconds)
            return True
        if not self.create_only:
            if answered(lambda: self._fs.exists(target)):
                return False
            answered(lambda: self._fs.put_file(str(path), target), seconds)
            return True
        # Large files go up in pieces. The condition holds for their assembly too, but a lost race costs the whole way.
        if path.stat().st_size >= _IN_PIECES_BYTES:
            self._fs.invalidate_cache()
            if answered(lambda: self._fs.exists(target)):
                return False
        try:
            answered(lambda: self._fs.put_file(str(path), target, mode="create"), seconds)
        except Exception:
            # The answer to a lost race differs (412, 409); that the object is there does not.
            self._fs.invalidate_cache()
            if answered(lambda: self._fs.exists(target)):
                return False
            raise
        return True

    def _ask(self, verb: Literal["read", "write"], name: str, work: Callable[[], _T]) -> _T:
        """What a small request comes to. A store that has no such file says so; other failures are CommitErrors."""
        if self.is_local:
            return work()
        with self._worded(verb, name):
            return answered(work)

    @contextmanager
    def _worded(self, verb: Literal["read", "write", "list"], name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, TatokError):
            raise
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise CommitError(
                f"cannot {verb} {self.url}/{name}: {str(error) or type(error).__name__}",
                remedy=access_remedy(error, self.url, "write" if verb == "write" else "read"),
            ) from error

    def _scratch_folder(self) -> Path:
        # A link needs the same file system; for a remote store any local disk will do.
        return self._local(".tmp") if self.is_local else Path(tempfile.gettempdir()) / "tatok-scratch"

    @property
    def _fs(self) -> AbstractFileSystem:
        return filesystem_of(self.url)[0]  # fsspec caches instances

    def _full(self, name: str) -> str:
        return f"{self._fs._strip_protocol(self.url)}/{name}"

    def _local(self, name: str) -> Path:
        return Path(self._full(name))


def _transfer_s(num_bytes: int) -> float:
    return 2 * ANSWER_S + num_bytes / _SLOWEST_BYTES_A_S


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it so that they outlive a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_local(fs: AbstractFileSystem) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
