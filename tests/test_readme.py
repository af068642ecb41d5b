"""The README is true: its Python runs, its commands parse, its tree is the tree."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Path]:
    """A folder in which `make demo` has run, as far as the README's snippets can tell."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, ["demo", "--output", "demo-output"])
        assert result.exit_code == 0, result.output
        (folder / "printed.txt").write_text(result.output, encoding="utf-8")
        yield folder


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0])
def test_python_runs(code: str, demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_the_demo_prints_what_the_readme_promises(demo_folder: Path) -> None:
    printed = (demo_folder / "printed.txt").read_text(encoding="utf-8")
    assert "demo-output/picture.png" in printed.replace("\n", "")
    assert "_SUCCESS" in printed
    for key in ("astronaut", "chelsea", "coffee", "mean"):
        assert key in printed
    assert (demo_folder / "demo-output" / "picture.png").stat().st_size > 100_000


COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith(".venv/bin/tatok")
] + [shlex.split(text)[1:] for text in re.findall(r"`(tatok [^`]+--[^`]+)`", README)]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10
    assert sum("demo-output" in arguments for arguments in COMMANDS) >= 6


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_parse(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    name, *rest = arguments
    command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, rest)  # raises on an unknown option or a missing argument


@pytest.mark.parametrize("arguments", [a for a in COMMANDS if "demo-output" in a], ids=" ".join)
def test_commands_on_the_demo_run(arguments: list[str], demo_folder: Path) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_the_tree_names_every_module_and_nothing_else() -> None:
    tree = next(block for block in blocks("") if block.startswith("schemas/"))
    named, package = set(), ""
    for line in tree.splitlines():
        if top := re.match(r"(\w+)/", line):
            package = top[1]
        elif file := re.match(r"  (\w+\.py) ", line):
            named.add(f"{package}/{file[1]}")
    actual = {
        str(path.relative_to(ROOT))
        for package in ("schemas", "tatok", "pipeline", "jobs")
        for path in (ROOT / package).glob("*.py")
        if path.name != "__init__.py"
    }
    assert named == actual
