"""The rows of a query as tables: on a terminal of any width, in a pipe, and what they say of values."""

from __future__ import annotations

import io
import json
import math
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from tatok.jobs.text.query import print_result
from tatok.statistics.sql import QueryResult, open_query
from tests.support.synthetic_tokens import write_synthetic


def rows_of(**columns: object) -> QueryResult:
    table = pa.table(columns)
    return QueryResult(schema=table.schema, batches=iter(table.to_batches()))


def on_a_terminal(result: QueryResult, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", shown)
    with monkeypatch.context() as patch:
        patch.setattr("rich.console.Console", lambda **options: Console(file=shown, width=width, **options))
        print_result(result, "table")
    return re.sub(r"\x1b\[\d+m", "", shown.getvalue())


def test_query_in_a_terminal_shows_the_columns_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"key": ["a\x1b[2J", "[red]b"], "number": [1, 22], "text": ["x" * 50, "y"], "last": [1, 2]}
    text = on_a_terminal(rows_of(**columns), 34, monkeypatch)
    assert "[red]b" in text
    assert "\\x1b[2J" in text
    assert "(no room for text; choose columns, or use --format json)" in " ".join(text.split())
    assert "xxx" not in text
    assert ["a\\x1b[2J", "1", "…", "1"] in [line.split() for line in text.splitlines()]
    assert "key" in on_a_terminal(rows_of(key=pa.array([], pa.string())), 34, monkeypatch)


def test_query_in_a_terminal_shortens_cells_before_it_leaves_out_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    uris = [f"s3://bucket/a/long/way/to/shard-{number:05}.tar" for number in range(2)]
    lists = [list(range(1000, 1100))] * 2
    columns = {"uri": uris, "lists": lists, "number": [10**17, 2], "note": ["first word, last", None]}
    whole = on_a_terminal(rows_of(**columns), 160, monkeypatch)
    assert all(uri in whole for uri in uris)
    assert "NULL" in whole  # which an empty text is not
    for width in (80, 100):
        text = on_a_terminal(rows_of(**columns), width, monkeypatch)
        assert "no room" not in text
        assert re.search(r"s3://buc[^ ]*…[^ ]*0000\.tar .*more\].* 100000000000000000", text)
        assert text.count("(long values are shortened; --format json shows them whole)") == 1
        assert max(map(len, text.splitlines())) <= width


def test_tables_tell_missing_values_and_large_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stdout", shown)
    columns = {"a": [None, ""], "b": [1234567.25, math.nan], "c": [[1, None], []], "d": [Decimal(10) ** 30, Decimal(1)]}
    print_result(rows_of(**columns), "table")
    rows = [re.split(r"  +", line.strip()) for line in shown.getvalue().splitlines()]
    assert rows[1:] == [["NULL", "1234567", "[1, NULL]", f"{10**30}"], ["nan", "[]", "1"]]


def test_a_query_of_every_column_shows_the_first_and_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_synthetic(str(tmp_path), 3)
    for width in (80, 120, 50):
        with open_query(str(tmp_path), "SELECT * FROM tokens ORDER BY key LIMIT 3") as result:
            names = list(result.schema.names)
            text = on_a_terminal(result, width, monkeypatch)
        heading, *_ = [line for line in text.splitlines() if line.strip()]
        before, gap, after = heading.partition("…")
        assert gap
        assert len(heading.rstrip()) <= width
        columns = [*before.split(), *after.split()]
        assert columns == names[: len(before.split())] + names[len(names) - len(after.split()) :]
        [note] = re.findall(r"no room for (.*); choose columns", " ".join(text.split()))
        assert note.split(", ") == [name for name in names if name not in columns]


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
