"""Run document, manifest and _SUCCESS: what a dataset is, what it holds, and that it is complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tatok.pipeline.output.commit import part_name
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError
from tatok.schemas.identity import describe_difference
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import (
    LAYOUT,
    LAYOUT_0_2,
    LOADING,
    LOADING_TEXT,
    SUCCESS,
    Manifest,
    Part,
    RunDocument,
    RunRecord,
)
from tatok.schemas.records import LeftOut, ShardReport
from tatok.schemas.tokens import (
    FOOTER_FINGERPRINT,
    FOOTER_SHARDS,
    SCHEMA_VERSION,
)

__all__ = [
    "begin_dataset",
    "claim_output",
    "mark_incomplete",
    "mark_success",
    "read_manifest",
    "record_run",
    "require_same_run",
    "update_manifest",
]


def claim_output(store: OutputStore, config: JobConfig, fingerprint: Mapping[str, str]) -> None:
    """Make the output this run's: write the run document, or check that the one there has the same fingerprint.

    Other sources and other resources are welcome in the same output; the document holds the latest configuration.
    Raises CommitError, which lists what differs, where the tokens would not be of one kind; and where the dataset
    was compacted: its parts no longer say which shards are done.
    """
    text = RunDocument(
        schema_version=SCHEMA_VERSION, fingerprint=dict(fingerprint), config=config.model_dump(mode="json")
    ).to_json()
    existing = store.read_text(store.layout.run)
    if existing is None:
        recorded = _run_of_parts(store)  # the document may have been deleted; the parts still know
        if recorded is not None:
            _check_run(store, recorded, fingerprint)
        if begin_dataset(store, text):
            return
        existing = store.read_text(store.layout.run)  # another run was faster
    _check_run(store, _recorded_run(store, existing or ""), fingerprint)
    if existing != text:
        store.write_text(store.layout.run, text)


def begin_dataset(store: OutputStore, run: str) -> bool:
    """Write a run document where there is none; False says that another run was faster.

    Raises CommitError if a run of tatok 0.2, which knows other names, has begun there since the output was opened.
    """
    if not store.write_text(store.layout.run, run, create=True):
        return False
    if store.layout == LAYOUT and store.exists(LAYOUT_0_2.run):
        store.remove(LAYOUT.run)
        raise CommitError(
            f"{store.url}/{LAYOUT_0_2.run} appeared meanwhile: a run of an older tatok has begun there",
            remedy="let it end, or stop it, then run this command again, which resumes the dataset",
        )
    return True


def require_same_run(store: OutputStore, fingerprint: Mapping[str, str]) -> bool:
    """Whether the output is a dataset already, which a run of this fingerprint may resume; nothing is written.

    Raises CommitError as `claim_output` does.
    """
    existing = store.read_text(store.layout.run)
    recorded = _run_of_parts(store) if existing is None else _recorded_run(store, existing)
    if recorded is not None:
        _check_run(store, recorded, fingerprint)
    return recorded is not None


def read_manifest(store: OutputStore) -> Manifest | None:
    """The manifest as last written; None where there is none or it cannot be understood (it can be rebuilt)."""
    text = store.read_text(store.layout.manifest)
    return None if text is None else Manifest.from_json(text)


def update_manifest(
    store: OutputStore, reports: Iterable[ShardReport], left_out: Mapping[LeftOut, int] | None = None
) -> Manifest:
    """Bring the manifest in line with data/, and return it; unchanged parts are not read again.

    `left_out` is what the run's plan left out of the source; None keeps what the last manifest says.
    Parts that neither this run nor the last manifest knows are read: their footers, and for a checksum their bytes on
    a disk, or the store's etag elsewhere.
    """
    sizes = {name: size for name, size in store.list_files("data").items() if name.endswith(".parquet")}
    last = read_manifest(store) or Manifest(parts=())
    known = {part.name: part for part in last.parts}
    known |= {part.name: part for part in map(_part_of_report, reports) if part is not None}
    known = {name: part for name, part in known.items() if sizes.get(name) == part.num_bytes}
    unknown = sorted(sizes.keys() - known.keys())
    with ThreadPoolExecutor(max_workers=16) as pool:
        known |= {part.name: part for part in pool.map(lambda name: _inspect(store, name, sizes[name]), unknown)}
    manifest = Manifest(
        parts=tuple(known[name] for name in sorted(known)),
        left_out_of_source=last.left_out_of_source if left_out is None else left_out,
    )
    text = manifest.to_json()
    if store.read_text(store.layout.manifest) != text:
        if store.layout == LAYOUT:
            store.write_text(LOADING, LOADING_TEXT)  # first, so that it is never missing beside a manifest
        store.write_text(store.layout.manifest, text)
    return manifest


def mark_incomplete(store: OutputStore) -> None:
    """Take _SUCCESS away: there is work to do."""
    store.remove(SUCCESS)


def mark_success(store: OutputStore) -> None:
    """Say that every planned shard is committed and the manifest is right; the last thing that a run writes."""
    if not store.exists(SUCCESS):
        store.write_text(SUCCESS, "")


def record_run(store: OutputStore, record: RunRecord) -> None:
    """Leave a record of this run, named by when it started."""
    stamp = record.started_at.replace("-", "").replace(":", "").partition("+")[0]
    store.write_text(f"{store.layout.runs}/{stamp}-{store.run_id[:8]}.json", record.to_json())


def _part_of_report(report: ShardReport) -> Part | None:
    if report.part_sha256 is None:
        return None
    return Part(
        name=part_name(report.shard.shard_id),
        num_rows=report.num_rows,
        num_tokens=report.num_tokens,
        num_bytes=report.part_bytes,
        row_group_rows=report.row_group_rows,
        rejects=dict(report.rejects),
        left_out=report.left_out,
        num_clips=report.num_clips,
        num_frames=report.num_frames,
        checksum=f"sha256:{report.part_sha256}",
    )


def _inspect(store: OutputStore, name: str, num_bytes: int) -> Part:
    path = f"data/{name}"
    try:
        with store.open_input(path) as file:
            footer = pq.read_metadata(file)
        etag = None if store.is_local else store.etag(path)
        if etag is None:
            with store.open_input(path) as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            checksum = f"sha256:{digest.hexdigest()}"
        else:
            checksum = f"etag:{etag}"
        return Part.of_footer(name, footer, num_bytes=num_bytes, checksum=checksum)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise CommitError(
            f"{store.url}/{path} is not a part that tatok wrote ({error}); delete it and run again"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _RecordedRun:
    fingerprint: Mapping[str, str]
    compacted_from: str | None


def _run_of_parts(store: OutputStore) -> _RecordedRun | None:
    for name in sorted(store.list_files("data")):
        try:
            with store.open_input(f"data/{name}") as file:
                metadata = pq.read_metadata(file).metadata
            compacted_from = "other parts" if FOOTER_SHARDS.encode() in metadata else None
            return _RecordedRun(
                fingerprint=json.loads(metadata[FOOTER_FINGERPRINT.encode()]), compacted_from=compacted_from
            )
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CommitError(
                f"{store.url}/data/{name} is not a part that tatok wrote ({error}); choose another output"
            ) from error
    return None


def _recorded_run(store: OutputStore, text: str) -> _RecordedRun:
    try:
        run = RunDocument.from_json(text)
    except ValueError as error:
        raise CommitError(
            f"{store.url}/{store.layout.run} cannot be understood ({error!r}); choose another output, or delete it"
        ) from error
    source = run.compacted_from
    return _RecordedRun(fingerprint=run.fingerprint, compacted_from=None if source is None else source.url)


def _check_run(store: OutputStore, old: _RecordedRun, new: Mapping[str, str]) -> None:
    if old.compacted_from is not None:
        raise CommitError(
            f"{store.url} was compacted from {old.compacted_from}; tokenizing into it would write every image again. "
            "Continue in the original output, then run `tatok compact` into a new folder"
        )
    lines = describe_difference(old.fingerprint, new)
    if lines:
        raise CommitError(
            f"{store.url} holds tokens made under other settings:\n  "
            + "\n  ".join(lines)
            + f"\nchoose another output, or repeat the settings of its {store.layout.run}"
        )
