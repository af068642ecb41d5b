from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok.dataset.packing import Batching, Bucketing, Packing, Rows
from tatok.schemas.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 64), max_size=200).map(lambda lengths: np.array(lengths, dtype=np.int64))
BATCHINGS = [Packing(tokens=64), Packing(tokens=500), Packing(tokens=4000), Bucketing(tokens=300), Rows(rows=7)]


@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
@given(lengths_R=LENGTHS, key=st.integers(0, 5), shuffle=st.booleans())
def test_every_row_is_in_one_batch_within_the_budget(
    batching: Batching, lengths_R: np.ndarray, key: int, shuffle: bool
) -> None:
    batches = batching.plan(lengths_R, (key,), shuffle=shuffle)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths_R)))
    assert all(len(batch) for batch in batches)
    for batch in batches:
        match batching:
            case Packing(tokens=tokens):
                assert lengths_R[batch].sum() <= tokens
            case Bucketing(tokens=tokens):
                assert lengths_R[batch].max() * len(batch) <= tokens
            case Rows(rows=rows):
                assert len(batch) <= rows


@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
def test_the_key_fixes_the_batches(batching: Batching) -> None:
    lengths_R = np.random.default_rng(0).integers(1, 64, 300)

    def plan(key: int) -> list[list[int]]:
        return [batch.tolist() for batch in batching.plan(lengths_R, (key,), shuffle=True)]

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


def photo_lengths(count: int) -> np.ndarray:
    return (np.random.default_rng(0).lognormal(3.5, 0.8, count).clip(0, 256) + 16).astype(np.int64)


@pytest.mark.parametrize("tokens", [512, 1024, 2048, 4096, 8192, 16384, 32768])
def test_packing_wastes_less_than_two_percent(tokens: int) -> None:
    lengths_R = photo_lengths(Packing(tokens=tokens).enough_rows(61) + 5000)
    batches = Packing(tokens=tokens).plan(lengths_R, (0,), shuffle=True)
    assert 1 - lengths_R.sum() / (len(batches) * tokens) < 0.02


def test_long_rows_pack_too() -> None:
    lengths_R = np.random.default_rng(0).integers(500, 5000, 2000)
    batches = Packing(tokens=16384).plan(lengths_R, (0,), shuffle=True)
    assert 1 - lengths_R.sum() / (len(batches) * 16384) < 0.02


def test_dealt_batches_are_alike() -> None:
    lengths_R = photo_lengths(20_000)
    batches = Packing(tokens=8192).plan(lengths_R, (0,), shuffle=True)
    totals, counts = [lengths_R[batch].sum() for batch in batches], [len(batch) for batch in batches]
    assert max(totals) - min(totals) <= 64
    assert max(counts) - min(counts) <= 1


def test_order_within_a_batch_is_not_by_length() -> None:
    lengths_R = photo_lengths(5000)
    firsts = [lengths_R[batch[0]] for batch in Packing(tokens=2048).plan(lengths_R, (0,), shuffle=True)]
    assert np.mean(firsts) < 1.3 * lengths_R.mean()


def test_buckets_hold_rows_of_like_length() -> None:
    lengths_R = photo_lengths(5000)
    batches = Bucketing(tokens=4096).plan(lengths_R, (0,), shuffle=True)
    padded = sum(len(batch) * lengths_R[batch].max() for batch in batches)
    assert lengths_R.sum() / padded > 0.95


def test_rows_without_shuffling_keep_their_order() -> None:
    batches = Rows(rows=3).plan(np.ones(8, dtype=np.int64), (0,), shuffle=False)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("batching", [Packing(tokens=63), Bucketing(tokens=63)], ids=str)
def test_a_row_that_fits_nowhere_is_named(batching: Batching) -> None:
    with pytest.raises(ConfigError, match=r"64 tokens does not fit into a batch of 63.*'num_tokens', '<=', 63"):
        batching.plan(np.array([5, 64]), (0,), shuffle=True)
