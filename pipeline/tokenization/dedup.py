"""Exact duplicates over all shards: what is hashed, which copy is kept, and where the others are written down.

Every shard's samples are hashed before the first one is tokenized: _dedup/hashes-<shard id>.pq, written once. Of
equal bytes the copy is kept that a committed part has already taken, else the first one, by the shards' addresses and
the places in them. That is a function of the source and the output, not of timing: a run that is killed and started
again, on any number of nodes, comes to the same dataset. The other copies are listed in
_dedup/dropped-<shard id>.pq, for the decoder that reads the shard, and become rejects, "duplicate".

Cost: the source is read twice, and about 40 bytes a sample are written; the comparison needs the disk of the driver's
machine rather than its memory. Two jobs that write into one output at the same time must have the same source.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tatok.pipeline.output.commit import part_name
from tatok.pipeline.output.tables import rejects_from_text
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.video.local_video import content_digest
from tatok.schemas.errors import CommitError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import DUPLICATE, Reject, Sample, Shard
from tatok.schemas.tokens import FOOTER_REJECTS

__all__ = ["Place", "drop_duplicates", "hash_shard", "hashed_shards", "list_duplicates", "read_dropped"]

Place = tuple[str, int]
"""A sample's uri and index."""

_NUM_READERS = 16
_HASHES = pa.schema([("uri", pa.string()), ("index", pa.int64()), ("sha256", pa.binary(32))])
_DROPPED = pa.schema([("uri", pa.string()), ("index", pa.int64()), ("of_uri", pa.string()), ("of_index", pa.int64())])
_COPIES = """
    SELECT shard, uri, index, first_value(uri) OVER same AS of_uri, first_value(index) OVER same AS of_index
    FROM hashes WINDOW same AS (PARTITION BY sha256 ORDER BY NOT committed, shard, place)
    QUALIFY row_number() OVER same > 1 AND NOT committed ORDER BY shard, place
"""


def hashed_shards(store: OutputStore) -> frozenset[str]:
    """Ids of the shards that are hashed, by one listing."""
    names = store.list_files(store.layout.dedup)
    return frozenset(
        name.removeprefix("hashes-").removesuffix(store.layout.suffix) for name in names if name.startswith("hashes-")
    )


def hash_shard(config: JobConfig, store: OutputStore, shard: Shard) -> int:
    """Hash a shard's samples and write them down; how many there are. Raises SourceError if the source fails."""
    rows: list[tuple[str, int, bytes]] = []
    for sample in read_samples(shard, ReadOptions.of(config)):
        if isinstance(sample, Sample) and (digest := content_digest(sample)) is not None:
            rows.append((sample.uri, sample.index, digest))
    _publish(store, _hashes_of(store, shard.shard_id), _HASHES, rows, create=True)
    return len(rows)


def list_duplicates(store: OutputStore, pending: Sequence[Shard], committed: Collection[str]) -> int:
    """Write down the duplicates of every pending shard, all of which are hashed; how many there are.

    `committed` are the ids of the parts in the output. Raises CommitError if one of them was never hashed: it was
    made without dedup.
    """
    import duckdb

    # Another run may have committed some since they were planned.
    pending = [shard for shard in pending if shard.shard_id not in committed]
    ordered = sorted(pending, key=lambda shard: (shard.uri, shard.start, shard.shard_id))
    listed = store.list_files(store.layout.dedup)
    stale = {f"{store.layout.dedup}/{name}" for name in listed if name.startswith("dropped-")}
    missing = sorted(set(committed) - hashed_shards(store))
    if missing:
        raise CommitError(
            f"{store.url}/data/{part_name(missing[0])} was made without dedup; tokenize into another output, or set "
            "dedup: none"
        )
    num_dropped = 0
    # On a disk: the hashes of a billion samples are more than the memory of most machines.
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(f"{folder}/hashes.duckdb") as connection:
        connection.execute(
            "CREATE TABLE hashes (shard BIGINT, place BIGINT, uri VARCHAR, index BIGINT, sha256 BLOB, committed BOOL)"
        )
        sources: list[tuple[int, bool, str]] = [(-1, True, shard_id) for shard_id in sorted(committed)]
        sources += [(number, False, shard.shard_id) for number, shard in enumerate(ordered)]
        with ThreadPoolExecutor(max_workers=_NUM_READERS) as pool:
            for first in range(0, len(sources), 4 * _NUM_READERS):  # so that not all tables wait in memory
                some = sources[first : first + 4 * _NUM_READERS]
                tables = pool.map(lambda source: _kept_hashes(store, source[2], is_committed=source[1]), some)
                for (number, is_committed, _), table in zip(some, tables, strict=True):
                    connection.register("hashes_of_shard", table)
                    connection.execute(
                        "INSERT INTO hashes SELECT ?, place, uri, index, sha256, ? FROM hashes_of_shard",
                        [number, is_committed],
                    )
                    connection.unregister("hashes_of_shard")
        cursor = connection.execute(_COPIES)
        for number, copies in groupby(_fetched(cursor.fetchmany), key=lambda row: row[0]):
            rows = [row[1:] for row in copies]
            name = _dropped_of(store, ordered[number].shard_id)
            stale.discard(name)
            _publish(store, name, _DROPPED, rows, create=False)
            num_dropped += len(rows)
    for shard in ordered:
        name = _dropped_of(store, shard.shard_id)
        if name in stale:  # of an earlier run, whose source held other copies
            store.remove(name)
    return num_dropped


def read_dropped(store: OutputStore, shard: Shard) -> Mapping[Place, Place]:
    """The samples of a shard that are duplicates, and which sample each is a copy of."""
    name = _dropped_of(store, shard.shard_id)
    if not store.exists(name):
        return {}
    with store.open_input(name) as file:
        rows = pq.read_table(file).to_pylist()
    return {(row["uri"], row["index"]): (row["of_uri"], row["of_index"]) for row in rows}


def drop_duplicates(samples: Iterator[Sample | Reject], dropped: Mapping[Place, Place]) -> Iterator[Sample | Reject]:
    """The samples, with a reject of stage "dedup" in the place of each that is dropped."""
    for sample in samples:
        kept = dropped.get((sample.uri, sample.index)) if isinstance(sample, Sample) else None
        if kept is None:
            yield sample
        else:
            detail = f"the same bytes as {kept[0]} [{kept[1]}]"
            yield Reject(
                key=sample.key, uri=sample.uri, index=sample.index, stage="dedup", reason=DUPLICATE, detail=detail
            )


def _hashes_of(store: OutputStore, shard_id: str) -> str:
    return f"{store.layout.dedup}/hashes-{shard_id}{store.layout.suffix}"


def _dropped_of(store: OutputStore, shard_id: str) -> str:
    return f"{store.layout.dedup}/dropped-{shard_id}{store.layout.suffix}"


def _kept_hashes(store: OutputStore, shard_id: str, *, is_committed: bool) -> pa.Table:
    """The hashes of a shard with their places in it; without those that its part has dropped."""
    with store.open_input(_hashes_of(store, shard_id)) as file:
        table = pq.read_table(file)
    table = table.append_column("place", pa.array(range(len(table)), pa.int64()))
    if not is_committed:
        return table
    with store.open_input(f"data/{part_name(shard_id)}") as file:
        rejects = rejects_from_text(pq.read_metadata(file).metadata[FOOTER_REJECTS.encode()]).to_pylist()
    gone = {(row["source_uri"], row["source_index"]) for row in rejects if row["reason"] == DUPLICATE}
    if not gone:
        return table
    places = zip(table["uri"].to_pylist(), table["index"].to_pylist(), strict=True)
    return table.filter(pa.array([place not in gone for place in places]))


def _fetched(fetchmany: Callable[[int], list[tuple]]) -> Iterator[tuple]:
    while rows := fetchmany(10_000):
        yield from rows


def _publish(store: OutputStore, name: str, schema: pa.Schema, rows: Sequence[Sequence], *, create: bool) -> None:
    columns = [[row[i] for row in rows] for i in range(len(schema))]
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
    with store.scratch_file() as path:
        pq.write_table(table, Path(path), compression="zstd")
        store.publish(path, name, create=create)
