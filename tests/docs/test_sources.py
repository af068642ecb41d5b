"""The documentation names tests: they exist, and every case of layout and store is among them."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.layouts import LAYOUTS, STORES, WITHOUT_LISTING
from tests.support.places import DOCS, ROOT

LAYOUTS_PAGE = (DOCS / "reference" / "source-layouts.md").read_text(encoding="utf-8")
SOURCES_PAGE = (DOCS / "guides" / "sources.md").read_text(encoding="utf-8")
ALL = "".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md")))
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)", ALL)))


def test_tests_are_named() -> None:
    assert len(NAMED) >= 15


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_layout_in_each_store_has_its_cell() -> None:
    cells = re.findall(r"`(\w+-(?:local|s3|gs|az|hf|http))`", LAYOUTS_PAGE)
    cases = {
        f"{layout.__name__}-{store}"
        for layout in LAYOUTS
        for store in STORES
        if not (store == "http" and layout in WITHOUT_LISTING)
    }
    assert sorted(cells) == sorted(cases)


def test_each_reject_of_reading_is_explained() -> None:
    """Those of tars are in pipeline/readers/tar.py, whose archive damage has its own names."""
    sources = [(ROOT / "pipeline" / "readers" / name).read_text() for name in ("fetch.py", "parquet.py", "files.py")]
    reasons = set(re.findall(r'reason="(\w+)"', "".join(sources))) | {"forbidden", "missing"}
    assert reasons >= {"missing", "unreachable", "unreadable_uri", "too_large", "no_image"}
    for reason in reasons:
        assert f"`{reason}`" in SOURCES_PAGE, reason
