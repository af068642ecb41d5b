"""Who imports whom in a checkout: modules, rooms and the rules that they keep."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Import", "astray", "circles", "imports_of", "module_name", "python_files", "room_of"]


@dataclass(frozen=True, slots=True)
class Import:
    """One module imports another; both by the names under which they are installed."""

    importer: str
    imported: str


def python_files(root: Path, tops: Sequence[str]) -> list[Path]:
    """The Python files below these folders, sorted."""
    return sorted(path for top in tops for path in (root / top).rglob("*.py"))


def module_name(root: Path, path: Path) -> str:
    """The name under which a file is imported: schemas/, pipeline/, jobs/ and examples/ are installed within tatok."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    within = () if parts[0] in ("tatok", "benchmarks", "tests") else ("tatok",)
    return ".".join((*within, *parts))


def imports_of(root: Path, tops: Sequence[str]) -> Iterator[Import]:
    """Every import, wherever it stands, those for type checkers too; raises AssertionError for a relative one."""
    for path in python_files(root, tops):
        name = module_name(root, path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (Import(name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: import absolutely, so that the rules can be checked"
                yield from (Import(name, f"{node.module}.{alias.name}") for alias in node.names)


def astray(root: Path, tops: Sequence[str]) -> list[Import]:
    """Imports of what `tops` install from which no file of theirs comes, such as a module that has moved."""
    modules = {module_name(root, path) for path in python_files(root, tops)}
    packages = {name[:end] for name in modules for end, letter in enumerate(name) if letter == "."}
    roots = {name.partition(".")[0] for name in modules}
    return [
        each
        for each in imports_of(root, tops)
        if each.imported.partition(".")[0] in roots
        and not {each.imported, each.imported.rpartition(".")[0]} & modules
        and each.imported not in packages
    ]


def room_of(name: str, rooms: Sequence[str]) -> str | None:
    """The room that a module, or a name in one, belongs to: the longest that it begins with; None outside of all."""
    found = [room for room in rooms if name == room or name.startswith(f"{room}.")]
    return max(found, key=len) if found else None


def circles(edges: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The edges that lie on a circle."""
    return sorted((a, b) for a, targets in edges.items() for b in targets if a != b and a in _reached(edges, b))


def _reached(edges: Mapping[str, set[str]], start: str) -> set[str]:
    seen, waiting = {start}, [start]
    while waiting:
        for target in edges.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen
