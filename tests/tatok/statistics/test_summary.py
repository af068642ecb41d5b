from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.output.manifest import claim_output
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import LAYOUT, RunRecord
from tatok.schemas.records import Grid
from tatok.statistics.distribution import describe
from tatok.statistics.groups import group_by
from tatok.statistics.summary import summarize
from tests.support.parts import commit
from tests.support.synthetic_tokens import synthetic_rows, write_synthetic


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> TokenizedData:
    """1,000 rows in 4 parts of 3 row groups each."""
    folder = tmp_path_factory.mktemp("syn")
    write_synthetic(str(folder), 1000, rows_per_part=250, row_group_rows=100, rejects_per_part=5)
    return TokenizedData.open(folder)


def replace_columns(data: TokenizedData, number: int, **columns: list[object] | np.ndarray) -> None:
    """Rewrite a part with other values in some columns, row groups as they were."""
    path = data.path(data.parts[number].name)
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for num_rows in data.parts[number].row_group_rows:
            writer.write_table(table.slice(start, num_rows))
            start += num_rows


def test_distributions_are_those_of_numpy(synthetic: TokenizedData) -> None:
    statistics = summarize(synthetic)
    table = synthetic.read_all()
    assert statistics.row_basis.exact
    for found in statistics.distributions:
        values = table.column(found.column).to_numpy().astype(np.float64)
        assert found.num_values == 1000
        assert found.mean == pytest.approx(values.mean())
        assert found.std == pytest.approx(values.std())
        assert (found.min, found.max) == (values.min(), values.max())
        wanted = np.percentile(values, [5, 25, 50, 75, 95])
        assert [found.p5, found.p25, found.median, found.p75, found.p95] == pytest.approx(wanted)
        edges = found.histogram.edges
        assert list(found.histogram.counts) == [
            int(((values >= low) & (values < high)).sum()) for low, high in pairwise(edges)
        ]
        assert sum(found.histogram.counts) == 1000
    assert {each.column for each in statistics.distributions} >= {"num_tokens", "entropy_bits", "entropy_max_bits"}


@given(
    st.one_of(
        st.lists(st.integers(-(2**40), 2**40), min_size=1).map(lambda values: np.array(values, np.int64)),
        st.lists(st.floats(-(2**60), 2**60, width=32), min_size=1).map(lambda values: np.array(values, np.float32)),
        st.lists(st.integers(-1000, 1000).map(lambda number: number / 1000), min_size=1).map(np.array),
        st.lists(st.integers(0, 9).map(lambda number: 1e15 + number), min_size=1).map(np.array),
    )
)
def test_every_value_is_in_the_bin_that_claims_it(values: np.ndarray) -> None:
    found = describe("x", values)
    assert found is not None
    edges, counts = np.array(found.histogram.edges), found.histogram.counts
    assert len(counts) == len(edges) - 1 <= 21
    assert np.all(np.diff(edges) > 0)
    below = [np.count_nonzero(values.astype(np.float64) < edge) for edge in edges]
    assert below[0] == 0
    assert np.diff(below).tolist() == list(counts)
    assert sum(counts) == len(values)


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [
        ([27, 29, 31, 42, 45, 51], (20, 30, 40, 50, 60), (2, 1, 2, 1)),
        ([256] * 6, (256, 257), (6,)),
        ([0], (0, 1), (1,)),
        ([5, 5, 5, 5, 5, 6], (5, 6, 7), (5, 1)),
        ([2607.3] * 9, (2605, 2610), (9,)),
        ([-0.25, -0.25], (-0.25, -0.2495), (2,)),
        ([0.0, 0.0], (0, 1), (2,)),
        ([10.1, 11.9], (10, 12), (2,)),
    ],
)
def test_few_or_equal_values_make_few_bins(
    values: list[float], edges: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    found = describe("x", np.array(values))
    assert found is not None
    assert (found.histogram.edges, found.histogram.counts) == (edges, counts)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.sampled_from([np.int32, np.float32]))
def test_there_are_at_most_as_many_bins_as_values(values: list[int], dtype: type[np.number]) -> None:
    found = describe("x", np.array(values, dtype))
    assert found is not None
    assert len(found.histogram.counts) <= len(values)


def test_values_that_are_not_finite_are_counted_apart() -> None:
    found = describe("x", np.array([1.0, math.nan, 3.0, math.inf]))
    assert found is not None
    assert (found.num_values, found.num_not_finite, found.mean, found.max) == (2, 2, 2.0, 3.0)
    assert describe("x", np.array([math.nan])) is None


def test_codes_and_positions_are_counted_by_kind(synthetic: TokenizedData) -> None:
    statistics = summarize(synthetic)
    codes_of = {"global": np.zeros(4096, np.int64), "patch": np.zeros(4096, np.int64)}
    kept = np.zeros(256)
    for row in synthetic.read_all(["tokens", "positions", "num_global_tokens"]).to_pylist():
        np.add.at(codes_of["global"], row["tokens"][: row["num_global_tokens"]], 1)
        np.add.at(codes_of["patch"], row["tokens"][row["num_global_tokens"] :], 1)
        kept[row["positions"]] += 1
    for use in statistics.codebooks:
        np.testing.assert_array_equal(use.counts, codes_of[use.kind])
        shares = use.counts[use.counts > 0] / use.counts.sum()
        assert use.num_tokens == use.counts.sum()
        assert use.share_used == len(shares) / 4096
        assert use.perplexity == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert [use.kind for use in statistics.codebooks] == ["global", "patch"]
    assert sum(use.num_tokens for use in statistics.codebooks) == statistics.num_tokens == synthetic.num_tokens
    assert statistics.kept_share is not None
    assert statistics.kept_share.num_rows == 1000
    np.testing.assert_allclose(statistics.kept_share.share_THW, kept.reshape(1, 16, 16) / 1000)


def test_perplexity_of_equally_frequent_codes_is_the_vocabulary(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 64)
    data = TokenizedData.open(tmp_path)
    tokens = np.arange(64 * 64).reshape(64, 64).tolist()  # each of the 4,096 codes once
    replace_columns(data, 0, tokens=tokens, num_global_tokens=[64] * 64, positions=[[]] * 64)
    of_globals, of_patches = summarize(data).codebooks
    assert of_globals.perplexity == pytest.approx(4096)
    assert of_globals.num_codes_used == 4096
    assert (of_patches.perplexity, of_patches.num_codes_used, of_patches.num_tokens) == (0, 0, 0)


def test_rows_of_differing_grids(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 20, rows_per_part=10)
    data = TokenizedData.open(tmp_path)
    # The second part: seven rows of 2 x 3 x 4 that keep position 23, three of another grid; globals 1 or 2.
    grids = {"grid_frames": [2] * 7 + [1] * 3, "grid_height": [3] * 7 + [5] * 3, "grid_width": [4] * 7 + [5] * 3}
    tokens = [[9, 5]] * 7 + [[9, 9]] * 3
    num_global = [1] * 7 + [2] * 3
    positions = [[23]] * 7 + [[]] * 3
    replace_columns(data, 1, tokens=tokens, num_global_tokens=num_global, positions=positions, **grids)
    statistics = summarize(data)
    assert [(each.grid, each.num_rows) for each in statistics.grids] == [
        (Grid(1, 16, 16), 10),
        (Grid(2, 3, 4), 7),
        (Grid(1, 5, 5), 3),
    ]
    assert statistics.kept_share is not None
    assert statistics.kept_share.num_rows == 10

    first = pq.read_table(data.path(data.parts[0].name))
    num_kept = sum(map(len, first.column("positions").to_pylist()))
    assert statistics.kept_share.share_THW.sum() * 10 == pytest.approx(num_kept)
    alone = dataclasses.replace(data, parts=data.parts[1:])
    kept = summarize(alone).kept_share
    assert kept is not None
    assert kept.share_THW.shape == (2, 3, 4)
    assert kept.share_THW[1, 2, 3] == 1
    assert kept.share_THW.sum() == 1
    of_globals, of_patches = summarize(alone).codebooks
    assert (of_globals.counts[9], of_globals.num_tokens) == (13, 13)
    assert (of_patches.counts[5], of_patches.num_tokens) == (7, 7)


@pytest.mark.parametrize(("column", "value"), [("tokens", 4096), ("positions", 256)])
def test_impossible_codes_and_positions_name_the_part(column: str, value: int, tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 10)
    data = TokenizedData.open(tmp_path)
    lists = data.read_all([column]).column(column).to_pylist()
    longest = max(lists, key=len)
    longest[-1] = value
    replace_columns(data, 0, **{column: lists})
    with pytest.raises(SourceError, match=rf"part-0+\.parquet holds the (code|position) {value}.*delete it"):
        summarize(data)


def test_a_sample_says_what_it_rests_on_and_is_the_same_each_time(synthetic: TokenizedData) -> None:
    sampled = summarize(synthetic, max_rows=400, max_tokens=synthetic.num_tokens // 4)
    assert not sampled.row_basis.exact
    assert sampled.row_basis.num_rows_total == 1000
    assert 300 <= sampled.row_basis.num_rows <= 500
    assert 150 <= sampled.token_basis.num_rows <= 350
    assert sampled.distribution("num_tokens").num_values == sampled.row_basis.num_rows
    assert sampled.kept_share is not None
    assert sampled.kept_share.num_rows == sampled.token_basis.num_rows
    assert sampled.num_rows == 1000
    assert sampled.num_tokens == synthetic.num_tokens
    whole = summarize(synthetic)
    assert sampled.distribution("num_tokens").mean == pytest.approx(whole.distribution("num_tokens").mean, rel=0.2)
    again = summarize(synthetic, max_rows=400, max_tokens=synthetic.num_tokens // 4)
    assert again.to_json() == sampled.to_json()
    exact = summarize(synthetic, max_rows=1, max_tokens=1, exact=True)
    assert exact.to_json() == whole.to_json()
    least = summarize(synthetic, max_rows=1, max_tokens=1)
    assert least.row_basis.num_rows == least.token_basis.num_rows == 100  # the row group in the middle


def test_rejects_sizes_and_counts(synthetic: TokenizedData) -> None:
    statistics = summarize(synthetic)
    assert statistics.num_rejects == 20
    assert list(statistics.rejects.items()) == [("corrupt", 8), ("truncated", 8), ("too_large", 4)]
    num_bytes = sum(Path(synthetic.path(part.name)).stat().st_size for part in synthetic.parts)
    assert statistics.size.num_bytes == num_bytes
    assert statistics.size.bytes_per_token == num_bytes / synthetic.num_tokens
    assert statistics.size.num_parts_measured == 4
    assert set(statistics.size.column_bytes) == set(synthetic.schema.names)
    assert num_bytes / 2 < sum(statistics.size.column_bytes.values()) < num_bytes
    assert next(iter(statistics.size.column_bytes)) == "tokens"  # the largest first


def test_an_unfinished_empty_run_has_no_distributions(tmp_path: Path) -> None:
    store = OutputStore.open(str(tmp_path))
    claim_output(store, JobConfig(source="a.tar", output=store.url), {"vocab_size": "64"})
    statistics = summarize(tmp_path)
    assert not statistics.complete
    assert (statistics.num_rows, statistics.num_tokens, statistics.distributions) == (0, 0, ())
    assert (statistics.grids, statistics.kept_share, statistics.throughput) == ((), None, None)
    assert [use.perplexity for use in statistics.codebooks] == [0, 0]
    assert json.loads(statistics.to_json())["size"]["bytes_per_token"] == 0
    assert group_by(tmp_path, "label").groups == ()


def test_a_shard_without_a_row_and_one_that_is_new(tmp_path: Path) -> None:
    store = OutputStore.open(str(tmp_path / "out"))
    claim_output(store, JobConfig(source="a.tar", output=store.url), {"vocab_size": "1024"})
    commit(store, "s0")
    statistics = summarize(store.url)
    assert not statistics.complete
    assert statistics.num_rows == statistics.row_basis.num_rows == 7
    assert statistics.rejects == {"corrupt": 1}
    write_synthetic(str(tmp_path / "none"), 5)
    data = TokenizedData.open(tmp_path / "none")
    pq.write_table(synthetic_rows(np.random.default_rng(0), 0, 5).slice(0, 0), data.path(data.parts[0].name))
    nothing = dataclasses.replace(data.parts[0], num_rows=0, num_tokens=0, row_group_rows=())
    assert summarize(dataclasses.replace(data, parts=(nothing,))).distributions == ()


def test_throughput_of_each_run_and_of_all(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 30)
    record = RunRecord(
        started_at="2026-01-01T00:00:00+00:00",
        seconds=10.0,
        status="complete",
        num_shards=1,
        num_rows=20,
        num_tokens=1000,
        num_rejects=0,
        num_failed_shards=0,
    )
    store = OutputStore.open(str(tmp_path))
    store.write_text(f"{LAYOUT.runs}/1.json", record.to_json())
    later = dataclasses.replace(record, started_at="2026-01-02T00:00:00+00:00", seconds=0.0, num_rows=10)
    store.write_text(f"{LAYOUT.runs}/2.json", later.to_json())
    statistics = summarize(tmp_path)
    assert [(run.rows_per_second, run.tokens_per_second) for run in statistics.runs] == [(2, 100), (0, 0)]
    assert statistics.throughput is not None
    assert statistics.throughput.num_rows == 30
    assert statistics.throughput.rows_per_second == 3
    assert statistics.throughput.tokens_per_second == 200


def test_the_json_says_what_python_says(synthetic: TokenizedData) -> None:
    statistics = summarize(synthetic)
    document = json.loads(statistics.to_json())
    assert document["row_basis"] == {"num_rows": 1000, "num_rows_total": 1000, "exact": True}
    assert document["distributions"][0]["p95"] == statistics.distribution("num_tokens").p95
    assert document["codebooks"][1]["perplexity"] == statistics.codebooks[1].perplexity
    assert "counts" not in document["codebooks"][0]
    assert statistics.kept_share is not None
    assert document["kept_share"]["share_THW"] == statistics.kept_share.share_THW.tolist()
    assert document["grids"] == [{"grid": {"frames": 1, "height": 16, "width": 16}, "num_rows": 1000}]
    with pytest.raises(KeyError):
        statistics.distribution("key")


def test_groups(synthetic: TokenizedData) -> None:
    table = synthetic.read_all(["label", "num_tokens", "entropy_bits"]).to_pylist()
    grouped = group_by(synthetic, "label", limit=3)
    assert (grouped.num_groups, grouped.basis.num_rows, len(grouped.groups)) == (10, 1000, 3)
    for group in grouped.groups:
        rows = [row for row in table if row["label"] == group.value]
        tokens = [row["num_tokens"] for row in rows]
        assert (group.num_rows, group.num_tokens) == (len(rows), sum(tokens))
        assert group.token_share == pytest.approx(sum(tokens) / synthetic.num_tokens)
        assert group.p95_tokens == pytest.approx(np.percentile(tokens, 95))
        assert group.mean_entropy_bits == pytest.approx(np.mean([row["entropy_bits"] for row in rows]))
    assert [group.value for group in group_by(synthetic, "grid_height").groups] == [16]
    assert len(group_by(synthetic, "num_tokens", limit=1000).groups) > 20  # a column that is read anyway
    sampled = group_by(synthetic, "label", max_rows=100)
    assert sampled.basis.num_rows == 100
    assert group_by(synthetic, "label", max_rows=100, exact=True) == group_by(synthetic, "label")


def test_groups_with_and_without_a_value(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 20, rows_per_part=10)
    data = TokenizedData.open(tmp_path)
    replace_columns(data, 0, label=["cat", None, None, "cat", None, "dog", None, None, None, None])
    replace_columns(data, 1, label=["dog"] * 10)
    groups = group_by(data, "label").groups
    assert [(group.value, group.num_rows) for group in groups] == [("dog", 11), (None, 7), ("cat", 2)]
    everything = group_by(data, "metadata")
    assert [(group.value, group.num_rows) for group in everything.groups] == [(None, 20)]


def test_groups_of_what_cannot_be_grouped(synthetic: TokenizedData) -> None:
    with pytest.raises(ConfigError, match=r"no column 'colour'.* it has sample_id, key"):
        group_by(synthetic, "colour")
    with pytest.raises(ConfigError, match="'tokens' holds lists"):
        group_by(synthetic, "tokens")
    with pytest.raises(ConfigError, match="limit is 0"):
        group_by(synthetic, "label", limit=0)


def test_statistics_of_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    for url in (str(tmp_path), f"s3://{s3_bucket}/statistics"):
        write_synthetic(url, 300, rows_per_part=100, row_group_rows=40)
    here, there = summarize(tmp_path), summarize(f"s3://{s3_bucket}/statistics")
    assert there.to_json().replace(there.url, here.url) == here.to_json()


def test_neither_torch_nor_pandas_is_loaded(synthetic: TokenizedData) -> None:
    code = (
        "import sys; from tatok import statistics; statistics.summarize(sys.argv[1]); "
        "statistics.group_by(sys.argv[1], 'label'); "
        "print([name for name in ('torch', 'pandas', 'duckdb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, synthetic.url], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
