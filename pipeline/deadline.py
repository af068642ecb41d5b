"""A call that may wait for a silent server, given up after a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Unanswered", "within"]

_T = TypeVar("_T")


class Unanswered(Exception):
    """A call had not come back in time; its thread goes on waiting, and does not keep the process from its end."""


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """What `call` returns or raises, from a thread of its own; raises Unanswered after so many seconds."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # it is raised below, where it belongs
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Unanswered
    if errors:
        raise errors[0]
    return results[0]
