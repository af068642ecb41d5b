from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from tatok.jobs.cli import app
from tatok.jobs.text.query import printable, write_result
from tatok.jobs.text.statistics import groups_text, statistics_text
from tatok.pipeline.output.manifest import claim_output
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError, ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import LAYOUT, RunRecord
from tatok.schemas.records import Grid
from tatok.statistics.distribution import describe
from tatok.statistics.groups import group_by
from tatok.statistics.sql import open_query, query
from tatok.statistics.summary import GridCount, KeptShare, summarize
from tests.support.synthetic_tokens import write_synthetic


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("syn"))
    write_synthetic(folder, 2000, rows_per_part=500, row_group_rows=100, rejects_per_part=3)
    record = RunRecord(
        started_at="2026-01-01T00:00:00+00:00",
        seconds=8.0,
        status="complete",
        num_shards=4,
        num_rows=2000,
        num_tokens=120_000,
        num_rejects=12,
        num_failed_shards=0,
    )
    OutputStore.open(folder).write_text(f"{LAYOUT.runs}/1.json", record.to_json())
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def printed(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    return result.stderr


def test_stats_in_eighty_plain_columns(output: str) -> None:
    text = printed("stats", output)
    lines = text.splitlines()
    assert lines[1].startswith("2,000 rows in 4 parts, ")
    assert max(map(len, lines[1:])) <= 80  # the first names the dataset, however long its name is
    assert "\x1b" not in text
    statistics = summarize(output)
    tokens = statistics.distribution("num_tokens")
    [row] = [line.split() for line in lines if line.startswith("num_tokens")]
    assert row[1] == f"{tokens.mean:.2f}"
    assert row[3] == f"{tokens.min:.0f}"
    assert row[9] == f"{tokens.max:.0f}"
    bars = bars_of(text, "tokens an image")
    assert [int(line.split()[3].replace(",", "")) for line in bars] == list(tokens.histogram.counts)
    assert bars[0].split()[2] == str(int(tokens.histogram.edges[1]) - 1)  # integers: the last one of the bin
    assert max(line.count("█") + line.count("#") for line in bars) == 40
    perplexity = statistics.codebooks[1].perplexity
    assert re.search(rf"^patch codes: [\d,]+ of 4,096 used \([\d.]+%\), perplexity {perplexity:,.0f}$", text, re.M)
    assert "keep each position of the 1 x 16 x 16 grid" in text
    start = next(i for i, line in enumerate(lines) if "keep each position" in line) + 1
    assert statistics.kept_share is not None
    assert lines[start].split() == [f"{100 * share:.0f}" for share in statistics.kept_share.share_THW[0, 0]]
    assert "12 rejects, 0.60% of samples" in lines
    assert f"{statistics.size.bytes_per_token:.2f} bytes a token" in text
    assert "1 run in all: 2,000 rows in 8.0 s, 250 rows/s, 15000 tokens/s" in lines


def bars_of(text: str, title: str) -> list[str]:
    lines = text.splitlines()
    start = lines.index(title) + 1
    return lines[start : lines.index("", start)]


def test_bars_of_few_and_of_equal_rows(output: str) -> None:
    statistics = summarize(output)

    def bars(column: str, title: str, values: list[float], dtype: type[np.number]) -> list[list[str]]:
        described = describe(column, np.array(values, dtype))
        assert described is not None
        text = statistics_text(dataclasses.replace(statistics, distributions=(described,)))
        return [re.sub("[█#]+", "bar", line).split() for line in bars_of(text, title)]

    def tokens(*values: float) -> list[list[str]]:
        return bars("num_tokens", "tokens an image", list(values), np.int32)

    assert tokens(256, 256, 256) == [["256", "3", "bar"]]
    assert tokens(5, 5, 6) == [["5", "2", "bar"], ["6", "1", "bar"]]
    far = tokens(27, 29, 31, 42, 44, 45, 51, 88, 325)
    assert far[0] == ["0", "..", "99", "8", "bar"]
    assert far[1] == ["100", "..", "299", "0"]  # two bins without images share a line
    assert far[2] == ["300", "..", "399", "1", "bar"]
    entropy = "entropy of an image's patches, given the globals, in bits"
    assert bars("entropy_bits", entropy, [2607.5, 2607.5], np.float32) == [["2,607.50", "2", "bar"]]


def test_no_line_of_stats_is_too_wide_for_a_terminal(output: str) -> None:
    statistics = summarize(output)
    columns = ("tokens", "positions", "patch_entropy_bits", "patch_worth_bits", "sample_id")
    run = dataclasses.replace(statistics.runs[0], started_at="2026-01-01T00:00:00.123456+00:00", seconds=1234567.0)
    wide = dataclasses.replace(
        statistics,
        size=dataclasses.replace(statistics.size, column_bytes=dict.fromkeys(columns, 10)),
        left_out={f".{number:06d} (no image, video, tar or table)": 1000 for number in range(9)},
        runs=(run, run),
    )
    text = statistics_text(wide)
    assert max(map(len, text.splitlines()[1:])) <= 80  # the first names the dataset
    assert "patch_worth_bits 20%" in text
    by_source = groups_text(group_by(output, "source_uri"))
    assert max(map(len, by_source.splitlines())) <= 80


def test_clips_are_not_called_images(output: str) -> None:
    statistics = summarize(output)
    clips = (GridCount(grid=Grid(4, 16, 16), num_rows=2000),)
    assert "tokens a clip" in statistics_text(dataclasses.replace(statistics, grids=clips))
    assert "tokens a row" in statistics_text(dataclasses.replace(statistics, grids=(*statistics.grids, *clips)))


def test_a_column_without_values_says_so(output: str) -> None:
    assert "no row has a value in metadata" in printed("stats", output, "--by", "metadata")
    assert "no row has a value" not in printed("stats", output, "--by", "label")


def test_stats_say_what_a_sample_rests_on(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tatok.statistics.summary._TOKEN_READS", 4)
    text = printed("stats", output)
    assert "measured on 400 of 2,000 rows, in evenly spread row groups; --exact reads all" in text
    document = json.loads(printed("stats", output, "--json"))
    assert document["token_basis"] == {"num_rows": 400, "num_rows_total": 2000, "exact": False}
    assert document["row_basis"]["exact"]
    assert json.loads(printed("stats", output, "--json", "--exact"))["token_basis"]["exact"]
    assert "measured" not in printed("stats", output, "--exact")


def test_stats_by_column(output: str) -> None:
    lines = printed("stats", output, "--by", "label", "--limit", "3").splitlines()
    assert lines[0].split() == ["label", "rows", "tokens", "mean", "p95", "entropy", "bits"]
    assert [line.split()[:2] for line in lines[1:4]] == [["0", "200"], ["1", "200"], ["2", "200"]]
    assert lines[4] == "the 3 largest of 10 groups; --limit shows more"
    grouped = json.loads(printed("stats", output, "--by", "label", "--json"))
    assert grouped["num_groups"] == 10
    assert grouped["groups"][0]["num_rows"] == 200
    assert "shard-000000500.tar" in printed("stats", output, "--by", "source_uri")
    assert "holds lists" in error_of("stats", output, "--by", "positions")
    assert "no column 'colour'" in error_of("stats", output, "--by", "colour")


def test_stats_of_hostile_labels_cannot_move_the_cursor(output: str) -> None:
    grouped = group_by(output, "label")
    hostile = dataclasses.replace(grouped.groups[0], value="\x1b[2Jcat\n")
    text = groups_text(dataclasses.replace(grouped, groups=(hostile,)))
    assert "\x1b" not in text
    assert "\\x1b[2Jcat\\n" in text
    assert printable("é 猫 ok") == "é 猫 ok"


def test_stats_of_an_empty_and_of_a_growing_data_set(tmp_path: Path) -> None:
    store = OutputStore.open(str(tmp_path))
    claim_output(store, JobConfig(source="a.tar", output=store.url), {"vocab_size": "64"})
    text = printed("stats", store.url)
    assert "(not complete: a run is under way, or was stopped)" in text
    assert "0 rows in 0 parts, 0 tokens" in text
    assert "no rejects" in text
    assert "no record of a finished run" in text
    assert printed("stats", store.url, "--by", "label").splitlines() == [
        "label        rows  tokens    mean    p95 entropy bits"
    ]
    assert "holds no tokenized dataset" in error_of("stats", str(tmp_path / "nothing"))


def test_large_grids_are_shown_in_blocks(output: str) -> None:
    statistics = summarize(output)
    share_THW = np.zeros((2, 39, 40))
    share_THW[:, :3, :3] = 1
    kept = KeptShare(grid=Grid(2, 39, 40), num_rows=2000, share_THW=share_THW)
    lines = statistics_text(dataclasses.replace(statistics, kept_share=kept)).splitlines()
    start = lines.index("each number is the mean of 3 x 3 positions")
    assert lines[start - 1] == "mean of 2 frames"
    block = [line.split() for line in lines[start + 1 : lines.index("", start)]]
    assert (len(block), len(block[0])) == (13, 14)
    assert block[0][0] == "100"
    assert sum(int(number) for row in block for number in row) == 100


def test_query_prints_a_plain_table(output: str) -> None:
    text = printed("query", output, "SELECT key, num_tokens, positions FROM tokens ORDER BY key LIMIT 3")
    lines = text.splitlines()
    assert lines[0].split() == ["key", "num_tokens", "positions"]
    assert len(lines) == 5
    assert lines[1].startswith("row-000000000")
    assert re.search(r"\[\d+, \d+, \d+, \d+, \d+, \d+, … \d+ more\]", text)
    assert lines[4] == "(long values are shortened; --format json shows them whole)"
    many = printed("query", output, "SELECT key FROM tokens").splitlines()
    assert len(many) == 1 + 1000 + 1
    assert many[-1] == "(the first 1,000 rows; use LIMIT, or --format csv or json for all)"
    assert printed("query", output, "SELECT key FROM tokens WHERE false").splitlines() == ["key"]


def test_query_as_csv_and_json(output: str) -> None:
    sql = "SELECT key, label, tokens, sum(num_tokens) OVER () AS total FROM tokens ORDER BY key LIMIT 2"
    rows = query(output, sql).to_pylist()
    expected = [row | {"total": int(row["total"])} for row in rows]
    assert json.loads(printed("query", output, sql, "--format", "json")) == expected
    assert json.loads(printed("query", output, "SELECT key FROM tokens WHERE false", "--format", "json")) == []
    table = list(csv.DictReader(io.StringIO(printed("query", output, sql, "--format", "csv"))))
    assert [row["key"] for row in table] == [row["key"] for row in rows]
    assert json.loads(table[0]["tokens"]) == rows[0]["tokens"]
    assert table[0]["total"] == str(rows[0]["total"])


def test_sums_of_integers_are_integers_for_pandas_and_in_files(output: str, tmp_path: Path) -> None:
    sql = "SELECT label, sum(num_tokens) AS total, avg(num_tokens) AS mean FROM tokens GROUP BY label ORDER BY label"
    table = query(output, sql)
    assert table.schema.field("total").type == pa.int64()
    printed("query", output, sql, "--output", str(tmp_path / "sums.parquet"))
    assert pq.read_table(tmp_path / "sums.parquet").equals(table)
    with open_query(output, sql) as result:
        exact = [int(total) for batch in result.batches for total in batch.column("total").to_pylist()]
    assert table["total"].to_pylist() == exact
    too_large = "SELECT (1::HUGEINT << 70) AS large FROM tokens LIMIT 1"
    with pytest.raises(ConfigError, match="a number in large has more than 64 bits"):
        query(output, too_large)
    assert printed("query", output, too_large).split() == ["large", str(1 << 70)]


def test_figures_have_short_reprs(output: str) -> None:
    statistics = summarize(output)
    figures = [
        statistics,
        *statistics.distributions,
        *(each.histogram for each in statistics.distributions),
        *statistics.codebooks,
        statistics.kept_share,
        group_by(output, "label"),
    ]
    for figure in figures:
        assert repr(figure).startswith(f"{type(figure).__name__}(")
        assert len(repr(figure)) <= 120
        assert "\n" not in repr(figure)
    assert ": 2,000 rows, 121,631 tokens, 60.8 a row; 12 rejects)" in repr(statistics)


def test_columns_of_one_name_stay_apart_in_json(output: str) -> None:
    sql = "SELECT a.key, b.key FROM tokens a JOIN tokens b ON b.source_index = a.source_index ORDER BY ALL LIMIT 1"
    [row] = json.loads(printed("query", output, sql, "--format", "json"))
    assert list(row.values()) == ["row-000000000", "row-000000000"]


def test_query_writes_files(output: str, tmp_path: Path) -> None:
    sql = "SELECT key, tokens FROM tokens ORDER BY key"
    rows = query(output, sql).to_pylist()
    assert printed("query", output, sql, "--output", str(tmp_path / "a.parquet")) == ""
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows
    printed("query", output, sql, "--output", str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text()) == rows
    printed("query", output, sql, "--format", "csv", "--output", str(tmp_path / "a.txt"))
    assert (tmp_path / "a.txt").read_text().startswith("key,tokens\nrow-000000000,")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.parquet", "a.txt"]
    assert "name a file with --output" in error_of("query", output, sql, "--format", "parquet")


def test_query_writes_to_a_bucket(output: str, s3_bucket: str) -> None:
    url = f"s3://{s3_bucket}/results/keys.parquet"
    printed("query", output, "SELECT key FROM tokens", "--output", url)
    with fsspec.open(url) as file:
        assert pq.read_table(file).num_rows == 2000


def test_a_failed_query_leaves_the_file_that_was_there(output: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("before")
    failing = "SELECT CASE WHEN source_index = 499 THEN key::INT END FROM tokens"
    assert "Conversion Error" in error_of("query", output, failing, "--output", str(path))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with open_query(output, "SELECT 1 AS a") as result:
        with pytest.raises(CommitError, match=r"nowhere/a\.csv"):
            write_result(result, "csv", str(tmp_path / "nowhere" / "a.csv"))
        with pytest.raises(ConfigError, match="fsspec package"):
            write_result(result, "csv", "nosuchscheme://a.csv")


def test_query_errors_are_one_message(output: str) -> None:
    message = error_of("query", output, "SELECT colour FROM tokens")
    assert message.startswith("error: the query cannot be run: Binder Error")
    assert "tokens: sample_id, key," in message
    assert "Traceback" not in message
    typing_error = error_of("query", output, "SELEC key FROM tokens")
    assert 'syntax error at or near "SELEC"' in typing_error
    assert "Tables and their columns" not in typing_error  # no name would mend it
    assert "must be NAME=FILE" in error_of("query", output, "SELECT 1", "--table", "captions.csv")
    twice = ["--table", "a=x.csv", "--table", "a=y.csv"]
    assert "names a twice" in error_of("query", output, "SELECT 1", *twice)
