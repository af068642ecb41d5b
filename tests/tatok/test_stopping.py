"""Signals: where they raise, where they wait, and what other processes of the run make of them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tatok.stopping import Interrupted, Stop, handlers_kept, stop_by_signals, terminable
from tests.support.places import ROOT


@pytest.fixture(autouse=True)
def handlers_are_as_before() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_at_once_but_at_the_end_of_what_must_be_whole(number: signal.Signals) -> None:
    done = []

    def work(stop: Stop) -> None:
        with stop.held():
            with stop.held():
                signal.raise_signal(number)
                done.append("inner")
            done.append("outer")
        done.append("not reached")

    with stop_by_signals(), pytest.raises(Interrupted) as raised:
        signal.raise_signal(number)
    assert raised.value.signal_number == number
    with stop_by_signals() as stop, pytest.raises(Interrupted) as raised:
        work(stop)
    assert raised.value.signal_number == number
    assert done == ["inner", "outer"]
    assert not stop.is_urgent


def test_a_second_signal_does_not_wait_but_the_same_press_is_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.4, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with stop_by_signals() as stop, stop.held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # 0.4 s later, by the program that started this one
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        assert stop.is_urgent
        stop._is_waiting = False  # it has been raised


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_by_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal_number is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_stopped_by_request() -> None:
    found: list[BaseException] = []

    def work() -> None:
        with stop_by_signals() as stop:
            stop.check()
            stop.request(signal.SIGTERM)
            try:
                stop.check()
            except Interrupted as interrupt:
                found.append(interrupt)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], Interrupted)
    assert found[0].signal_number == signal.SIGTERM


def test_an_interruption_travels_between_processes() -> None:
    there = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM, "saved at step 3")))
    assert isinstance(there, Interrupted)
    assert (there.signal_number, there.said) == (signal.SIGTERM, "saved at step 3")
    assert Stop().signal_number is None


def test_sigterm_is_as_ctrl_c_also_after_ray_has_put_its_own_handler() -> None:
    def as_on_ray() -> None:
        with handlers_kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as ray.init() does
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as raised, terminable():
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.signal_number == signal.SIGTERM
    with pytest.raises(Interrupted) as raised, terminable():
        as_on_ray()
    assert raised.value.signal_number == signal.SIGTERM

    def as_ray_waits() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise KeyboardInterrupt from None

    with pytest.raises(Interrupted) as raised, terminable():
        as_ray_waits()
    assert raised.value.signal_number == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_forked_dies_of_a_signal_as_ever(number: signal.Signals) -> None:
    with stop_by_signals() as stop, stop.held():
        child = os.fork()
        if not child:
            signal.raise_signal(number)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number


def test_a_loader_outlives_a_signal_to_all_processes_until_it_is_ended() -> None:
    script = (
        "import time; from tatok.stopping import outlive_signals; outlive_signals(); print('ready', flush=True)\n"
        "for number in range(1000): time.sleep(0.1); print(number, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as loader:
        assert loader.stdout is not None
        assert loader.stdout.readline() == "ready\n"
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(loader.pid, number)
            assert [loader.stdout.readline() for _ in range(3)]
            assert loader.poll() is None
        loader.terminate()  # by the process that it serves
        assert loader.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("arguments", "exit_code"), [("--version", 0), ("--no-such-option", 2)])
def test_a_signal_after_a_command_is_done_changes_nothing_of_what_came_of_it(
    number: signal.Signals, arguments: str, exit_code: int
) -> None:
    script = (
        "import atexit, sys, time; from tatok.jobs import cli\n"
        "def tidy_up(): print('tidying up', file=sys.stderr, flush=True); time.sleep(120)\n"
        "def command(app=cli.app, **options): atexit.register(tidy_up); app(**options)\n"
        "cli.app = command; cli.run()"
    )
    command = [sys.executable, "-c", script, arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        before = list(iter(process.stderr.readline, "tidying up\n"))
        process.send_signal(number)
        printed, after = process.communicate(timeout=60)
    assert (process.returncode, after) == (exit_code, "")
    assert ("tatok 0." in printed) == (exit_code == 0)
    assert ("No such option" in "".join(before)) == (exit_code == 2)
