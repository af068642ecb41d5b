"""The generated pages of docs/reference are what the code writes now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatok.jobs.reference import pages, write_pages
from tests.support.places import DOCS

PAGES = pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_stored_page_is_current(name: str) -> None:
    stored = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert stored == PAGES[name], f"{name} is out of date: make reference"


def test_pages_hold_what_they_are_about(tmp_path: Path) -> None:
    assert [path.name for path in write_pages(tmp_path / "new")] == list(PAGES)
    job, columns, commands = PAGES["job-file.md"], PAGES["columns.md"], PAGES["commands.md"]
    assert "| `preprocessing.random_crops.min_scale` | number | `1.0` |" in job
    assert "| `source` | text, or a list | required |" in job
    assert "| `tokens` | list of uint16 |" in columns
    assert "| `reason` | string |" in columns
    for command in ("tokenize", "export hub", "jobs logs", "config show"):
        assert f"## `tatok {command}`" in commands
    assert "--fail-on-reject" in commands
    assert "Exit codes: 0 every shard is committed" in commands
