"""How Ctrl-C and SIGTERM end what runs: at once, or when what must be whole is whole.

Kubernetes and Slurm send SIGTERM and kill half a minute later; a terminal sends SIGINT to every process of its group.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = [
    "Interrupted",
    "Stop",
    "handlers_kept",
    "ignore_signals",
    "leave_on_signals",
    "outlive_signals",
    "said_of_stop",
    "stop_by_signals",
    "terminable",
]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_PRESS_S = 1.0  # `uv run` and the like pass on the signal that the terminal has sent to all already
_WORKER_GRACE_S = 20  # how long a loader outlives a SIGTERM that was sent to all processes of a run


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end; `said` is what became of the work, for the user, where somebody took care of it."""

    def __init__(self, signal_number: int, said: str = "") -> None:
        super().__init__(said or signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.said = said

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str]]:
        return Interrupted, (self.signal_number, self.said)


class Stop:
    """A wish to end, which comes by a signal or from another thread.

    A signal raises Interrupted wherever the main thread is, but in `held` blocks: there it waits for their end. A
    second one, unless within a second of the first, raises there too, and `is_urgent` says that it has.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.is_urgent = False
        self._num_holds = 0
        self._is_waiting = False
        self._first_at = 0.0
        self._pid = os.getpid()

    def request(self, signal_number: int) -> None:
        """Wish for the end, from any thread; `check` finds it."""
        self.signal_number = signal_number

    def check(self) -> None:
        """Raise Interrupted if the end is wished for."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What must not be cut in two: a signal raises at the block's end."""
        self._num_holds += 1
        try:
            yield
        finally:
            self._num_holds -= 1
        if self._is_waiting and not self._num_holds:
            self._is_waiting = False
            self.check()

    def on_signal(self, signal_number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        if os.getpid() != self._pid:  # a process forked from this one, which has no use for it
            signal.signal(signal_number, signal.SIG_DFL)
            signal.raise_signal(signal_number)
        now = time.monotonic()
        if self.signal_number is None:
            self._first_at = now
        elif now - self._first_at < _SAME_PRESS_S:
            return
        else:
            self.is_urgent = True
        self.signal_number = signal_number
        if self._num_holds and not self.is_urgent:
            self._is_waiting = True
            os.write(2, b"\nstopping when this step is done and saved; once more ends at once\n")
            return
        raise Interrupted(signal_number)


def said_of_stop(where: str, *, saved_at: str | None, is_saved: bool) -> str:
    """What became of a training in `where` that was stopped; `saved_at` is when its last state was saved, in words."""
    if saved_at is not None and is_saved:
        return f"interrupted: saved at {saved_at} in {where}; resume with the same command"
    if saved_at is not None:
        return f"interrupted at once: the last state in {where} is of {saved_at}; resume with the same command"
    when = "before the first step" if is_saved else "at once"
    return f"interrupted {when}: nothing is saved in {where}; start again with the same command"


@contextmanager
def stop_by_signals() -> Iterator[Stop]:
    """A Stop that SIGINT and SIGTERM reach while the block runs in the main thread; elsewhere only `request` does.

    A signal that the process was started to ignore, as a shell's background jobs are, stays ignored.
    """
    stop = Stop()
    with _handled(stop, SIGNALS):
        yield stop


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise Interrupted in the block, as Ctrl-C raises KeyboardInterrupt, so that both clean up."""
    stop = Stop()
    try:
        with _handled(stop, (signal.SIGTERM,)):
            yield
    except KeyboardInterrupt as interrupt:
        if stop.signal_number is None or isinstance(interrupt, Interrupted):
            raise
        raise Interrupted(stop.signal_number) from None  # Ray, waiting in C++, raises a bare one whatever the signal


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put signal handlers back that the block replaces.

    ray.init() lets SIGTERM leave by SystemExit(15), and then puts a handler in C before that one, which aborts.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in SIGNALS} if is_main else {}
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:  # else one in C, from before
                signal.signal(each, handler)


@contextmanager
def _handled(stop: Stop, signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    is_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in signals} if is_main else {}
    replaced = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for each in replaced:
        signal.signal(each, stop.on_signal)
    try:
        yield
    finally:
        for each, handler in replaced.items():
            signal.signal(each, handler)


def leave_on_signals(exit_code: int) -> None:
    """From now on, SIGINT and SIGTERM end this process at once with the exit code that it has come to.

    For a command that is done: Python joins threads and tidies up for a while yet, and a signal meanwhile would print a
    traceback under the result, or make it look interrupted. A signal that is ignored stays ignored.
    """

    def leave(signal_number: int, frame: FrameType | None) -> None:
        os._exit(exit_code)

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, leave)


def ignore_signals() -> None:
    """For an exit's very end, where Python takes its handlers away and would die of what comes then."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def outlive_signals(worker_number: int = 0) -> None:
    """In a process that serves this one, such as a data loader's: a signal to all of a run's processes leaves it alive.

    The run's own process ends it when the step at hand is done. A first SIGTERM ends it after a grace only, if nobody
    else has; a second one, which that process sends where it must, at once.
    """

    def later(signal_number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(_WORKER_GRACE_S)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, later)
