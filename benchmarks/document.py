"""The part of a document that a benchmark writes: what is between two marks."""

from __future__ import annotations

__all__ = ["put_between"]


def put_between(document: str, mark: str, text: str) -> str:
    """The document with a text between `<!-- mark -->` and `<!-- end of mark -->`; ValueError where it has none."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the document has no {begin} ... {end}")
    return f"{before}{begin}\n\n{text.rstrip()}\n\n{end}{after}"
