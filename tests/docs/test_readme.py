"""README and guides are true: their Python runs, their commands parse, and those on the demo's output run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tests.support.places import DOCS, ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((DOCS / "guides").glob("*.md"))]
OF_ITS_OWN = "exports.md"  # what it writes is read again: tests/jobs/commands/test_export.py runs it as a whole


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands(page: Path) -> list[list[str]]:
    """The `tatok ...` of a page: lines of bash, which a quoted query may continue, and options named in the text."""
    found = []
    for block in blocks(page, "bash"):
        begin = r"^(?:\.venv/bin/)?tatok "
        joined = block.replace("\\\n", " ")
        found += re.findall(rf"{begin}.*?(?=^(?:\.venv/bin/)?\w+ |\Z)", joined, re.MULTILINE | re.DOTALL)
    found += re.findall(r"`(tatok [^`]+--[^`]+)`", page.read_text(encoding="utf-8"))
    return [shlex.split(text, comments=True)[1:] for text in found]


SNIPPETS = [
    pytest.param(code, page.name, id=f"{page.name}-{number}")
    for page in PAGES
    if page.name != OF_ITS_OWN
    for number, code in enumerate(blocks(page, "python"))
]
COMMANDS = [
    pytest.param(arguments, id=f"{page.name}-{' '.join(arguments)[:60]}")
    for page in PAGES
    for arguments in commands(page)
]
ON_THE_DEMO = [
    pytest.param(arguments, id=" ".join(arguments))
    for page in PAGES
    if page.name != OF_ITS_OWN
    for arguments in commands(page)
    if "demo-output" in arguments
]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Path]:
    """A folder in which `make demo` has run, as far as snippets can tell; guides call its output OUTPUT, too."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, ["demo", "--output", "demo-output"])
        assert result.exit_code == 0, result.output
        (folder / "printed.txt").write_text(result.output, encoding="utf-8")
        (folder / "OUTPUT").symlink_to("demo-output")
        yield folder


def test_the_readme_is_a_front_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_there_are_snippets_and_commands() -> None:
    assert len(SNIPPETS) >= 8
    assert len(COMMANDS) >= 40
    assert len(ON_THE_DEMO) >= 5
    assert [page.name for page in PAGES if page.name == OF_ITS_OWN] == [OF_ITS_OWN]


@pytest.mark.parametrize(("code", "name"), SNIPPETS)
def test_python_runs(code: str, name: str, demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, name, "exec"), {})


def test_the_demo_prints_what_the_readme_promises(demo_folder: Path) -> None:
    printed = (demo_folder / "printed.txt").read_text(encoding="utf-8")
    assert "demo-output.png" in printed.replace("\n", "")
    assert "_SUCCESS" in printed
    for key in ("astronaut", "chelsea", "coffee", "mean"):
        assert key in printed
    assert (demo_folder / "demo-output.png").stat().st_size > 100_000


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_parse(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)  # raises on an unknown option or a missing argument


@pytest.mark.parametrize("arguments", ON_THE_DEMO)
def test_commands_on_the_demo_run(arguments: list[str], demo_folder: Path) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"^make ([\w-]+)", "\n".join(blocks(page, "bash")), re.MULTILINE)
    named += re.findall(r"`make ([\w-]+)[^`.]*`", page.read_text(encoding="utf-8"))
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
