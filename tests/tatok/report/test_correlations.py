"""What goes with the number of tokens: found where it is, and not claimed where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tatok.dataset.parts import TokenizedData
from tatok.report.correlations import (
    TokenCorrelation,
    correlation_words,
    rank_correlation,
    token_correlation,
    token_correlations,
)
from tests.support.synthetic_tokens import synthetic_rows, write_synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenizedData:
    folder = tmp_path_factory.mktemp("together") / "set"
    write_synthetic(str(folder), 600, rows_per_part=200, row_group_rows=50, patch_entropy=True, patch_worth=True)
    return TokenizedData.open(folder)


def test_correlations_are_those_of_the_columns(data: TokenizedData) -> None:
    found = {each.name: each for each in token_correlations(data)}
    rows = data.read_all()
    tokens = rows["num_tokens"].to_numpy()
    worth = np.array([np.sum(each, dtype=float) for each in rows["patch_worth_bits"].to_pylist()])
    entropy, surprisal = rows["entropy_bits"].to_numpy(), rows["surprisal_bits"].to_numpy()
    pixels = rows["width"].to_numpy().astype(int) * rows["height"].to_numpy()
    expected = {"worth": worth, "entropy": entropy, "surprise": surprisal - entropy, "source size": pixels}
    for name, values in expected.items():
        assert found[name].rho == pytest.approx(rank_correlation(values, tokens))
        assert found[name].num_rows == 600
    assert found["worth"].note == "the filter went by it"
    assert not found["entropy"].note  # this dataset's fingerprint names no criterion
    assert "patches" not in found  # all have one grid
    by_size = [abs(each.rho) for each in token_correlations(data)]
    assert by_size == sorted(by_size, reverse=True)


def test_a_sample_says_so_and_is_less_sure(data: TokenizedData) -> None:
    whole, part = (
        {each.name: each for each in token_correlations(data, max_rows=rows, max_worth_rows=rows)}
        for rows in (10_000, 100)
    )
    for name in whole:
        assert (whole[name].num_rows, part[name].num_rows) == (600, 100)
        assert part[name].low <= part[name].rho <= part[name].high
    assert part["entropy"].high - part["entropy"].low > whole["entropy"].high - whole["entropy"].low


def test_the_interval_holds_the_truth_about_19_times_in_20() -> None:
    """Rank correlation of normal pairs whose Pearson's is 0.5, in samples of 40: the words do not claim too much."""
    rng, truth = np.random.default_rng(0), 6 / np.pi * np.arcsin(0.25)
    inside = 0
    for _ in range(400):
        first, noise = rng.normal(size=(2, 40))
        found = token_correlation("x", "", first, 0.5 * first + np.sqrt(0.75) * noise)
        assert found is not None
        inside += found.low <= truth <= found.high
    assert 0.91 <= inside / 400 <= 0.98


@pytest.mark.parametrize(
    ("rho", "low", "high", "words"),
    [
        (0.95, 0.9, 0.98, "almost in step"),
        (1.0, 0.999, 1.0, "almost in step"),
        (-0.7, -0.8, -0.6, "strongly, the other way"),
        (0.4, 0.3, 0.5, "moderately"),
        (0.2, 0.1, 0.3, "weakly"),
        (0.05, 0.04, 0.06, "hardly"),
        (0.6, -0.1, 0.9, "not clear"),
    ],
)
def test_words(rho: float, low: float, high: float, words: str) -> None:
    assert correlation_words(TokenCorrelation(name="x", meaning="", num_rows=9, rho=rho, low=low, high=high)) == words


def test_rows_alike_and_rows_without_entropies(data: TokenizedData, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = synthetic_rows(np.random.default_rng(1), 0, 50)

    def columns(changes: dict[str, pa.Array]) -> list[str]:
        table = rows
        for name, values in changes.items():
            table = table.set_column(table.schema.get_field_index(name), name, values)
        monkeypatch.setattr("tatok.report.correlations._read", lambda data, names, most: table.select(names))
        monkeypatch.setattr(TokenizedData, "schema", property(lambda data: table.schema))
        return [each.name for each in token_correlations(data)]

    none = {name: pa.nulls(50, pa.float32()) for name in ("entropy_bits", "entropy_max_bits", "surprisal_bits")}
    assert set(columns({})) == {"entropy", "highest entropy", "surprise", "source size"}
    assert columns(none) == ["source size"]
    assert columns({"num_tokens": pa.array([256] * 50, pa.int32())}) == []


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_too_few_rows_have_none(num_rows: int, tmp_path: Path) -> None:
    write_synthetic(str(tmp_path / "set"), num_rows)
    assert token_correlations(TokenizedData.open(tmp_path / "set")) == ()
