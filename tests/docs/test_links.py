"""The pages of the documentation: each is in the index, links lead somewhere, and what is named is there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.places import DOCS, ROOT

INDEX = DOCS / "README.md"
KINDS = {
    "guides": "guide",
    "reference": "reference",
    "explanation": "explanation",
    "results": "results",
    "decisions": "decision",
}
OF_DOCS = sorted(DOCS.rglob("*.md"))
PAGES = [*OF_DOCS, *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"))]
BY_NAME = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def headings(page: Path) -> set[str]:
    """The fragments that links into a page may have."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@BY_NAME
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, fragment = link.partition("#")
        target = Path(os.path.normpath(page.parent / path)) if path else page
        assert target.exists(), link
        if fragment:
            assert fragment in headings(target), link


@BY_NAME
def test_files_that_are_named_are_there(page: Path) -> None:
    tops = "tatok|pipeline|jobs|schemas|benchmarks|tests|examples|deploy|docs"
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":  # which names what was, too
        text = text.replace("pipeline/read_tar.py", "pipeline/readers/tar.py")
    in_ticks = re.findall(rf"`((?:{tops})/[\w./-]*)(?:::\w+)?`", text)
    in_commands = re.findall(rf"(?<![\w/])((?:{tops})/[\w/-]+\.(?:py|yaml|sh|md|tar))\b", text)
    for name in (*in_ticks, *in_commands):
        assert (ROOT / name).exists(), name


def test_the_index_lists_every_page_with_its_kind() -> None:
    rows = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \| (\w+)", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {link: kind for text, link, kind in rows if text == link}
    actual = {str(page.relative_to(DOCS)): KINDS[page.relative_to(DOCS).parts[0]] for page in OF_DOCS if page != INDEX}
    assert listed == actual


@pytest.mark.parametrize("page", OF_DOCS, ids=lambda page: str(page.relative_to(DOCS)))
def test_names_are_lower_case_with_dashes(page: Path) -> None:
    assert page == INDEX or re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.md", page.name)
