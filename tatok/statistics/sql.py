"""SQL over a dataset, by DuckDB: the tables `tokens` and `rejects`, and further ones that the caller names.

DuckDB has no access to files, the network, the environment or Python's variables: it reads the parts through
`ReadOnlyFiles`, which knows their names and no others, and its configuration is locked before the query is seen. A
query must be one SELECT statement. Sorting and grouping may spill into a temporary folder, which is deleted afterwards.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from tatok.dataset.parts import TokenizedData
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.tokens import REJECTS_SCHEMA, token_schema
from tatok.schemas.urls import filesystem_of
from tatok.statistics.read_only_files import PROTOCOL, ReadOnlyFiles, StoredFile

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["QueryResult", "open_query", "query", "with_int64"]

Result = TypeVar("Result")
Tables = Mapping[str, str | PathLike[str]]

_BATCH_ROWS = 10_000
_READERS = {
    "parquet": "read_parquet",
    "csv": "read_csv",
    "tsv": "read_csv",
    "json": "read_json",
    "jsonl": "read_json",
    "ndjson": "read_json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """Rows as they come: `batches` can be gone through once, while the query is open."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def query(data: TokenizedData | str | PathLike[str], sql: str, *, tables: Tables | None = None) -> pa.Table:
    """The whole result of one SELECT statement; see `open_query`, and `with_int64` of the types."""
    with open_query(data, sql, tables=tables) as opened:
        result = with_int64(opened)
        return pa.Table.from_batches(list(result.batches), schema=result.schema)


def with_int64(result: QueryResult) -> QueryResult:
    """The same rows with int64 for whole numbers of 128 bits, which DuckDB makes of every sum of integers.

    Such a column is decimal(38, 0) in Arrow, which pandas turns into objects. ConfigError is raised, amid the rows,
    where a number does not fit.
    """
    wide = [pa.types.is_decimal(field.type) and field.type.scale == 0 for field in result.schema]
    schema = pa.schema(
        [field.with_type(pa.int64()) if each else field for field, each in zip(result.schema, wide, strict=True)]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in result.batches:
            columns = []
            for field, column in zip(schema, batch.columns, strict=True):
                try:
                    columns.append(column if column.type == field.type else column.cast(field.type))
                except pa.ArrowInvalid as error:
                    raise ConfigError(
                        f"a number in {field.name} has more than 64 bits: {error}",
                        remedy="cast it in the query: ::DOUBLE rounds it, ::VARCHAR keeps it as text",
                    ) from error
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return QueryResult(schema=schema, batches=batches()) if any(wide) else result


@contextmanager
def open_query(
    data: TokenizedData | str | PathLike[str], sql: str, *, tables: Tables | None = None
) -> Iterator[QueryResult]:
    """Run one SELECT statement over the tables `tokens` and `rejects` and the files of `tables` (name -> path or URL).

    Such a file is Parquet, read as the query needs it, or CSV or JSON, loaded into memory; what it is goes by its name
    (.parquet, .csv, .tsv, .json, .jsonl, .ndjson; the latter also with .gz). Columns have DuckDB's types: a sum of
    integers is decimal(38, 0), which `with_int64` changes. Ctrl-C interrupts. Raises ConfigError where the statement is
    wrong, is not a single SELECT or reaches for other files; SourceError where a file cannot be read.
    """
    import duckdb

    data = data if isinstance(data, TokenizedData) else TokenizedData.open(data)
    named = {name: _named_file(name, fspath(path)) for name, path in (tables or {}).items()}
    with tempfile.TemporaryDirectory(prefix="tatok-query-") as spill_folder:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": spill_folder,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_persistent_secrets": False,
        }
        files = _files(data, named)
        with (
            ThreadPoolExecutor(max_workers=1) as worker,
            duckdb.connect(":memory:", config=settings) as connection,
        ):
            waiting = _Waiting(worker=worker, connection=connection)
            with _explained(data, files):
                waiting.call(lambda: _make_tables(connection, data, files, named, spill_folder))
                _lock(connection, files)
                columns = _columns(connection)
            with _explained(data, files, columns):
                connection.execute("BEGIN TRANSACTION READ ONLY")
                # Only `query` insists on a single SELECT: WITH may hold INSERT or COPY TO, and counts as a SELECT.
                connection.table_function("query", [sql])
                reader = waiting.call(lambda: connection.sql(sql).to_arrow_reader(_BATCH_ROWS))
            yield QueryResult(schema=reader.schema, batches=_batches(reader, waiting, data, files, columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """Calls DuckDB in another thread, so that this one hears Ctrl-C; DuckDB itself does not always heed it."""

    worker: ThreadPoolExecutor
    connection: DuckDBPyConnection

    def call(self, function: Callable[[], Result]) -> Result:
        future: Future[Result] | None = None
        try:
            future = self.worker.submit(function)
            return future.result()
        except KeyboardInterrupt:
            # An interrupt that comes between two steps of the query is lost.
            while future is not None and not future.done():
                self.connection.interrupt()
                wait([future], timeout=0.05)
            raise


def _batches(
    reader: pa.RecordBatchReader, waiting: _Waiting, data: TokenizedData, files: ReadOnlyFiles, columns: str
) -> Iterator[pa.RecordBatch]:
    with _explained(data, files, columns):
        while (batch := waiting.call(lambda: next(reader, None))) is not None:
            yield batch


def _files(data: TokenizedData, named: Mapping[str, StoredFile]) -> ReadOnlyFiles:
    """Every file that the query may read, by names of our own: "data/...", "rejects/...", "tables/<name>.parquet"."""
    fs, root = filesystem_of(data.url)
    files = {
        f"data/{part.name}": StoredFile(fs=fs, path=f"{root}/data/{part.name}", num_bytes=part.num_bytes)
        for part in data.parts
    }
    files |= {
        f"rejects/{part.name}": StoredFile(fs=fs, path=f"{root}/{data.layout.rejects_of(part.name)}")
        for part in data.parts
        if part.rejects
    }
    is_parquet = {name: file for name, file in named.items() if _reader(file.path) == "read_parquet"}
    files |= {f"tables/{name}.parquet": file for name, file in is_parquet.items()}
    return ReadOnlyFiles(files)


def _named_file(name: str, path: str) -> StoredFile:
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.lower() in ("tokens", "rejects"):
        raise ConfigError(f"{name!r} cannot name a table; use letters, digits and _, and neither tokens nor rejects")
    if _reader(path) is None:
        raise ConfigError(f"cannot say what {path} is; its name must end in one of .{', .'.join(_READERS)} (or .gz)")
    try:
        fs, plain = filesystem_of(path)
        return StoredFile(fs=fs, path=plain, num_bytes=fs.size(plain))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot read {path!r}: {error}; install the scheme's fsspec package") from error
    except OSError as error:
        raise SourceError(f"cannot read {path}, the table {name}: {error}") from error


def _reader(path: str) -> str | None:
    plain = path.lower().removesuffix(".gz")
    suffix = plain.rpartition(".")[2]
    return None if suffix == "parquet" and plain != path.lower() else _READERS.get(suffix)


def _make_tables(
    connection: DuckDBPyConnection,
    data: TokenizedData,
    files: ReadOnlyFiles,
    named: Mapping[str, StoredFile],
    scratch_folder: str,
) -> None:
    connection.register_filesystem(files)
    for table, folder, schema in (("tokens", "data", _empty_tokens(data)), ("rejects", "rejects", REJECTS_SCHEMA)):
        urls = [url for url in files.urls if url.startswith(f"{PROTOCOL}://{folder}/")]
        if urls:
            _view(connection, table, urls)
        else:
            connection.from_arrow(schema.empty_table()).create(table)
    for name, file in named.items():
        if _reader(file.path) == "read_parquet":
            _view(connection, name, [f"{PROTOCOL}://tables/{name}.parquet"])
        else:
            _load(connection, name, file, scratch_folder)


def _view(connection: DuckDBPyConnection, table: str, urls: Iterable[str]) -> None:
    rows = f"read_parquet({_literal(urls)}, hive_partitioning = false)"
    connection.execute(f'CREATE VIEW "{table}" AS SELECT * FROM {rows}')


def _load(connection: DuckDBPyConnection, name: str, file: StoredFile, scratch_folder: str) -> None:
    """Load a CSV or JSON file, before DuckDB is cut off from files.

    DuckDB reads it itself, by a name without wildcards: it continues from where another thread stopped in a compressed
    file, which `ReadOnlyFiles` does not serve.
    """
    import duckdb

    suffixes = re.search(r"\.\w+(\.gz)?$", file.path.lower())
    path = Path(scratch_folder) / f"{name}{suffixes[0] if suffixes else ''}"
    try:
        if isinstance(file.fs, LocalFileSystem):
            path.symlink_to(file.path)
        else:
            file.fs.get_file(file.path, str(path))
        rows = f"{_reader(file.path)}({_literal([str(path)])})"
        connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM {rows}')
    except (duckdb.Error, OSError) as error:
        raise SourceError(f"cannot read {file.path}, the table {name}: {error}") from error
    finally:
        path.unlink(missing_ok=True)


def _empty_tokens(data: TokenizedData) -> pa.Schema:
    """The columns of a dataset without parts; DuckDB reads float16 as float32."""
    schema = token_schema(data.vocab_size, patch_entropy=False)
    for name in ("patch_entropy", "patch_worth"):
        if data.run.fingerprint.get(name) == "true":
            schema = schema.insert(schema.get_field_index("caption"), pa.field(f"{name}_bits", pa.list_(pa.float32())))
    return schema


def _lock(connection: DuckDBPyConnection, files: ReadOnlyFiles) -> None:
    connection.execute(f"SET allowed_paths = {_literal(files.urls)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _literal(texts: Iterable[str]) -> str:
    quoted = (text.replace("'", "''") for text in texts)
    return "[" + ", ".join(f"'{text}'" for text in quoted) + "]"


def _columns(connection: DuckDBPyConnection) -> str:
    rows = connection.execute(
        "SELECT table_name, string_agg(column_name, ', ' ORDER BY column_index) FROM duckdb_columns() "
        "WHERE NOT internal GROUP BY ALL ORDER BY table_name"
    ).fetchall()
    return "".join(f"\n{table}: {columns}" for table, columns in rows)


@contextmanager
def _explained(data: TokenizedData, files: ReadOnlyFiles, columns: str = "") -> Iterator[None]:
    """Turns DuckDB's errors into ours; those that come up amid the rows reach us as OSError."""
    import duckdb

    try:
        yield
    except (duckdb.Error, OSError) as error:
        text = str(error).strip()
        if files.failure is not None:
            raise SourceError(f"cannot read {files.failure[0]}: {files.failure[1]}") from error
        if f"{PROTOCOL}://" in text and "Permission Error" not in text:
            raise SourceError(f"a file of {data.url} cannot be read: {text}") from error
        if "Permission Error" in text:
            text += "\nA query reads the tables below and no other files; name further ones with --table NAME=FILE."
        if not text.startswith("Parser Error"):  # which no name would mend
            text += f"\nTables and their columns:{columns}"
        raise ConfigError(f"the query cannot be run: {text}") from error
