from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shlex
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tatok.jobs.cli import app
from tatok.jobs.text.query import print_result, printable, write_result
from tatok.jobs.text.statistics import groups_text, statistics_text
from tatok.pipeline.output.manifest import claim_output
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError, ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import RUNS, RunRecord
from tatok.schemas.records import Grid
from tatok.statistics.groups import group_by
from tatok.statistics.sql import QueryResult, open_query, query
from tatok.statistics.summary import KeptShare, summarize
from tests.support.places import ROOT
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
    OutputStore.open(folder).write_text(f"{RUNS}/1.json", record.to_json())
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


def rows_of(**columns: object) -> QueryResult:
    table = pa.table(columns)
    return QueryResult(schema=table.schema, batches=iter(table.to_batches()))


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
    start = lines.index("tokens an image") + 1
    bars = lines[start : lines.index("", start)]
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


def test_query_in_a_terminal_shows_the_columns_that_fit(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setattr("rich.console.Console", lambda **options: Console(file=shown, width=60, **options))
    print_result(rows_of(key=["a\x1b[2J", "[red]b"], number=[1, 22], text=["x" * 50, "y"], last=[1, 2]), "table")
    text = shown.getvalue()
    assert "[red]b" in text
    assert "\\x1b[2J" in text
    assert "(no room for text; choose columns, or use --format json)" in text
    assert "xxx" not in text
    assert ["a\\x1b[2J", "1", "…", "1"] in [line.split() for line in text.splitlines()]
    shown.truncate(0)
    print_result(rows_of(key=pa.array([], pa.string())), "table")
    assert "key" in shown.getvalue()


def test_a_query_of_every_column_shows_the_first_and_the_last(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", shown)
    for width in (80, 120, 50):
        shown.truncate(0)
        shown.seek(0)
        monkeypatch.setattr(
            "rich.console.Console", lambda width=width, **options: Console(file=shown, width=width, **options)
        )
        with open_query(output, "SELECT * FROM tokens ORDER BY key LIMIT 3") as result:
            names = list(result.schema.names)
            print_result(result, "table")
        text = re.sub(r"\x1b\[\d+m", "", shown.getvalue())
        heading, *_ = [line for line in text.splitlines() if line.strip()]
        before, gap, after = heading.partition("…")
        assert gap
        assert len(heading.rstrip()) <= width
        columns = [*before.split(), *after.split()]
        assert columns == names[: len(before.split())] + names[len(names) - len(after.split()) :]
        [note] = re.findall(r"no room for (.*); choose columns", text)
        assert note.split(", ") == [name for name in names if name not in columns]


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


def test_json_of_every_kind_of_value() -> None:
    result = rows_of(
        a=[float("nan")], b=[b"\x00\xff"], c=[datetime(2026, 1, 2, 3)], d=[Decimal("1.50")], e=[{"x": [None, True]}]
    )  # fmt: skip
    file = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        print_result(result, "json")
    assert json.loads(file.getvalue()) == [
        {"a": None, "b": "00ff", "c": "2026-01-02T03:00:00", "d": 1.5, "e": {"x": [None, True]}}
    ]


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
    with pytest.raises(CommitError, match=r"nowhere/a\.csv"):
        write_result(rows_of(a=[1]), "csv", str(tmp_path / "nowhere" / "a.csv"))
    with pytest.raises(ConfigError, match="fsspec package"):
        write_result(rows_of(a=[1]), "csv", "nosuchscheme://a.csv")


def test_query_errors_are_one_message(output: str) -> None:
    message = error_of("query", output, "SELECT colour FROM tokens")
    assert message.startswith("error: the query cannot be run: Binder Error")
    assert "tokens: sample_id, key," in message
    assert "Traceback" not in message
    assert "must be NAME=FILE" in error_of("query", output, "SELECT 1", "--table", "captions.csv")
    twice = ["--table", "a=x.csv", "--table", "a=y.csv"]
    assert "names a twice" in error_of("query", output, "SELECT 1", *twice)


def recipes() -> list[list[str]]:
    text = (ROOT / "docs" / "guides" / "query.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands = "".join(blocks).replace("\\\n", " ")
    return [words[1:] for words in map(shlex.split, re.findall(r"^tatok .*?(?=^tatok|\Z)", commands, re.M | re.S))]


@pytest.mark.parametrize("command", recipes(), ids=lambda command: " ".join(command)[:60].replace("\n", " "))
def test_recipes_of_the_documentation_run(
    command: list[str], output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.csv").write_text("key,caption\nrow-000000001,a cat\n")
    result = run(*[output if word == "OUTPUT" else word for word in command])
    assert result.exit_code == 0, result.output
    if "--output" not in command:
        assert len(result.stdout.splitlines()) > 1


def test_there_are_recipes() -> None:
    assert len(recipes()) >= 8


def test_python_of_the_documentation_runs(output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OUTPUT").symlink_to(output)
    text = (ROOT / "docs" / "guides" / "query.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, "query.md", "exec"), {})
