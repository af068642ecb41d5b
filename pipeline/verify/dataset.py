"""A whole dataset, checked: run, manifest, every part, and on demand every sample of the source."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tatok.pipeline.census.source import MediaNames, count_source
from tatok.pipeline.planning.pending import Progress, compare_with_committed
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.file_groups import unpack_group
from tatok.pipeline.readers.formats import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, missing_extra
from tatok.pipeline.readers.read import Place, ReadOptions, read_places
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.verify.count import Held, compare_counts, held_of
from tatok.pipeline.verify.part import CHECKS, OF_SOURCE, CheckName, Finding, VerifiedPart, verify_part
from tatok.schemas.errors import SourceError
from tatok.schemas.job import Limits
from tatok.schemas.manifest import SUCCESS, Manifest, RunDocument
from tatok.schemas.records import Shard, count_text, is_or_are

__all__ = ["Verification", "verify_output"]

_NUM_READERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked and what is wrong; `num_samples` are the source's, None where it was not asked for.

    `num_counted` source files were counted without the readers, too; `uncounted` says which could not be, and why.
    """

    url: str
    num_parts: int
    num_rows: int
    num_rejects: int
    num_samples: int | None
    findings: tuple[Finding, ...]
    num_counted: int = 0
    uncounted: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return not self.findings

    @property
    def checks(self) -> Mapping[CheckName, int]:
        """Check -> number of findings, of those that were done, in the order of `CHECKS`."""
        counts = Counter(finding.check for finding in self.findings)
        with_source = self.num_samples is not None
        return {name: counts[name] for name in CHECKS if with_source or name not in OF_SOURCE}


def verify_output(
    url: str, source: Sequence[str] = (), *, on_part: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Check everything that can be checked of a dataset; nothing is written.

    With `source` (patterns as for `plan_shards`) every shard is read again, and each of its samples must be a row or
    a reject of the part, and nothing else may be. Then every source file is counted by other means than the readers',
    and the dataset must have as many samples of it. `on_part` is told how many parts of how many are done. Memory: the
    places and keys of the parts being read, a row group each, the shards of all parts, and 8 bytes a source file.

    Raises SourceError if there is no dataset, or the source cannot be read; OSError if the store fails.
    """
    store = OutputStore.of_dataset(url)
    layout = store.layout
    sizes = {name: size for name, size in store.list_files("data").items() if name.endswith(".parquet")}
    rejects = {f"{layout.rejects}/{name}" for name in store.list_files(layout.rejects)}
    findings: list[Finding] = []
    run = _read_run(store, findings)
    if run is None:
        if not sizes and not findings:
            raise SourceError(f"{store.url} holds no tokenized dataset (no {layout.run}, no data/part-*.parquet)")
        return Verification(
            url=store.url, num_parts=len(sizes), num_rows=0, num_rejects=0, num_samples=None, findings=tuple(findings)
        )
    if not store.exists(SUCCESS):
        _note(findings, "run", SUCCESS, "is missing: the last run did not finish; run the same job again")
    manifest = _read_manifest(store, findings)
    recorded = {part.name: part for part in manifest.parts}
    for name in sorted(sizes.keys() - recorded.keys()):
        _note(findings, "manifest", f"data/{name}", "is not in the manifest; run the job again, which lists it")
    for name in sorted(recorded.keys() - sizes.keys()):
        _note(findings, "manifest", f"data/{name}", "is in the manifest but not under data/; tokenize again")
    for name in sorted(rejects - {layout.rejects_of(part) for part in sizes}):
        _note(findings, "rejects", name, "has no token part: its shard was not committed; tokenize again")

    image_field = run.config.get("image_field")
    planned = plan_shards(source, image_field=image_field) if source else None
    planned_ids = {shard.shard_id for shard in planned or ()}
    limits = Limits.model_validate(run.config.get("limits") or {})
    reading = ReadOptions(max_sample_bytes=limits.max_sample_bytes, image_field=image_field)

    def check(name: str) -> tuple[VerifiedPart, int, list[Held]]:
        part = verify_part(
            store,
            name,
            fingerprint=run.fingerprint,
            recorded=recorded.get(name),
            has_rejects=layout.rejects_of(name) in rejects,
        )
        num_samples = 0
        held: list[Held] = []
        if planned is not None:
            for shard in part.shards:
                held.append(held_of(part, shard))
                if shard.shard_id not in planned_ids and shard.kind != "files":
                    continue  # of another source, or another version of it
                num_samples += _check_keys(part, shard, reading)
        part.places, part.keys = {}, {}  # only the shards are still needed
        return part, num_samples, held

    parts: list[VerifiedPart] = []
    of_dataset: list[Held] = []
    num_samples = 0
    with ThreadPoolExecutor(max_workers=_NUM_READERS) as pool:
        for done, (part, in_source, held) in enumerate(pool.map(check, sorted(sizes)), 1):
            parts.append(part)
            findings += part.findings
            num_samples += in_source
            of_dataset += held
            on_part(done, len(sizes))
    findings += _overlaps(parts)
    num_counted = 0
    uncounted: tuple[str, ...] = ()
    if planned is not None:
        progress = _progress(parts, planned)
        findings += _shard_findings(parts, progress)
        counts = count_source(source, _media_names(), image_field=image_field)
        wrong, num_counted, uncounted = compare_counts(counts, of_dataset, progress)
        findings += wrong
    return Verification(
        url=store.url,
        num_parts=len(parts),
        num_rows=sum(part.num_rows for part in parts),
        num_rejects=sum(part.num_rejects for part in parts),
        num_samples=None if planned is None else num_samples,
        findings=tuple(sorted(findings, key=lambda finding: (list(CHECKS).index(finding.check), finding.file))),
        num_counted=num_counted,
        uncounted=uncounted,
    )


def _note(findings: list[Finding], check: CheckName, file: str, message: str) -> None:
    findings.append(Finding(check=check, file=file, message=message))


def _read_run(store: OutputStore, findings: list[Finding]) -> RunDocument | None:
    name = store.layout.run
    text = store.read_text(name)
    if text is None:
        if store.list_files("data"):
            _note(findings, "run", name, "is missing; run the same job again, which writes it")
        return None
    try:
        return RunDocument.from_json(text)
    except ValueError as error:
        _note(findings, "run", name, f"cannot be understood: {error}; delete it and run the same job again")
        return None


def _read_manifest(store: OutputStore, findings: list[Finding]) -> Manifest:
    text = store.read_text(store.layout.manifest)
    manifest = None if text is None else Manifest.from_json(text)
    if manifest is None:
        wrong = "is missing" if text is None else "cannot be understood"
        _note(findings, "manifest", store.layout.manifest, f"{wrong}; run the same job again, which writes it")
        return Manifest(parts=())
    return manifest


def _check_keys(part: VerifiedPart, shard: Shard, reading: ReadOptions) -> int:
    """Compare a shard's samples with the part's rows and rejects; how many samples there are."""
    wanted = Counter(read_places(shard, reading))
    uris = {shard.uri} if shard.kind != "files" else {place.uri for place in wanted}
    stop = math.inf if shard.stop is None else shard.stop
    # Its first clip stands for a sample: that none is missing before another is checked without the source.
    found = Counter(
        Place(uri, index, key)
        for uri in uris
        for (index, clip), key in zip(part.places.get(uri, ()), part.keys.get(uri, ()), strict=True)
        if clip == 0 and (shard.kind == "files" or shard.start <= index < stop)
    )
    for what, wrong in (("neither a row nor a reject", wanted - found), ("not in the source", found - wanted)):
        if wrong:
            first = min(wrong)
            part.report(
                "keys",
                f"{count_text(wrong.total(), 'sample')} of {shard.uri} {is_or_are(wrong.total())} {what}, first "
                f"{first.key!r} (index {first.index})",
            )
    return wanted.total()


def _overlaps(parts: Sequence[VerifiedPart]) -> list[Finding]:
    """Parts that hold the same stretch of a source file: ids are of the place, so their rows have the same ids."""
    by_uri: dict[str, list[tuple[int, float, str]]] = {}
    for part in parts:
        for shard in part.shards:
            if shard.kind != "files":
                stop = math.inf if shard.stop is None else shard.stop
                by_uri.setdefault(shard.uri, []).append((shard.start, stop, part.name))
    findings = _shared_files(parts)
    for uri, stretches in by_uri.items():
        stretches.sort()
        for (_, stop, first), (start, _, second) in pairwise(stretches):
            if start < stop and first != second:  # within one part its rows say
                message = f"holds the same samples of {uri} as {first}: the source changed; delete the older of the two"
                _note(findings, "duplicates", f"data/{second}", message)
    return findings


def _shared_files(parts: Sequence[VerifiedPart]) -> list[Finding]:
    """Parts that hold the same files of a group: 12 bytes a file of the dataset are in memory."""
    hashes, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
    for number, part in enumerate(parts):
        places = {(file.uri, file.index) for s in part.shards if s.kind == "files" for file in unpack_group(s)}
        digests = (hashlib.blake2b(repr(place).encode(), digest_size=8).digest() for place in places)
        hashes.append(np.frombuffer(b"".join(digests), np.uint64))
        numbers.append(np.full(len(places), number, np.uint32))
    of_file, of_part = np.concatenate(hashes), np.concatenate(numbers)
    order = np.argsort(of_file, kind="stable")
    same = np.flatnonzero(of_file[order][1:] == of_file[order][:-1])
    findings: list[Finding] = []
    pairs = Counter(zip(of_part[order[same]].tolist(), of_part[order[same + 1]].tolist(), strict=True))
    for (first, second), count in sorted(pairs.items()):
        message = f"holds {count} files that {parts[first].name} holds, too: they changed; delete the older of the two"
        _note(findings, "duplicates", f"data/{parts[second].name}", message)
    return findings


def _progress(parts: Iterable[VerifiedPart], planned: Sequence[Shard]) -> Progress:
    committed = {shard.shard_id: shard for part in parts for shard in part.shards}
    return compare_with_committed(planned, committed, lambda ids: [committed[i] for i in ids])


def _shard_findings(parts: Iterable[VerifiedPart], progress: Progress) -> list[Finding]:
    findings: list[Finding] = []
    committed = {shard.shard_id: (part, shard) for part in parts for shard in part.shards}
    for shard in progress.pending:
        files = f"of {count_text(shard.num_samples or 0, 'file')}: " if shard.kind == "files" else ""
        _note(findings, "shards", shard.uri, f"{files}no part; run the job again")
    for shard_id in progress.unplanned:
        part, shard = committed[shard_id]
        message = f"is of {shard.uri}, which the source does not have, or has in another version"
        _note(findings, "shards", f"data/{part.name}", message)
    return findings


def _media_names() -> MediaNames:
    """The extensions of images and videos: of readers and census the one thing that they share."""
    known = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS
    extra = frozenset(extension for extension in known if missing_extra(extension) is not None)
    return MediaNames(read=known - extra, needs_extra=extra)
