"""A whole data set, checked: run, manifest, every part, and on demand every sample of the source."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from pipeline.plan import plan_shards
from pipeline.read import read_samples
from pipeline.store import OutputStore
from pipeline.verify_part import CHECKS, CheckName, Finding, VerifiedPart, verify_part
from schemas.errors import SourceError
from schemas.job import Limits
from schemas.manifest import MANIFEST, RUN, SUCCESS, Manifest, RunDocument
from schemas.records import Shard

__all__ = ["Verification", "verify_output"]

_NUM_READERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked and what is wrong; `num_samples` are the source's, None where it was not asked for."""

    url: str
    num_parts: int
    num_rows: int
    num_rejects: int
    num_samples: int | None
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return not self.findings

    @property
    def checks(self) -> Mapping[CheckName, int]:
        """Check -> number of findings, of those that were done, in the order of `CHECKS`."""
        counts = Counter(finding.check for finding in self.findings)
        with_source = self.num_samples is not None
        return {name: counts[name] for name in CHECKS if with_source or name not in ("shards", "keys")}


def verify_output(
    url: str, source: Sequence[str] = (), *, on_part: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Check everything that can be checked of a data set; nothing is written.

    With `source` (patterns as for `plan_shards`) every shard is read again, and each of its samples must be a row or
    a reject of the part, and nothing else may be. `on_part` is told how many parts of how many are done. Memory: the
    places and keys of the parts being read, a row group each, and the shards of all parts.

    Raises SourceError where there is no data set, or the source cannot be read; OSError where the store fails.
    """
    store = OutputStore.open(url)
    sizes = {name: size for name, size in store.list_files("data").items() if name.endswith(".parquet")}
    rejects = store.list_files("rejects")
    findings: list[Finding] = []
    run = _read_run(store, findings)
    if run is None:
        if not sizes and not findings:
            raise SourceError(f"{store.url} holds no tokenized data set (no {RUN}, no data/part-*.parquet)")
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
    for name in sorted(rejects.keys() - sizes.keys()):
        _note(findings, "rejects", f"rejects/{name}", "has no token part: its shard was not committed; tokenize again")

    planned = {shard.shard_id: shard for shard in plan_shards(source)} if source else None
    limits = Limits.model_validate(run.config.get("limits") or {})

    def check(name: str) -> tuple[VerifiedPart, int]:
        part = verify_part(
            store,
            name,
            fingerprint=run.fingerprint,
            recorded=recorded.get(name),
            has_rejects=name in rejects,
        )
        num_samples = 0
        if planned is not None:
            for shard in part.shards:
                if shard.shard_id in planned:
                    num_samples += _check_keys(part, shard, limits, run.config.get("image_field"))
        part.places, part.keys = {}, {}  # only the shards are still needed
        return part, num_samples

    parts: list[VerifiedPart] = []
    num_samples = 0
    with ThreadPoolExecutor(max_workers=_NUM_READERS) as pool:
        for done, (part, in_source) in enumerate(pool.map(check, sorted(sizes)), 1):
            parts.append(part)
            findings += part.findings
            num_samples += in_source
            on_part(done, len(sizes))
    findings += _overlaps(parts)
    if planned is not None:
        findings += _shard_findings(parts, planned)
    return Verification(
        url=store.url,
        num_parts=len(parts),
        num_rows=sum(part.num_rows for part in parts),
        num_rejects=sum(part.num_rejects for part in parts),
        num_samples=None if planned is None else num_samples,
        findings=tuple(sorted(findings, key=lambda finding: (list(CHECKS).index(finding.check), finding.file))),
    )


def _note(findings: list[Finding], check: CheckName, file: str, message: str) -> None:
    findings.append(Finding(check=check, file=file, message=message))


def _read_run(store: OutputStore, findings: list[Finding]) -> RunDocument | None:
    text = store.read_text(RUN)
    if text is None:
        if store.list_files("data"):
            _note(findings, "run", RUN, "is missing; run the same job again, which writes it")
        return None
    try:
        return RunDocument.from_json(text)
    except ValueError as error:
        _note(findings, "run", RUN, f"cannot be understood: {error}; delete it and run the same job again")
        return None


def _read_manifest(store: OutputStore, findings: list[Finding]) -> Manifest:
    text = store.read_text(MANIFEST)
    manifest = None if text is None else Manifest.from_json(text)
    if manifest is None:
        wrong = "is missing" if text is None else "cannot be understood"
        _note(findings, "manifest", MANIFEST, f"{wrong}; run the same job again, which writes it")
        return Manifest(parts=())
    return manifest


def _check_keys(part: VerifiedPart, shard: Shard, limits: Limits, image_field: str | None) -> int:
    """Compare a shard's samples with the part's rows and rejects; how many samples there are."""
    places = zip(part.places.get(shard.uri, ()), part.keys.get(shard.uri, ()), strict=True)
    # Its first clip stands for a sample: that none is missing before another is checked without the source.
    found = Counter((index, key) for (index, clip), key in places if clip == 0)
    wanted = Counter[tuple[int, str]]()
    for sample in read_samples(shard, max_sample_bytes=limits.max_sample_bytes, image_field=image_field):
        wanted[sample.index, sample.key] += 1
    stop = math.inf if shard.stop is None else shard.stop
    found = Counter({place: n for place, n in found.items() if shard.start <= place[0] < stop})
    for what, wrong in (("neither a row nor a reject", wanted - found), ("not in the source", found - wanted)):
        if wrong:
            index, key = min(wrong)
            part.report("keys", f"{wrong.total()} samples of {shard.uri} are {what}, first {key!r} (index {index})")
    return wanted.total()


def _overlaps(parts: Iterable[VerifiedPart]) -> list[Finding]:
    """Parts that hold the same stretch of a source file: ids are of the place, so their rows have the same ids."""
    by_uri: dict[str, list[tuple[int, float, str]]] = {}
    for part in parts:
        for shard in part.shards:
            stop = math.inf if shard.stop is None else shard.stop
            by_uri.setdefault(shard.uri, []).append((shard.start, stop, part.name))
    findings: list[Finding] = []
    for uri, stretches in by_uri.items():
        stretches.sort()
        for (_, stop, first), (start, _, second) in pairwise(stretches):
            if start < stop and first != second:  # within one part its rows tell
                message = f"holds the same samples of {uri} as {first}: the source changed; delete the older of the two"
                _note(findings, "duplicates", f"data/{second}", message)
    return findings


def _shard_findings(parts: Iterable[VerifiedPart], planned: Mapping[str, Shard]) -> list[Finding]:
    findings: list[Finding] = []
    committed = {shard.shard_id: (part, shard) for part in parts for shard in part.shards}
    for shard_id in planned.keys() - committed.keys():
        _note(findings, "shards", planned[shard_id].uri, "has no part; run the job again")
    for shard_id in committed.keys() - planned.keys():
        part, shard = committed[shard_id]
        message = f"is of {shard.uri}, which the source does not have, or has in another version"
        _note(findings, "shards", f"data/{part.name}", message)
    return findings
