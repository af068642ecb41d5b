"""URIs -> the bytes behind them, several at a time: what is gone is told from a store that is down."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from tatok.pipeline.readers.inline_data import is_inline
from tatok.pipeline.readers.unreadable import Unreadable
from tatok.pipeline.storage.failures import http_status
from tatok.pipeline.storage.options import options_of
from tatok.pipeline.storage.source_file import source_error
from tatok.schemas.errors import SourceError
from tatok.schemas.secrets import is_signed_by_a_store
from tatok.schemas.urls import filesystem_of, local_path

__all__ = ["Fetcher", "public_uri", "refusal", "resolve_uri"]

_T = TypeVar("_T")
_R = TypeVar("_R")

_NUM_THREADS = 16
_AHEAD = 32  # fetches begun before the oldest is asked for
_BYTES_AHEAD = 64 << 20
_ASSUMED_BYTES = 1 << 20  # of a file whose size nobody gave
_ENOUGH_FAILURES = 32  # with no answer at all: it is not the single URIs
_HTTP = ("http", "https")
# What a row may name. Not "file" out of a bucket, and no chained URL: a table is data, often somebody else's.
_OPEN_SCHEMES = frozenset({*_HTTP, "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oci", "r2"})
_UNREADABLE = "unreadable:"
_SIGNED = "signed:"
_INLINE = "inline:"
_BLOCK_BYTES = 1 << 20


def resolve_uri(text: str, base: str) -> str:
    """The address that a row of the table at `base` names: an URL, or a path relative to the table's folder.

    A path or `file://` is taken only where the table itself is a local file. What may not be named becomes an address
    under `unreadable:`, which a Fetcher refuses. So does an URL that a store has signed, under `signed:` and without
    its parameters: rows and reports keep the addresses that they came from. Data instead of an address is `inline:`.
    """
    if is_inline(text):
        return _INLINE
    scheme = text.partition("://")[0] if "://" in text else ""
    base_scheme = base.partition("://")[0] if "://" in base else ""
    refused = _UNREADABLE + text
    if not text.strip() or "\0" in text or ("::" in text and "://" in text):
        return refused
    if scheme in ("file", "local") and not base_scheme:
        return text.partition("://")[2]
    if scheme and is_signed_by_a_store(text):
        return _SIGNED + public_uri(text)
    if scheme:
        return text if scheme in _OPEN_SCHEMES or scheme == base_scheme else refused
    if not base_scheme:
        return os.path.normpath(os.path.join(os.path.dirname(base), text))
    return refused if text.startswith("/") else f"{base.rpartition('/')[0]}/{text}"


def refusal(uri: str) -> Unreadable | None:
    """Why an address of `resolve_uri` is not read; None where it may be.

    "unreadable_uri", "signed_uri", "inline_data".
    """
    if uri == _INLINE:
        return Unreadable(
            reason="inline_data",
            detail="the row holds data where a list names a file; store the data as a table (.parquet), or as files",
        )
    if uri.startswith(_UNREADABLE):
        named = uri.removeprefix(_UNREADABLE)
        return Unreadable(
            reason="unreadable_uri",
            detail=f"{named!r} may not be named by a row there; give URLs, or paths below the table's folder",
        )
    if uri.startswith(_SIGNED):
        named = uri.removeprefix(_SIGNED)
        return Unreadable(
            reason="signed_uri",
            detail=f"the URL of {named} is signed, and rows keep their URL; name it unsigned, such as s3://..., and "
            "let the machines have the credentials",
        )
    return None


def public_uri(text: str) -> str:
    """A row's address as it may be kept: without its parameters where a store has signed it; "" where it is data."""
    if is_inline(text):
        return ""
    return text.partition("?")[0] if is_signed_by_a_store(text) else text


class _Unanswered(SourceError):
    """A web server that gives no answer, or one that says to come again."""

    def __init__(self, host: str, error: SourceError) -> None:
        super().__init__(str(error))
        self.host = host


class Fetcher:
    """Fetches files of at most `max_bytes`; use one a shard, for it learns which web servers answer.

    Trouble of a bucket or a disk is a SourceError at once. On the web, where a list may name many servers, an URL that
    does not answer is tried again after all others. If it still does not, an URL that its server answered before is
    asked once more (where there is none, another server's): if that answers, the sample is unreadable, "unreachable",
    else it is a SourceError.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._answered: dict[str, str] = {}  # web server -> an URL that it has answered

    def fetch(self, uri: str, *, num_bytes: int | None = None, was_listed: bool = False) -> bytes | Unreadable:
        """The content, or why it is unreadable: "missing", "forbidden" (web only), "too_large", "unreadable_uri",
        "signed_uri", "inline_data".

        `num_bytes` is the size if it is known, and `was_listed` that the file was there when the job was planned.
        Raises SourceError if the store fails.
        """
        refused = refusal(uri)
        if refused is not None:
            return refused
        if num_bytes is not None and num_bytes > self._max_bytes:
            return self._too_large(uri, num_bytes)
        host = urlsplit(uri).netloc if uri.startswith(("http://", "https://")) else None
        try:
            data = self._read(uri, num_bytes)
        except Exception as error:  # every fsspec backend has exceptions of its own
            status = http_status(error)
            gone = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
            if host is not None and ((status is not None and 400 <= status < 500 and status != 429) or gone):
                self._answered.setdefault(host, uri)
                reason = "forbidden" if status in (401, 402, 403, 451) else "missing"
                return Unreadable(reason=reason, detail=f"{uri}: {status or 404}")
            failure = source_error(f"cannot read {uri}", error, uri)
            if host is not None:
                raise _Unanswered(host, failure) from error
            if gone and not (was_listed and "://" not in uri and not os.path.isdir(os.path.dirname(local_path(uri)))):
                return Unreadable(reason="missing", detail=f"{uri} does not exist")
            raise failure from error
        if host is not None:
            self._answered.setdefault(host, uri)
        if len(data) > self._max_bytes:
            return self._too_large(uri, None)
        if num_bytes is not None and len(data) != num_bytes:
            raise SourceError(
                f"{uri} has {len(data)} bytes, {num_bytes} were listed: the connection was cut, or the file was "
                "replaced after it was listed; run the job again"
            )
        return data

    def map(
        self,
        items: Iterable[_T],
        work: Callable[[_T], _R],
        *,
        num_bytes: Callable[[_T], int | None],
        give_up: Callable[[_T, Unreadable], _R],
    ) -> Iterator[_R]:
        """`work` of every item, which calls `fetch`, by threads that run ahead; in order, but for the unanswered.

        These come last; `give_up` makes the result of one that is unreachable. `num_bytes` is what an item will hold,
        as far as that is known: about 64 MiB are fetched ahead.
        """
        deferred: list[_T] = []
        for item, got in _ahead(items, work, num_bytes):
            if not isinstance(got, _Unanswered):
                yield got
                continue
            deferred.append(item)
            if len(deferred) >= _ENOUGH_FAILURES and not self._answered:
                raise got
        for item, got in _ahead(deferred, work, num_bytes):
            if isinstance(got, _Unanswered):
                if not self._web_answers(got.host):
                    raise SourceError(f"{got}; what was answered before is not, either") from got
                yield give_up(item, Unreadable(reason="unreachable", detail=str(got)))
            else:
                yield got

    def _web_answers(self, host: str) -> bool:
        uri = self._answered.get(host) or next(iter(self._answered.values()), None)
        try:
            return uri is not None and self.fetch(uri) is not None
        except SourceError:
            return False

    def _too_large(self, uri: str, num_bytes: int | None) -> Unreadable:
        size = f"more than {self._max_bytes}" if num_bytes is None else num_bytes
        return Unreadable(
            reason="too_large",
            detail=f"{uri} has {size} bytes; at most {self._max_bytes} are read (limits.max_sample_bytes)",
        )

    def _read(self, uri: str, num_bytes: int | None) -> bytes:
        if "://" not in uri:
            path = local_path(uri)
            if not os.path.isfile(path):
                raise FileNotFoundError(uri)  # a pipe or a device would block
            with open(path, "rb") as file:
                return file.read(self._max_bytes + 1)
        scheme = uri.partition("://")[0]
        if scheme in _HTTP:
            fs: Any = fsspec.filesystem(scheme, **options_of(scheme))
            # A size and no block size: one plain GET, without a question for the size before.
            with fs.open(uri, "rb", block_size=0, size=1) as file:
                blocks, total = [], 0
                while total <= self._max_bytes and (block := file.read(_BLOCK_BYTES)):
                    blocks.append(block)
                    total += len(block)
                return b"".join(blocks)
        fs, path = filesystem_of(uri)
        if num_bytes is not None:
            return bytes(fs.cat_file(path))
        with fs.open(path, "rb") as file:
            return bytes(file.read(self._max_bytes + 1))


def _ahead(
    items: Iterable[_T], work: Callable[[_T], _R], num_bytes: Callable[[_T], int | None]
) -> Iterator[tuple[_T, _R | _Unanswered]]:
    def attempt(item: _T) -> _R | _Unanswered:
        try:
            return work(item)
        except _Unanswered as error:
            return error

    waiting: deque[tuple[_T, int, Future[_R | _Unanswered]]] = deque()
    bytes_ahead = 0
    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        try:
            for item in items:
                size = num_bytes(item) or _ASSUMED_BYTES
                while waiting and (len(waiting) >= _AHEAD or bytes_ahead + size > _BYTES_AHEAD):
                    first, its_size, future = waiting.popleft()
                    yield first, future.result()
                    bytes_ahead -= its_size
                waiting.append((item, size, pool.submit(attempt, item)))
                bytes_ahead += size
            while waiting:
                first, _, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
