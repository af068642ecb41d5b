"""run.json, manifest.json and _SUCCESS: what a data set is, what it holds, and that it is complete."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import part_name
from pipeline.fingerprint import describe_difference
from pipeline.store import OutputStore
from schemas.errors import CommitError
from schemas.job import JobConfig
from schemas.records import ShardReport
from schemas.tokens import FOOTER_FINGERPRINT, FOOTER_NUM_REJECTS, FOOTER_NUM_TOKENS, SCHEMA_VERSION

__all__ = ["Manifest", "Part", "claim_output", "mark_incomplete", "mark_success", "read_manifest", "update_manifest"]

_RUN, _MANIFEST, _SUCCESS = "run.json", "manifest.json", "_SUCCESS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One published token part; `checksum` is "sha256:..." or the store's own "etag:..."."""

    name: str
    num_rows: int
    num_tokens: int
    num_bytes: int
    rejects: Mapping[str, int]
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Every part of the data set, by name."""

    parts: tuple[Part, ...]

    @property
    def num_rows(self) -> int:
        """Images and clips in all parts."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_tokens(self) -> int:
        """Tokens in all parts."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def rejects(self) -> dict[str, int]:
        """Reason -> count, over all parts."""
        counts = Counter[str]()
        for part in self.parts:
            counts.update(part.rejects)
        return dict(sorted(counts.items()))

    @property
    def reject_fraction(self) -> float:
        """Rejects as a share of all samples; 0 where there are none."""
        num_rejects = sum(self.rejects.values())
        return num_rejects / max(num_rejects + self.num_rows, 1)


def claim_output(store: OutputStore, config: JobConfig, fingerprint: Mapping[str, str]) -> None:
    """Make the output this run's: write run.json, or check that the one there has the same fingerprint.

    Other sources and other resources are welcome in the same output; run.json tells the latest configuration.
    Raises CommitError, which lists what differs, where the tokens would not be of one kind.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": dict(fingerprint),
        "config": config.model_dump(mode="json"),
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    existing = store.read_text(_RUN)
    if existing is None:
        recorded = _fingerprint_of_parts(store)  # run.json may have been deleted; the parts still know
        if recorded is not None:
            _check_fingerprint(store, recorded, fingerprint)
        if store.write_text(_RUN, text, create=True):
            return
        existing = store.read_text(_RUN)  # another run was faster
    _check_fingerprint(store, _recorded_fingerprint(store, existing or ""), fingerprint)
    if existing != text:
        store.write_text(_RUN, text)


def read_manifest(store: OutputStore) -> Manifest | None:
    """The manifest as last written; None where there is none or it cannot be understood (it can be rebuilt)."""
    text = store.read_text(_MANIFEST)
    if text is None:
        return None
    try:
        return Manifest(parts=tuple(Part(**part) for part in json.loads(text)["parts"]))
    except (ValueError, KeyError, TypeError):
        return None


def update_manifest(store: OutputStore, reports: Iterable[ShardReport]) -> Manifest:
    """Bring manifest.json in line with data/, and return it; unchanged parts are not read again.

    Parts that neither this run nor the last manifest knows are read: their footers, and for a checksum their bytes on
    a disk, or the store's etag elsewhere.
    """
    sizes = {name: size for name, size in store.list_files("data").items() if name.endswith(".parquet")}
    known = {part.name: part for part in (read_manifest(store) or Manifest(parts=())).parts}
    known |= {part.name: part for part in map(_part_of_report, reports) if part is not None}
    known = {name: part for name, part in known.items() if sizes.get(name) == part.num_bytes}
    unknown = sorted(sizes.keys() - known.keys())
    with ThreadPoolExecutor(max_workers=16) as pool:
        known |= {part.name: part for part in pool.map(lambda name: _inspect(store, name, sizes[name]), unknown)}
    manifest = Manifest(parts=tuple(known[name] for name in sorted(known)))
    document = {
        "schema_version": SCHEMA_VERSION,
        "num_parts": len(manifest.parts),
        "num_rows": manifest.num_rows,
        "num_tokens": manifest.num_tokens,
        "num_rejects": sum(manifest.rejects.values()),
        "rejects": manifest.rejects,
        "parts": [asdict(part) for part in manifest.parts],
    }
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if store.read_text(_MANIFEST) != text:
        store.write_text(_MANIFEST, text)
    return manifest


def mark_incomplete(store: OutputStore) -> None:
    """Take _SUCCESS away: there is work to do."""
    store.remove(_SUCCESS)


def mark_success(store: OutputStore) -> None:
    """Say that every planned shard is committed and the manifest is right; the last thing that a run writes."""
    if not store.exists(_SUCCESS):
        store.write_text(_SUCCESS, "")


def _part_of_report(report: ShardReport) -> Part | None:
    if report.part_sha256 is None:
        return None
    return Part(
        name=part_name(report.shard.shard_id),
        num_rows=report.num_rows,
        num_tokens=report.num_tokens,
        num_bytes=report.part_bytes,
        rejects=dict(report.rejects),
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
        return Part(
            name=name,
            num_rows=footer.num_rows,
            num_tokens=int(footer.metadata[FOOTER_NUM_TOKENS.encode()]),
            num_bytes=num_bytes,
            rejects=json.loads(footer.metadata[FOOTER_NUM_REJECTS.encode()]),
            checksum=checksum,
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise CommitError(
            f"{store.url}/{path} is not a part that tatok wrote ({error}); delete it and run again"
        ) from error


def _fingerprint_of_parts(store: OutputStore) -> dict[str, str] | None:
    for name in sorted(store.list_files("data")):
        try:
            with store.open_input(f"data/{name}") as file:
                return json.loads(pq.read_metadata(file).metadata[FOOTER_FINGERPRINT.encode()])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CommitError(
                f"{store.url}/data/{name} is not a part that tatok wrote ({error}); choose another output"
            ) from error
    return None


def _recorded_fingerprint(store: OutputStore, text: str) -> dict[str, str]:
    try:
        return dict(json.loads(text)["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CommitError(
            f"{store.url}/{_RUN} cannot be understood ({error!r}); choose another output, or delete the file"
        ) from error


def _check_fingerprint(store: OutputStore, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    lines = describe_difference(old, new)
    if lines:
        raise CommitError(
            f"{store.url} holds tokens made under other settings:\n  "
            + "\n  ".join(lines)
            + "\nchoose another output, or repeat the settings of its run.json"
        )
