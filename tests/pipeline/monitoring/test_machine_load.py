from __future__ import annotations

from pathlib import Path

import pytest

from tatok.pipeline.monitoring import machine_load
from tatok.pipeline.monitoring.machine_load import busy_share, why_busy

BEFORE = "cpu  100 50 25 1000 10 5 5 5 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"


class Readings:
    """In place of /proc/stat: each reading gives the next text."""

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)

    def read_text(self) -> str:
        return self._texts.pop(0)


def then(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_load, "_STAT", Readings(BEFORE, line))


def test_every_kind_of_work_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    then("cpu  110 60 35 1040 20 10 10 10 0 0\n", monkeypatch)  # 45 at work, 40 idle, 10 waiting for disks
    assert busy_share(0.0) == pytest.approx(45 / 95)


def test_a_busy_machine_is_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    then("cpu  200 50 25 1100 10 5 5 5 0 0\n", monkeypatch)
    assert str(why_busy()).startswith("others kept 50% of this machine's ")


def test_an_idle_machine_is_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    then("cpu  101 50 25 1100 10 5 5 5 0 0\n", monkeypatch)
    assert why_busy() is None


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_load, "_STAT", tmp_path / "none")
    assert busy_share(0.0) == 0.0
