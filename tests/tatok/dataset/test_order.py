from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok.dataset.order import interleave, permutation, plan_rounds


@given(st.integers(0, 300), st.lists(st.integers(0, 1 << 40), max_size=3))
def test_a_permutation_holds_everything_once(num: int, key: list[int]) -> None:
    assert sorted(permutation(num, *key).tolist()) == list(range(num))


def test_permutations_are_fixed_for_ever() -> None:
    # Resuming a run months later depends on it; the figures are what the first version gave.
    assert permutation(8, 0).tolist() == PERMUTATION_OF_KEY_0
    assert permutation(8, 1, 2).tolist() == PERMUTATION_OF_KEY_1_2


PERMUTATION_OF_KEY_0 = [2, 7, 3, 4, 0, 1, 5, 6]
PERMUTATION_OF_KEY_1_2 = [6, 3, 2, 0, 1, 4, 5, 7]


def test_permutations_are_even() -> None:
    places = np.array([permutation(10, seed) for seed in range(4000)])
    counts = np.array([[(places[:, column] == value).sum() for value in range(10)] for column in range(10)])
    assert abs(counts / 400 - 1).max() < 0.25  # five standard deviations of a count of 400 are 0.24 of it


ROUNDS = {"seed": 1, "epoch": 2, "window_rows": 50, "num_lanes": 3}


@given(st.lists(st.integers(1, 60), max_size=40), st.booleans())
def test_every_block_is_in_one_window(rows: list[int], shuffle: bool) -> None:
    rounds = plan_rounds(np.array(rows, dtype=np.int64), **ROUNDS, shuffle=shuffle)
    blocks = [block for windows in rounds for window in windows for block in window.tolist()]
    assert sorted(blocks) == list(range(len(rows)))
    assert all(len(windows) <= 3 for windows in rounds)
    if not shuffle:
        assert blocks == sorted(blocks)
    sizes = [sum(rows[block] for block in window) for windows in rounds for window in windows]
    assert all(size >= 50 for size in sizes[:-1])
    assert not sizes or sizes[-1] >= 25 or len(sizes) == 1


def test_epochs_and_seeds_differ() -> None:
    def first(**changes: int) -> list[int]:
        return np.concatenate(plan_rounds(np.full(20, 10), **(ROUNDS | changes), shuffle=True)[0]).tolist()

    assert first() == first()
    assert first() != first(epoch=3)
    assert first() != first(seed=2)


@pytest.mark.parametrize("counts", [[3, 1, 2], [0, 2], [], [1]])
def test_batches_are_dealt_in_turn(counts: list[int]) -> None:
    windows, numbers = interleave(np.array(counts, dtype=np.int64))
    expected = [(w, k) for k in range(max(counts, default=0)) for w in range(len(counts)) if k < counts[w]]
    assert list(zip(windows.tolist(), numbers.tolist(), strict=True)) == expected
