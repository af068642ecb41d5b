"""A dataset of many small parts -> a new one of fewer, larger parts with the same rows in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from os import cpu_count
from threading import Event

import pyarrow as pa

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.export.base import list_entries, scratch_file
from tatok.pipeline.export.merge import OnRows, group_parts, merged_footer, write_merged
from tatok.pipeline.output.commit import part_name
from tatok.pipeline.output.manifest import begin_dataset, mark_incomplete, mark_success, update_manifest
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError, SourceError
from tatok.schemas.job import Output
from tatok.schemas.manifest import CompactedFrom, Manifest, Part, RunDocument
from tatok.schemas.records import count_text
from tatok.schemas.tokens import REJECTS_SCHEMA

__all__ = ["DEFAULT_TARGET_BYTES", "CompactionSummary", "compact"]

DEFAULT_TARGET_BYTES = 256_000_000
_MAX_WRITERS = 4  # each holds a row group in memory and, for a bucket, one file on the local disk


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionSummary:
    """What the compacted dataset holds now; `num_parts_kept` parts an earlier attempt had published already."""

    url: str
    num_source_parts: int
    num_parts: int
    num_parts_kept: int
    num_rows: int
    num_tokens: int
    num_bytes: int


def compact(
    data: TokenizedData,
    destination: str,
    *,
    target_bytes: int = DEFAULT_TARGET_BYTES,
    allow_incomplete: bool = False,
    on_rows: OnRows = lambda num_rows: None,
) -> CompactionSummary:
    """Merge the parts of a dataset, in order, into parts of about `target_bytes` at `destination`, rejects likewise.

    The source stays as it is. Every part is published whole and under a name that says what it was merged from;
    _SUCCESS comes last. Killed at any moment, the same call resumes; finished, it does nothing.

    Raises SourceError if the source is not complete (unless `allow_incomplete`), has no parts, or cannot be read;
    CommitError if the destination holds something else, or is the source itself.
    """
    if not data.complete and not allow_incomplete:
        raise SourceError(
            f"{data.url} is not complete (no _SUCCESS); run its `tatok tokenize` to the end, or use --allow-incomplete"
        )
    schema = data.schema.remove_metadata()  # raises where there are no parts
    store = OutputStore.of_dataset(destination)
    if f"{store.url}/".startswith(f"{data.url}/") or f"{data.url}/".startswith(f"{store.url}/"):
        raise CommitError(f"{store.url} and {data.url} overlap; compact into a folder of its own")
    is_empty = not list_entries(store.url)
    store = store.probe()
    _claim(store, data, is_empty=is_empty)
    planned = {_name(number, group): group for number, group in enumerate(group_parts(data.parts, target_bytes))}
    kept = _published(store, planned)
    pending = {name: group for name, group in planned.items() if name not in kept}
    if pending:
        mark_incomplete(store)
    on_rows(sum(part.num_rows for name in kept for part in planned[name]))
    row_group_rows = _row_group_rows(data.run)

    def publish(name: str, group: tuple[Part, ...], stop: Event) -> None:
        def count(num_rows: int) -> None:
            if stop.is_set():
                raise _StoppedError
            on_rows(num_rows)

        _publish(store, data, name, group, schema=schema, row_group_rows=row_group_rows, on_rows=count)

    stop = Event()
    with ThreadPoolExecutor(max_workers=min(_MAX_WRITERS, cpu_count() or 1)) as pool:
        try:
            for done in as_completed([pool.submit(publish, name, group, stop) for name, group in pending.items()]):
                done.result()
        except BaseException:
            stop.set()  # the other writers give up at their next row group
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _copy_runs(store, data)
    manifest = update_manifest(store, [], data.left_out_of_source)
    _check_totals(store, data, manifest)
    mark_success(store)
    store.sweep_scratch()
    return CompactionSummary(
        url=store.url,
        num_source_parts=len(data.parts),
        num_parts=len(manifest.parts),
        num_parts_kept=len(kept),
        num_rows=manifest.num_rows,
        num_tokens=manifest.num_tokens,
        num_bytes=sum(part.num_bytes for part in manifest.parts),
    )


class _StoppedError(Exception):
    """Another part failed, or the user interrupted."""


def _name(number: int, group: tuple[Part, ...]) -> str:
    # The number keeps the order of rows; the hash tells this merger from any other. Parts never change once
    # published, so that a part's name and size say what it holds.
    identity = "\0".join(f"{part.name}\0{part.num_bytes}" for part in group)
    return part_name(f"{number:06}-{hashlib.sha256(identity.encode()).hexdigest()[:20]}")


def _claim(store: OutputStore, data: TokenizedData, *, is_empty: bool) -> None:
    made_from = CompactedFrom(url=data.url, complete=data.complete, num_parts=len(data.parts), num_rows=data.num_rows)
    run = replace(data.run, compacted_from=made_from)
    existing = store.read_text(store.layout.run)
    if existing is None:
        if not is_empty:
            raise CommitError(f"{store.url} is not empty and is no compacted dataset; name a new or empty folder")
        if begin_dataset(store, run.to_json()):
            return
        existing = store.read_text(store.layout.run)  # another compaction was faster
    try:
        found = RunDocument.from_json(existing or "")
    except ValueError as error:
        raise CommitError(
            f"{store.url}/{store.layout.run} cannot be understood ({error}); name a new or empty folder"
        ) from error
    if found.compacted_from is None:
        raise CommitError(f"{store.url} holds a dataset that was tokenized there; name a new or empty folder")
    if (found.compacted_from, found.fingerprint) != (made_from, data.run.fingerprint):
        raise CommitError(
            f"{store.url} was compacted from {_describe(found.compacted_from)}, not from {_describe(made_from)}; "
            "delete it, or name a new folder"
        )


def _describe(made_from: CompactedFrom) -> str:
    state = "complete" if made_from.complete else "incomplete"
    return (
        f"{made_from.url} ({state}, {count_text(made_from.num_parts, 'part')}, {count_text(made_from.num_rows, 'row')})"
    )


def _published(store: OutputStore, planned: Mapping[str, tuple[Part, ...]]) -> list[str]:
    names = store.list_files("data")
    unplanned = sorted(names.keys() - planned.keys())
    if unplanned:
        raise CommitError(
            f"{store.url}/data holds {unplanned[0]}, which is not of this compaction; repeat it with the same "
            "--target-size, or name a new folder"
        )
    return sorted(names)


def _row_group_rows(run: RunDocument) -> int:
    write = run.config.get("write")  # as found: the run document of another version may know other options
    num_rows = write.get("row_group_rows") if isinstance(write, Mapping) else None
    return num_rows if isinstance(num_rows, int) and num_rows > 0 else Output().row_group_rows


def _publish(
    store: OutputStore,
    data: TokenizedData,
    name: str,
    group: tuple[Part, ...],
    *,
    schema: pa.Schema,
    row_group_rows: int,
    on_rows: OnRows,
) -> None:
    footer = merged_footer(data, group)
    with scratch_file(store) as rejects, scratch_file(store) as rows:
        write_merged(
            data,
            group,
            rejects,
            schema=REJECTS_SCHEMA,
            row_group_rows=row_group_rows,
            footer=footer,
            folder="rejects",
        )
        write_merged(data, group, rows, schema=schema, row_group_rows=row_group_rows, footer=footer, on_rows=on_rows)
        # As in tokenizing: rejects first, so that whoever sees the rows finds the rejects beside them.
        store.publish(rejects, store.layout.rejects_of(name), create=True)
        store.publish(rows, f"data/{name}", create=True)


def _copy_runs(store: OutputStore, data: TokenizedData) -> None:
    runs = store.layout.runs
    copied = store.list_files(runs)
    for record_name, text in _run_texts(data).items():
        if record_name not in copied:
            store.write_text(f"{runs}/{record_name}", text)


def _run_texts(data: TokenizedData) -> dict[str, str]:
    source, runs = OutputStore.open(data.url), data.layout.runs
    names = [name for name in sorted(source.list_files(runs)) if name.endswith(".json")]
    return {name: source.read_text(f"{runs}/{name}") or "" for name in names}


def _check_totals(store: OutputStore, data: TokenizedData, manifest: Manifest) -> None:
    expected = Manifest(parts=data.parts)
    for what in ("num_rows", "num_tokens", "rejects"):
        if getattr(manifest, what) != getattr(expected, what):
            raise CommitError(
                f"{store.url}/{store.layout.manifest} says {what} {getattr(manifest, what)}, but {data.url} has "
                f"{getattr(expected, what)}; delete {store.url} and compact again"
            )
