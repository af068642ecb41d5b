from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from tatok.jobs.verbosity import Quiet, Verbose, Verbosity

app = typer.Typer()


@app.callback()
def main(quiet: Quiet = False, verbose: Verbose = 0) -> None:
    Verbosity.of(quiet, verbose)


@app.command()
def work(quiet: Quiet = False, verbose: Verbose = 0) -> None:
    print(Verbosity.of(quiet, verbose).name)


@app.command()
def other() -> None:
    """A command that has no such option of its own."""


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output.strip()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("work",), "NORMAL"),
        (("-q", "work"), "QUIET"),
        (("work", "--quiet"), "QUIET"),
        (("-v", "work"), "VERBOSE"),
        (("work", "-vv"), "EVERYTHING"),
        (("-v", "work", "-v"), "EVERYTHING"),
        (("work", "-vvvv"), "EVERYTHING"),
    ],
)
def test_before_the_command_and_behind_it(arguments: tuple[str, ...], expected: str) -> None:
    assert said(*arguments) == expected


@pytest.mark.parametrize(
    "arguments", [("-q", "work", "-v"), ("-v", "work", "-q"), ("work", "-q", "-v"), ("-qv", "other")]
)
def test_they_contradict_each_other(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "contradict" in result.output
