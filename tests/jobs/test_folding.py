from __future__ import annotations

import io

import pytest

from tatok.jobs.text.folding import folded

TEXT = "error: one two three four five six\n  a/path/that-has-no-room/anywhere.tar: gone\n\nshort"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")


def test_a_terminal_breaks_lines_between_words() -> None:
    assert folded(TEXT, Terminal()).splitlines() == [
        "error: one two three",
        "  four five six",
        "  a/path/that-has-no-room/anywhere.tar:",
        "    gone",
        "",
        "short",
    ]


def test_elsewhere_lines_stay_whole() -> None:
    assert folded(TEXT, io.StringIO()) == TEXT
