"""The part of a document that a benchmark writes."""

from __future__ import annotations

import pytest

from benchmarks.document import put_between


def test_a_text_replaces_the_one_before() -> None:
    document = "# Title\n\n<!-- speed -->\nold\n<!-- end of speed -->\n\nafter\n"
    once = put_between(document, "speed", "new\n")
    assert once == "# Title\n\n<!-- speed -->\n\nnew\n\n<!-- end of speed -->\n\nafter\n"
    assert put_between(once, "speed", "new\n") == once


@pytest.mark.parametrize("document", ["# Title", "<!-- speed --> without an end", "<!-- size --><!-- end of size -->"])
def test_a_document_without_the_marks_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="no <!-- speed -->"):
        put_between(document, "speed", "new")
