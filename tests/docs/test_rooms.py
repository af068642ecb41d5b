"""The tree in the README names every room, and each room says what its files are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.places import ROOT

PACKAGES = ("schemas", "tatok", "pipeline", "jobs")
ROOMS = sorted(path.parent for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py"))


def named_in_the_tree() -> set[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fenced = re.findall(r"^```\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    tree = next(block for block in fenced if block.startswith("schemas/"))
    named, package = set(), ""
    for line in tree.splitlines():
        entry = re.fullmatch(r"( *)(\w+)/ +\S.*", line)
        assert entry, line
        if not entry[1]:
            package = entry[2]
        named.add(f"{package}/{entry[2]}" if entry[1] else package)
    return named


def test_the_tree_names_every_room_and_nothing_else() -> None:
    named = named_in_the_tree()
    assert {name for name in named if "/" in name} == {str(room.relative_to(ROOT)) for room in ROOMS}
    assert {name for name in named if "/" not in name} >= {*PACKAGES, "benchmarks", "tests", "docs"}
    for name in named:
        assert (ROOT / name).is_dir(), name


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_says_what_its_files_are(room: Path) -> None:
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = set(re.findall(r"^(\w+)/? {2,}\S", said, re.MULTILINE))
    files = {path.stem for path in room.glob("*.py") if path.stem != "__init__"}
    folders = {path.name for path in room.iterdir() if path.is_dir()}
    assert files <= named, f"not named: {sorted(files - named)}"
    assert named <= files | folders, f"not there: {sorted(named - files - folders)}"
