"""Work in a thread that nobody has to wait for, not even the end of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

__all__ = ["Unanswered", "begin", "within"]

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
