"""Counts as people read them."""

from __future__ import annotations

import pytest

from tatok.schemas.records import count_text, is_or_are


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 shards are"), (1, "1 shard is"), (2, "2 shards are"), (12_345, "12,345 shards are")]
)
def test_one_is_not_many(count: int, text: str) -> None:
    assert f"{count_text(count, 'shard')} {is_or_are(count)}" == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 batches"), (1, "1 batch"), (2, "2 batches")])
def test_a_plural_of_its_own(count: int, text: str) -> None:
    assert count_text(count, "batch", "batches") == text
