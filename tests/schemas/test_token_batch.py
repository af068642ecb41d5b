from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok.schemas.records import EntropyStatistics, Grid, TokenSequence
from tatok.schemas.token_batch import TokenBatch


def sequence(
    random: np.random.Generator, grid: Grid, num_global: int, *, entropy: bool, worth: bool, places: bool
) -> TokenSequence:
    kept = np.flatnonzero(random.random(grid.num_positions) < 0.5).astype(np.uint16)
    numbers = random.random(6).tolist()
    statistics = EntropyStatistics(
        **dict(zip([field.name for field in fields(EntropyStatistics)][:6], numbers, strict=True)),
        patch_entropy_bits_N=random.random(grid.num_positions, np.float32),
        patch_worth_bits_N=random.random(grid.num_positions, np.float32) if worth else None,
    )
    return TokenSequence(
        codes=random.integers(0, 4096, num_global + len(kept)).astype(np.uint16),
        positions=kept,
        num_global=num_global,
        grid=grid,
        entropy=statistics if entropy else None,
        global_frames=np.zeros(num_global, np.uint16) if places else None,
        global_cells=np.arange(num_global, dtype=np.uint16) if places else None,
    )


@st.composite
def sequences(draw: st.DrawFn) -> list[TokenSequence]:
    """Of one grid and kind: of any lengths, none among them."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    grid = Grid(draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    kind = {name: draw(st.booleans()) for name in ("entropy", "worth", "places")}
    return [sequence(random, grid, num_global, **kind) for num_global in draw(st.lists(st.integers(0, 5), max_size=6))]


def told(sequence: TokenSequence) -> bytes:
    """Everything in it, types included."""
    return pickle.dumps(
        [
            [value.dtype.str, value.tolist()] if isinstance(value, np.ndarray) else value
            for of in (sequence, sequence.entropy)
            if of is not None
            for value in (getattr(of, field.name) for field in fields(of) if field.name != "entropy")
        ]
    )


def all_told(several: TokenBatch | list[TokenSequence]) -> list[bytes]:
    return [told(one) for one in several]


@given(sequences())
def test_a_batch_is_the_sequences_that_it_is_made_of(several: list[TokenSequence]) -> None:
    batch = TokenBatch.of(several)
    assert all_told(batch) == all_told([batch[row] for row in range(len(batch))]) == all_told(several)
    assert batch.num_tokens == sum(one.num_tokens for one in several)
    assert TokenBatch.of(batch) is batch
    assert all_told(pickle.loads(pickle.dumps(batch))) == all_told(several)


@given(sequences(), st.data())
def test_parts_of_a_batch_are_parts_of_its_list(several: list[TokenSequence], data: st.DataObject) -> None:
    batch = TokenBatch.of(several)
    part = data.draw(st.slices(len(several)))
    assert all_told(batch[part]) == all_told(several[part])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(several)), max_size=3)))
    parts = [batch[a:b] for a, b in zip([0, *cuts], [*cuts, len(several)], strict=True)]
    assert all_told(TokenBatch.joined(parts)) == all_told(several)
    rows = data.draw(st.lists(st.integers(-len(several), len(several) - 1), max_size=8)) if several else []
    assert all_told(batch.take(rows)) == all_told([several[row] for row in rows])


def test_what_is_not_there_is_an_error() -> None:
    batch = TokenBatch.of(
        [sequence(np.random.default_rng(0), Grid(1, 2, 2), 4, entropy=True, worth=True, places=False)] * 3
    )
    for row in (3, -4):
        with pytest.raises(IndexError, match=f"sequence {row} of 3"):
            batch[row]
    with pytest.raises(IndexError):
        batch.take([3])
    assert repr(batch) == f"TokenBatch(3 sequences of grid (1, 2, 2), {batch.num_tokens} tokens)"


CHANGES: dict[str, tuple[Callable[[TokenSequence], TokenSequence], str]] = {
    "another grid": (lambda one: replace(one, grid=Grid(1, 4, 1)), r"grid \(1, 4, 1\), the first \(1, 2, 2\)"),
    "no entropy": (lambda one: replace(one, entropy=None), "one has an entropy"),
    "no worth": (
        lambda one: replace(one, entropy=replace(one.entropy, patch_worth_bits_N=None)),
        "1 of 2 sequences do not say what their patches are worth",
    ),
    "places": (
        lambda one: replace(one, global_frames=np.zeros(4), global_cells=np.arange(4)),
        r"\[4, 4\] frames and cells for 4 globals",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_sequences_that_do_not_go_together_are_refused(change: str) -> None:
    one = sequence(np.random.default_rng(0), Grid(1, 2, 2), 4, entropy=True, worth=True, places=False)
    changed, message = CHANGES[change]
    with pytest.raises(ValueError, match=message):
        TokenBatch.of([one, changed(one)])
    with pytest.raises(ValueError, match=r"grids|entropy|worth|global_frames"):
        TokenBatch.joined([TokenBatch.of([one]), TokenBatch.of([changed(one)])])


def test_places_must_be_one_for_each_global() -> None:
    one = sequence(np.random.default_rng(0), Grid(2, 2, 2), 4, entropy=False, worth=False, places=True)
    assert one.global_cells is not None
    for wrong in (None, one.global_cells[:3]):
        with pytest.raises(ValueError, match="frames and cells for 4 globals"):
            TokenBatch.of([replace(one, global_cells=wrong)])


def test_columns_that_do_not_fit_together_are_refused() -> None:
    batch = TokenBatch.of(
        [sequence(np.random.default_rng(0), Grid(2, 2, 2), 4, entropy=False, worth=False, places=True)] * 2
    )
    assert batch.global_frames is not None
    for wrong, message in (
        ({"codes": batch.codes[:-1]}, "codes and 3 offsets"),
        ({"position_offsets": batch.position_offsets[:-1]}, "positions and 2 offsets"),
        ({"global_cells": None}, "go together"),
        ({"global_frames": batch.global_frames[:-1]}, "7 global_frames for 8 globals"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(batch, **wrong)  # type: ignore[arg-type]
