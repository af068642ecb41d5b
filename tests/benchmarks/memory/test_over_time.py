"""The tiny twin of the bench of memory over time: a run of a few shards, and what counts as flat."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory.over_time import Quarters, measure, quarters


def test_quarters_are_medians_in_the_order_of_time() -> None:
    found = quarters([1, 9, 1, 2, 2, 2, 3, 3, 3, 4, 4, 0])
    assert found == Quarters(first_mb=1, second_mb=2, third_mb=3, last_mb=4)
    with pytest.raises(ValueError, match="3 samples of memory"):
        quarters([1, 2, 3])


@pytest.mark.parametrize(
    ("first_mb", "last_mb", "is_flat"),
    [(500, 540, True), (500, 560, False), (50, 59, True), (50, 61, False), (500, 300, True)],
)
def test_growth_is_told(first_mb: float, last_mb: float, is_flat: bool) -> None:
    found = Quarters(first_mb=first_mb, second_mb=first_mb, third_mb=last_mb, last_mb=last_mb)
    assert found.is_flat == is_flat


@pytest.mark.timeout(300)
@pytest.mark.parametrize("num_decoders", [pytest.param(0, marks=pytest.mark.long), 2])
def test_a_run_is_watched_from_its_first_shard_on(tmp_path: Path, num_decoders: int) -> None:
    # Some ten looks here; four are needed, also on a machine that is several times as quick.
    sizes = {"num_photos": 1600, "side": 32, "num_shards": 16}
    found = measure(tmp_path, **sizes, num_decoders=num_decoders, sample_every_s=0.05)
    assert (found.num_rows, found.num_findings) == (1600, 0)
    assert found.num_samples >= 4
    kinds = {"driver", "tokenizer", "ray"} | ({"decoder"} if num_decoders else set())
    assert set(found.by_kind) == kinds | {"all"}
    assert all(kind.first_mb > 10 and kind.last_mb > 10 for kind in found.by_kind.values())
    parts = sum(found.by_kind[kind].first_mb for kind in kinds)
    assert found.by_kind["all"].first_mb > 0.9 * parts
