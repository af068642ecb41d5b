"""Users' walks: what people type, in order, and what each command prints.

A walk is a text file beside this one. What begins a line is prose; what four spaces indent is a terminal:

    $ tatok verify tokens          a command, in a shell of its own; all of a walk's run in one folder, empty at first
    > --json                       the same command's next line
    tokens: ...                    what it prints, errors too: `...` stands for anything, also for lines; spaces and
                                   line ends do not count
    [exit 3]                       its exit code, where that is not 0

The variable DEMO names the folder of the bundled photos. A walk whose name ends in -long is for `make test-long`.
"""

from __future__ import annotations

import doctest
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.places import EXAMPLES

WALKS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.long] if path.stem.endswith("-long") else [])
    for path in sorted(Path(__file__).parent.glob("*.txt"))
]
INDENT = "    "
LONGEST_S = 240  # of one command; what hangs shall say where
MATCHING = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command, and what it is to print; the exit code is its last line where it is not 0."""

    line: int
    command: str
    expected: str


def steps_of(text: str) -> list[Step]:
    """The commands of a walk, in order; raises ValueError where a terminal begins without one."""
    commands: list[tuple[int, list[str], list[str]]] = []
    is_terminal = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith(INDENT):
            is_terminal = False
        elif line.startswith(f"{INDENT}$ "):
            commands.append((number, [line.removeprefix(f"{INDENT}$ ")], []))
            is_terminal = True
        elif line.startswith(f"{INDENT}>") and is_terminal and not commands[-1][2]:
            commands[-1][1].append(line.removeprefix(f"{INDENT}>").removeprefix(" "))
        elif is_terminal:
            commands[-1][2].append(line.removeprefix(INDENT))
        elif line.strip():
            raise ValueError(f"line {number}: there is no command above {line.strip()!r}")
    return [
        Step(line=number, command="\n".join(command), expected="\n".join(expected).strip("\n"))
        for number, command, expected in commands
    ]


def walk(steps: Iterable[Step], folder: Path) -> None:
    """Run the commands in that folder; raises AssertionError at the first that prints something else."""
    environment = _environment()
    checker = doctest.OutputChecker()
    for step in steps:
        printed = _printed(step.command, folder, environment)
        is_as_expected = _exit_code(printed) == _exit_code(step.expected)  # which `...` would stand for, too
        if not (is_as_expected and checker.check_output(f"{step.expected}\n", printed, MATCHING)):
            example = doctest.Example(step.command, f"{step.expected}\n")
            shown = checker.output_difference(example, printed, MATCHING)
            raise AssertionError(f"line {step.line}: $ {step.command}\n{shown}")


def _exit_code(text: str) -> str:
    """The last line, where it says an exit code."""
    last = text.rstrip().rpartition("\n")[2]
    return last if last.startswith("[exit ") else ""


def _environment() -> Mapping[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TATOK_", "RAY_", "AWS_"))}
    return inherited | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "DEMO": str(EXAMPLES / "photos"),
        "TERM": "dumb",
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
    }


def _printed(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Both streams in the order in which they were written, and the exit code where it is not 0."""
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        return f"{printed}\n[ended after {LONGEST_S} s]\n"
    if not process.returncode:
        return printed
    whole_lines = printed if printed.endswith("\n") or not printed else f"{printed}\n"
    return f"{whole_lines}[exit {process.returncode}]\n"


@pytest.mark.parametrize("path", WALKS)
@pytest.mark.timeout(600)
def test_walk(path: Path, tmp_path: Path) -> None:
    steps = steps_of(path.read_text(encoding="utf-8"))
    assert steps, f"{path.name} holds no command"
    walk(steps, tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("    $ echo one; echo two\n    one\n    ...\n    $ pwd; exit 3\n    /...\n    [exit 3]\n", None),
        (
            "    $ cat > a <<EOF\n    > $((1 + 1))\n    >   indented\n    > EOF\n    $ cat a\n    2\n    indented\n",
            None,
        ),
        ("It says one.\n    $ echo two\n    one\n", "line 2: [$] echo two"),
        ("    $ false\n", "exit 1"),
        ("    $ echo one; exit 2\n    ...\n", "exit 2"),
        ("    $ echo one\n    ...\n    [exit 2]\n", "exit 2"),
        ("    $ true\n    [exit 1]\n", "exit 1"),
        ("    $ echo wrong >&2\n", "wrong"),
        ("    $ printf unended; exit 2\n    unended\n    [exit 2]\n", None),
    ],
)
def test_what_a_walk_finds(text: str, found: str | None, tmp_path: Path) -> None:
    if found is None:
        walk(steps_of(text), tmp_path)
    else:
        with pytest.raises(AssertionError, match=found):
            walk(steps_of(text), tmp_path)


def test_a_terminal_begins_with_a_command() -> None:
    with pytest.raises(ValueError, match="line 3: there is no command above 'out'"):
        steps_of("Prose.\n\n    out\n")
