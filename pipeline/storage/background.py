"""Work in a thread that nobody has to wait for, not even the end of the process; calls to stores with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["ANSWER_S", "LISTING_S", "AnsweringFile", "Unanswered", "answered", "begin", "in_steps", "within"]

# For one small request to a store, its client's repeats included: three times the longest wait for an S3 answer.
ANSWER_S = 45.0
LISTING_S = 600.0  # for one that does not come page by page
_STEP_ITEMS = 1000  # a page of S3's
_T = TypeVar("_T")


class Unanswered(Exception):
    """A call had not come back in time; its thread continues to wait."""


def begin(work: Callable[[], _T]) -> Future[_T]:
    """Start `work`; its result or its exception is the future's.

    An executor's threads are waited for when the process ends, and one may hang on a server for minutes.
    """
    future = Future[_T]()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="tatok-background", daemon=True).start()
    return future


def within(seconds: float, work: Callable[[], _T]) -> _T:
    """What `work` returns or raises; raises Unanswered if it has done neither after so many seconds."""
    future = begin(work)
    if not wait([future], seconds).done:
        raise Unanswered
    return future.result()


def answered(work: Callable[[], _T], seconds: float = ANSWER_S) -> _T:
    """What a request to a store returns or raises; raises TimeoutError if the store is silent for so long.

    The clients' own limits and repeats add up to minutes, in which nobody is told anything.
    """
    try:
        return within(seconds, work)
    except Unanswered:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def in_steps(items: Callable[[], Iterator[_T]], seconds: float = ANSWER_S) -> Iterator[_T]:
    """The items of a listing, however many; raises TimeoutError if it stands still for so long."""
    listing = answered(lambda: iter(items()), seconds)
    while step := answered(lambda: list(islice(listing, _STEP_ITEMS)), seconds):
        yield from step


class AnsweringFile:
    """A store's file whose reads have a deadline, each of its own; all else is the file's."""

    def __init__(self, file: Any, ask: Callable[[Callable[[], bytes]], bytes]) -> None:
        self._file = file
        self._ask = ask

    def read(self, size: int = -1) -> bytes:
        """As the file's; raises what `ask` makes of its failures."""
        return self._ask(lambda: self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> AnsweringFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
