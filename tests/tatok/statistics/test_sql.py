from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.output.manifest import claim_output
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.job import JobConfig
from tatok.statistics.read_only_files import ReadOnlyFiles, StoredFile
from tatok.statistics.sql import open_query, query
from tests.support.processes import heed_interrupts
from tests.support.synthetic_tokens import write_synthetic

NUM_ROWS = 600


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenizedData:
    folder = tmp_path_factory.mktemp("syn")
    write_synthetic(
        str(folder), NUM_ROWS, rows_per_part=200, row_group_rows=100, patch_entropy=True, rejects_per_part=3
    )
    return TokenizedData.open(folder)


def snapshot(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_the_richest_images(data: TokenizedData) -> None:
    found = query(data, "SELECT * FROM tokens ORDER BY num_tokens DESC, key LIMIT 10").to_pylist()
    rows = sorted(data.read_all().to_pylist(), key=lambda row: (-row["num_tokens"], row["key"]))[:10]
    for row in rows:
        row["patch_entropy_bits"] = [float(bits) for bits in row["patch_entropy_bits"]]
    assert found == rows


def test_half_precision_entropies_can_be_selected(data: TokenizedData) -> None:
    found = query(data, "SELECT patch_entropy_bits FROM tokens").column("patch_entropy_bits")
    stored = data.read_all(["patch_entropy_bits"]).column("patch_entropy_bits")
    assert len(found) == NUM_ROWS
    np.testing.assert_array_equal(
        found.combine_chunks().flatten().to_numpy(), stored.combine_chunks().flatten().to_numpy().astype(np.float32)
    )


def test_rows_come_in_canonical_order(data: TokenizedData) -> None:
    assert query(data, "FROM tokens").column("key").to_pylist() == [f"row-{n:09}" for n in range(NUM_ROWS)]


def test_many_threads_count_right(data: TokenizedData) -> None:
    """DuckDB's threads share the handle of a part; bytes from another one's position would show."""
    expected = int(data.read_all(["tokens"]).column("tokens").combine_chunks().flatten().to_numpy().sum())
    for _ in range(5):
        [row] = query(data, "SELECT sum(code) AS codes FROM (SELECT unnest(tokens) AS code FROM tokens)").to_pylist()
        assert row["codes"] == expected


def test_rejects_and_json_columns(data: TokenizedData, tmp_path: Path) -> None:
    rows = query(data, "SELECT reason, count(*) AS n FROM rejects GROUP BY ALL ORDER BY n DESC, reason").to_pylist()
    assert rows == [{"reason": reason, "n": 3} for reason in ("corrupt", "too_large", "truncated")]
    (tmp_path / "meta.jsonl").write_text(json.dumps({"metadata": json.dumps({"by": "me", "camera": {"iso": 100}})}))
    sql = "SELECT metadata::VARCHAR ->> 'by' AS by, (metadata::VARCHAR ->> '$.camera.iso')::INT AS iso FROM meta"
    assert query(data, sql, tables={"meta": tmp_path / "meta.jsonl"}).to_pylist() == [{"by": "me", "iso": 100}]


def test_a_bucket_needs_no_extension(s3_bucket: str) -> None:
    write_synthetic(f"s3://{s3_bucket}/query", 300, rows_per_part=100, rejects_per_part=1)
    fsspec.filesystem("s3").pipe_file(f"{s3_bucket}/captions.csv", b"key,title\nrow-000000007,seven\n")
    tables = {"captions": f"s3://{s3_bucket}/captions.csv"}
    sql = "SELECT key, title, len(tokens) = num_tokens AS ok FROM captions JOIN tokens USING (key)"
    found = query(f"s3://{s3_bucket}/query", sql, tables=tables)
    assert found.to_pylist() == [{"key": "row-000000007", "title": "seven", "ok": True}]
    assert query(f"s3://{s3_bucket}/query", "SELECT count(*) AS n FROM rejects").to_pylist() == [{"n": 3}]


@pytest.mark.parametrize(
    "name", ["c.parquet", "c.csv", "c.tsv", "c.json", "c.jsonl", "c.ndjson", "c.csv.gz", "C.JSONL.gz"]
)
def test_tables_of_the_caller(name: str, data: TokenizedData, tmp_path: Path) -> None:
    rows = [{"key": f"row-{n:09}", "title": f"number, {n}"} for n in range(NUM_ROWS)]
    path = tmp_path / name
    kind = name.lower().split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if kind == "tsv" else ","
        text = {
            "csv": f"key{mark}title\n" + "".join(f'{row["key"]}{mark}"{row["title"]}"\n' for row in rows),
            "json": json.dumps(rows),
            "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        }[{"tsv": "csv", "ndjson": "jsonl"}.get(kind, kind)]
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    sql = "SELECT key, title FROM tokens JOIN Titles USING (key) ORDER BY key"
    assert query(data, sql, tables={"Titles": path}).to_pylist() == rows


def test_a_large_compressed_file_is_read_in_one_go(data: TokenizedData, tmp_path: Path) -> None:
    """Several reads, each from where the last one stopped, by any thread."""
    num_rows, filling = 60_000, np.random.default_rng(0).bytes(300 * 60_000).hex()
    text = "number,text\n" + "".join(f"{n},{filling[600 * n : 600 * n + 600]}\n" for n in range(num_rows))
    (tmp_path / "large.csv.gz").write_bytes(gzip.compress(text.encode(), 1))
    sql = "SELECT count(*) AS n, sum(number) AS total, sum(len(text)) AS length FROM large"
    [row] = query(data, sql, tables={"large": tmp_path / "large.csv.gz"}).to_pylist()
    assert row == {"n": num_rows, "total": num_rows * (num_rows - 1) // 2, "length": num_rows * 600}


def test_bad_tables(data: TokenizedData, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    for name in ("tokens", "Rejects", "a-b", "1a", 'a"b', ""):
        with pytest.raises(ConfigError, match="cannot name a table"):
            query(data, "SELECT 1", tables={name: tmp_path / "a.csv"})
    with pytest.raises(ConfigError, match=r"a\.txt.*must end in one of \.parquet"):
        query(data, "SELECT 1", tables={"a": tmp_path / "a.txt"})
    with pytest.raises(ConfigError, match=r"a\.parquet\.gz.*must end in"):
        query(data, "SELECT 1", tables={"a": tmp_path / "a.parquet.gz"})
    with pytest.raises(SourceError, match=r"nothing\.csv, the table a"):
        query(data, "SELECT 1", tables={"a": tmp_path / "nothing.csv"})
    with pytest.raises(ConfigError, match="fsspec package"):
        query(data, "SELECT 1", tables={"a": "nosuchscheme://a.csv"})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is not Parquet PAR1")
    with pytest.raises(SourceError, match=r"tables/a\.parquet"):
        query(data, "SELECT * FROM a", tables={"a": tmp_path / "bad.parquet"})
    (tmp_path / "bad.json").write_text('[{"a": 1}, {"a"')
    with pytest.raises(SourceError, match=r"bad\.json, the table a"):
        query(data, "SELECT * FROM a", tables={"a": tmp_path / "bad.json"})
    (tmp_path / "[12].csv").write_text("a\nbrackets\n")  # a wildcard, to DuckDB, for 1.csv
    (tmp_path / "1.csv").write_text("a\none\n")
    assert query(data, "FROM a", tables={"a": tmp_path / "[12].csv"}).to_pylist() == [{"a": "brackets"}]


FORBIDDEN = {
    "copy": "COPY (SELECT 1) TO '{new}'",
    "copy over a part": "COPY (SELECT 1) TO '{part}'",
    "copy in WITH": "WITH x AS (COPY (SELECT 1) TO '{new}') SELECT * FROM x",
    "copy over a part in WITH": "WITH x AS (COPY (SELECT 1) TO 'tatok://data/{name}') SELECT * FROM x",
    "copy from": "COPY tokens FROM '{elsewhere}'",
    "explain analyze": "EXPLAIN ANALYZE COPY (SELECT 1) TO '{new}'",
    "export": "EXPORT DATABASE '{new}'",
    "import": "IMPORT DATABASE '{folder}'",
    "attach": "ATTACH '{new}' AS other",
    "attach in memory": "ATTACH ':memory:' AS other",
    "install": "INSTALL httpfs",
    "load": "LOAD httpfs",
    "load a path": "LOAD '{elsewhere}'",
    "set": "SET enable_external_access = true",
    "set replacements": "SET python_enable_replacements = true",
    "reset": "RESET lock_configuration",
    "pragma": "PRAGMA enable_profiling",
    "call": "CALL pragma_version()",
    "use": "USE temp",
    "create table": "CREATE TABLE x AS SELECT 1",
    "create temporary table": "CREATE TEMP TABLE x AS SELECT 1",
    "create view": "CREATE OR REPLACE VIEW tokens AS SELECT 1",
    "create macro": "CREATE MACRO f(a) AS a",
    "create secret": "CREATE SECRET (TYPE s3)",
    "insert": "INSERT INTO tokens SELECT * FROM tokens",
    "insert into a given table": "INSERT INTO given VALUES (2)",
    "insert in WITH": "WITH x AS (INSERT INTO given VALUES (2) RETURNING *) SELECT * FROM x",
    "delete in WITH": "WITH x AS (DELETE FROM given RETURNING *) SELECT * FROM x",
    "update": "UPDATE given SET a = 2",
    "drop": "DROP VIEW tokens",
    "alter": "ALTER VIEW tokens RENAME TO x",
    "transaction": "COMMIT",
    "prepare": "PREPARE x AS SELECT 1",
    "two statements": "SELECT 1; SELECT 2",
    "hidden second statement": "SELECT 1; COPY (SELECT 1) TO '{new}' --",
    "nothing": "-- only a comment",
    "read_csv": "SELECT * FROM read_csv('{elsewhere}')",
    "read_json": "SELECT * FROM read_json('{elsewhere}')",
    "read_text": "SELECT * FROM read_text('{elsewhere}')",
    "read_blob": "SELECT * FROM read_blob('{elsewhere}')",
    "read_text of run.json": "SELECT * FROM read_text('{folder}/_run.json')",
    "read_parquet": "SELECT * FROM read_parquet('{other}')",
    "the parts by their paths": "SELECT * FROM read_parquet('{folder}/data/*.parquet')",
    "the parts by way of ours": "SELECT * FROM read_text('tatok://data/../_run.json')",
    "parquet_metadata": "SELECT * FROM parquet_metadata('{other}')",
    "sniff_csv": "SELECT * FROM sniff_csv('{elsewhere}')",
    "read_text by way of the spill folder": (
        "SELECT * FROM read_text(current_setting('temp_directory') || '/../../../../../../..{elsewhere}')"
    ),
    "read_text in a subquery": "SELECT (SELECT content FROM read_text('{elsewhere}')) FROM tokens",
    "glob": "SELECT * FROM glob('{folder}/*')",
    "glob of ours": "SELECT * FROM glob('tatok://*')",
    "a file as a table": "SELECT * FROM '{elsewhere}'",
    "a file as a table in WITH": "WITH x AS (SELECT * FROM '{elsewhere}') SELECT * FROM x",
    "query()": "SELECT * FROM query('COPY (SELECT 1) TO ''{new}''')",
    "http": "SELECT * FROM 'http://127.0.0.1:9/x.parquet'",
    "https": "SELECT * FROM read_parquet('https://127.0.0.1:9/x.parquet')",
    "s3": "SELECT * FROM read_parquet('s3://photos/x.parquet')",
    "hf": "SELECT * FROM 'hf://datasets/a/b/x.parquet'",
    "getenv": "SELECT getenv('HOME')",
    "an Arrow table of the caller": "SELECT * FROM local_table",
    "a frame of the caller": "SELECT * FROM local_frame",
    "an array of the caller": "SELECT * FROM local_array",
    "logging to a file": "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '{new}')",
    "profiling to a file": "SELECT * FROM enable_profiling(save_location = '{new}')",
}


@pytest.mark.parametrize("sql", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_a_query_reads_the_data_set_and_nothing_else(sql: str, data: TokenizedData, tmp_path: Path) -> None:
    local_table = pa.table({"a": [1]})
    local_frame = local_table.to_pandas()  # noqa: F841
    local_array = np.ones(3)  # noqa: F841
    (tmp_path / "elsewhere.csv").write_text("a\nsecret\n")
    (tmp_path / "given.csv").write_text("a\n1\n")
    pq.write_table(pa.table({"a": ["secret"]}), tmp_path / "other.parquet")
    places = {
        "elsewhere": tmp_path / "elsewhere.csv",
        "other": tmp_path / "other.parquet",
        "new": tmp_path / "new",
        "folder": data.url,
        "part": data.path(data.parts[0].name),
        "name": data.parts[0].name,
    }
    before = snapshot(data.url), snapshot(str(tmp_path))
    with pytest.raises(ConfigError, match="the query cannot be run") as raised:
        query(data, sql.format(**places), tables={"given": tmp_path / "given.csv"})
    assert "secret\n" not in str(raised.value)
    assert (snapshot(data.url), snapshot(str(tmp_path))) == before


def test_the_forbidden_statements_would_work_elsewhere(tmp_path: Path) -> None:
    """That nothing above fails merely for being malformed: plain DuckDB does what the most dangerous of them say."""
    import duckdb

    (tmp_path / "elsewhere.csv").write_text("a\nsecret\n")
    new, elsewhere = tmp_path / "new", tmp_path / "elsewhere.csv"
    with duckdb.connect(":memory:") as connection:
        connection.sql(FORBIDDEN["copy in WITH"].format(new=new)).fetchall()
        assert new.exists()
        assert connection.sql(FORBIDDEN["read_csv"].format(elsewhere=elsewhere)).fetchall() == [("secret",)]
        local_table = pa.table({"a": [1]})  # noqa: F841
        assert connection.sql(FORBIDDEN["an Arrow table of the caller"]).fetchall() == [(1,)]


def test_spilled_rows_leave_no_trace(data: TokenizedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with open_query(data, "SELECT current_setting('temp_directory') AS folder") as result:
        [folder] = next(result.batches).column("folder").to_pylist()
        assert Path(folder).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_columns(data: TokenizedData) -> None:
    with pytest.raises(ConfigError, match=r"(?s)colour.*rejects: sample_id,.*tokens: sample_id, key,.*metadata"):
        query(data, "SELECT colour FROM tokens")
    with pytest.raises(ConfigError, match="syntax error"):
        query(data, "SELEC 1")
    with pytest.raises(ConfigError, match="name further ones with --table"):
        query(data, "SELECT * FROM read_csv('captions.csv')")
    with pytest.raises(ConfigError, match="row-0000"):  # comes up amid the rows, of any thread first
        query(data, "SELECT CASE WHEN num_tokens > 0 THEN key::INT END FROM tokens")


def test_errors_name_the_damaged_part(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 200, rows_per_part=100)
    data = TokenizedData.open(tmp_path)
    path = Path(data.path(data.parts[1].name))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=rf"{path.name}: it ends early"):
        query(data, "SELECT sum(num_tokens) FROM tokens")
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(SourceError, match=path.name):
        query(data, "SELECT sum(num_tokens) FROM tokens")
    path.unlink()
    with pytest.raises(SourceError, match=path.name):
        query(data, "SELECT sum(num_tokens) FROM tokens")


def test_an_error_of_the_caller_stays_what_it_is(data: TokenizedData) -> None:
    with pytest.raises(BrokenPipeError), open_query(data, "SELECT 1"):
        raise BrokenPipeError


def test_a_data_set_without_parts_or_rejects(tmp_path: Path) -> None:
    store = OutputStore.open(str(tmp_path / "out"))
    fingerprint = {"vocab_size": "64", "patch_entropy": "true"}
    claim_output(store, JobConfig(source="a.tar", output=store.url), fingerprint)
    nothing = query(store.url, "SELECT key, tokens, patch_entropy_bits FROM tokens")
    assert nothing.num_rows == 0
    assert nothing.schema.field("tokens").type.value_type == pa.uint16()
    assert nothing.schema.field("patch_entropy_bits").type.value_type == pa.float32()
    with pytest.raises(ConfigError, match="patch_entropy_bits, caption"):
        query(store.url, "SELECT colour FROM tokens")
    write_synthetic(str(tmp_path / "syn"), 10)
    assert query(tmp_path / "syn", "SELECT count(*) AS n, max(reason) AS r FROM rejects").to_pylist() == [
        {"n": 0, "r": None}
    ]


def test_handles_keep_a_position_for_each_thread(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1 << 20)
    (tmp_path / "a").write_bytes(content)
    files = ReadOnlyFiles({"a": StoredFile(fs=fsspec.filesystem("file"), path=str(tmp_path / "a"))})
    with pytest.raises(PermissionError, match="only be read"):
        files.open("tatok://a", "wb")
    with pytest.raises(FileNotFoundError):
        files.open("tatok://../a")
    handle = files.open("tatok://a")

    everybody_has_sought = Barrier(4, timeout=30)

    def read(start: int) -> bytes:
        handle.seek(start)
        everybody_has_sought.wait()
        return handle.read(1000)

    places = [0, 5000, 1 << 19, len(content) - 100]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, places)) == [content[start : start + 1000] for start in places]
    assert handle.seek(-5, os.SEEK_END) == len(content) - 5
    assert handle.read() == content[-5:]
    assert handle.read() == b""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_ctrl_c_interrupts(data: TokenizedData) -> None:
    sql = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE (a.range * b.range) % 7 = 3"
    code = "import sys; from tatok.jobs.cli import app; print('ready', flush=True); app()"
    command = [sys.executable, "-c", code, "query", data.url, sql]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            before = cpu_seconds(running.pid)
            while cpu_seconds(running.pid) < before + 4:  # imports take two; the query would take days
                assert running.poll() is None, "the query ended by itself"
                time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
