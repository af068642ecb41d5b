from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.jobs.help import group_commands


def shown(*arguments: str, columns: str = "80") -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": columns})
    assert result.exit_code == 0
    return result.stdout


def test_commands_stand_in_groups_and_tokenize_first() -> None:
    text = shown()
    headings = [line.split("─ ")[1].split(" ─")[0] for line in text.splitlines() if line.startswith("╭")]
    assert headings[:2] == ["Options", "Tokenize"]
    assert "Commands" not in headings, "every command is in a group"
    names = [line.split()[1] for line in text.splitlines() if line.startswith("│ ") and line[2].isalpha()]
    assert names[0] == "tokenize"
    assert sorted(names) == sorted(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [(), ("tokenize",), ("export",), ("export", "hub"), ("generator", "sample")])
def test_flags_have_no_type_and_options_have(command: tuple[str, ...]) -> None:
    text = shown(*command)
    assert "--help" in text
    assert "<bool>" not in text
    if command in (("tokenize",), ("export", "hub")):
        assert "<str>" in text


def test_every_option_is_whole_on_80_columns() -> None:
    text = shown("tokenize")
    assert "…" not in text
    assert "--label-from-folder " in text
    assert "Off: --no-label-from-folder." in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("columns", [80, 120])
def test_paragraphs_end_where_the_terminal_does(columns: int) -> None:
    """Not where the lines of the source code do: a line ends before a word that has no room."""
    group = get_command(app)
    for name in group.commands:  # type: ignore[attr-defined]
        lines = [line.strip() for line in shown(name, columns=f"{columns}").splitlines()]
        prose = lines[: next((n for n, line in enumerate(lines) if line.startswith("╭")), None)]
        for line, below in pairwise(prose):
            if line and below and not line.startswith("Usage:"):
                assert len(line) + 1 + len(below.split()[0]) > columns - 2, f"{name}: {line!r} has room"


def every_parameter() -> Iterator[tuple[str, Any]]:
    def below(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, f"{prefix}{name} ")
            else:
                yield from ((f"{prefix}{name} {param.name}", param) for param in command.params)

    group = get_command(app)
    yield from ((f"tatok {param.name}", param) for param in group.params)
    yield from below(group, "")


def test_every_help_is_a_sentence_and_says_a_default_once() -> None:
    for name, param in every_parameter():
        if "completion" in name:  # typer's own
            continue
        text = param.help or ""
        assert text.endswith("."), f"{name}: {text!r}"
        assert text[0].isupper() or text.startswith(("torch", "tatok")), f"{name}: {text!r}"
        has_default = param.show_default and param.default not in (None, False, [], ()) and not param.required
        assert not (has_default and "default:" in text.lower()), f"{name} says its default twice: {text!r}"


def test_usage_names_arguments_as_their_metavars_do() -> None:
    for command, usage in (
        (("tokenize",), "[SOURCE... OUTPUT]"),
        (("doctor",), "JOB.yaml"),
        (("export", "hub"), "OUTPUT DEST"),
    ):
        [line] = [line.strip() for line in shown(*command).splitlines() if "Usage:" in line]
        assert line.endswith(f" {' '.join(command)} [OPTIONS] {usage}")


def test_what_help_does_not_list_is_parsed() -> None:
    shown("tokenize")  # help first: it must leave the command as it was
    result = CliRunner().invoke(app, ["tokenize", "--no-label-from-folder", "--no-patch-entropy", "--sorce"])
    assert result.exit_code == 2
    assert "--sorce" in result.stderr


def test_a_command_without_a_group_is_an_error() -> None:
    commands = typer.Typer()
    commands.command()(lambda: None)
    commands.command("b")(lambda: None)
    with pytest.raises(ValueError, match=r"differ: .*'b'"):
        group_commands(commands, {"One": ("<lambda>",)})
