from __future__ import annotations

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.jobs.help import group_commands


def shown(*arguments: str, columns: str = "80") -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": columns, "TERMINAL_WIDTH": columns})
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
