"""What lies beside the parts of a dataset: its names, the manifest and the run document as types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tatok.schemas.errors import SourceError
from tatok.schemas.records import LeftOut, is_intended
from tatok.schemas.tokens import FOOTER_CLIPS, FOOTER_LEFT_OUT, FOOTER_NUM_REJECTS, FOOTER_NUM_TOKENS, SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = [
    "LAYOUT",
    "LAYOUT_0_2",
    "LOADING",
    "LOADING_TEXT",
    "SUCCESS",
    "CompactedFrom",
    "Layout",
    "Manifest",
    "Part",
    "RunDocument",
    "RunRecord",
    "clips_of_footer",
    "layout_of",
    "left_out_from_json",
    "left_out_to_json",
]

SUCCESS = "_SUCCESS"
LOADING = ".huggingface.yaml"
LOADING_TEXT = """configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
"""
"""What tells the library `datasets` which files are rows; it skips names with a dot, but none with an underscore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The names of what lies beside data/ in a dataset's folder; `suffix` is that of rejects and hashes, Parquet too.

    A dataset keeps the names that it was begun with.
    """

    run: str
    manifest: str
    runs: str
    rejects: str
    dedup: str
    suffix: str

    def rejects_of(self, part: str) -> str:
        """Where the rejects of a part lie."""
        return f"{self.rejects}/{part.removesuffix('.parquet')}{self.suffix}"


LAYOUT = Layout(
    run="_run.json", manifest="_manifest.json", runs="_runs", rejects="_rejects", dedup="_dedup", suffix=".pq"
)
"""That of new datasets: readers of folders skip such names, and **/*.parquet matches none of them."""

LAYOUT_0_2 = Layout(
    run="run.json", manifest="manifest.json", runs="runs", rejects="rejects", dedup="dedup", suffix=".parquet"
)
"""That of tatok 0.1 and 0.2."""


def layout_of(names: Collection[str], url: str) -> Layout:
    """By what names a dataset was begun, of whose folder these are files and folders; a new one's where none says so.

    Raises SourceError if two versions of tatok wrote into it.
    """
    if LAYOUT.run in names and LAYOUT_0_2.run in names:
        raise SourceError(
            f"{url} holds both {LAYOUT_0_2.run} and {LAYOUT.run}: two versions of tatok wrote into it",
            is_permanent=True,
            remedy="once no run is at work there, delete the newer ones, which are either "
            f"{LAYOUT_0_2.run}, {LAYOUT_0_2.manifest}, {LAYOUT_0_2.rejects}/, {LAYOUT_0_2.runs}/ or those with an "
            "underscore; then run the job again, which makes what is missing from the parts",
        )
    # The run document may have been deleted; and before there is one, dedup leaves its hashes.
    for name in ("run", "manifest", "rejects", "dedup"):
        for layout in (LAYOUT, LAYOUT_0_2):
            if getattr(layout, name) in names:
                return layout
    return LAYOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One published token part; `checksum` is "sha256:..." or the store's own "etag:...".

    `row_group_rows` counts the rows of each row group, in order; they sum to `num_rows`. `left_out` counts members of
    its archive that belong to no sample. `num_clips` of its rows are clips of videos, with `num_frames` in all.
    """

    name: str
    num_rows: int
    num_tokens: int
    num_bytes: int
    row_group_rows: tuple[int, ...]
    rejects: Mapping[str, int]
    checksum: str
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)
    num_clips: int = 0
    num_frames: int = 0

    @staticmethod
    def of_footer(name: str, footer: pq.FileMetaData, *, num_bytes: int, checksum: str) -> Part:
        """What a part's footer says of it; raises KeyError, TypeError or ValueError if tatok did not write it."""
        metadata = footer.metadata or {}
        num_clips, num_frames = clips_of_footer(footer)
        return Part(
            name=name,
            num_rows=footer.num_rows,
            num_tokens=int(metadata[FOOTER_NUM_TOKENS.encode()]),
            num_bytes=num_bytes,
            row_group_rows=tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups)),
            rejects=json.loads(metadata[FOOTER_NUM_REJECTS.encode()]),
            checksum=checksum,
            left_out=left_out_from_json(json.loads(metadata.get(FOOTER_LEFT_OUT.encode(), b"[]"))),
            num_clips=num_clips,
            num_frames=num_frames,
        )

    def to_json(self) -> dict[str, Any]:
        """The part's entry in the manifest."""
        document = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("left_out", "num_clips", "num_frames"):  # there only where there is something
            if not document[name]:
                del document[name]
        return document | ({"left_out": left_out_to_json(self.left_out)} if self.left_out else {})

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Part:
        """Raises KeyError, TypeError or ValueError if it is no such entry."""
        left_out = left_out_from_json(document.get("left_out", ()))
        return Part(**{**document, "row_group_rows": tuple(document["row_group_rows"]), "left_out": left_out})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Every part of the dataset, by name, and what the last run's plan left out of its source."""

    parts: tuple[Part, ...]
    left_out_of_source: Mapping[LeftOut, int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Images and clips in all parts."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_clips(self) -> int:
        """Clips in all parts."""
        return sum(part.num_clips for part in self.parts)

    @property
    def num_frames(self) -> int:
        """Frames of all clips."""
        return sum(part.num_frames for part in self.parts)

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
    def left_out(self) -> dict[LeftOut, int]:
        """What was not taken as a sample -> count: of the source, as last planned, and of the archives in all parts."""
        counts = Counter(self.left_out_of_source)
        for part in self.parts:
            counts.update(part.left_out)
        return dict(counts)

    @property
    def reject_fraction(self) -> float:
        """Rejects that the job did not ask for, as a share of all samples; 0 where there are none."""
        num_faults = sum(count for reason, count in self.rejects.items() if not is_intended(reason))
        return num_faults / max(sum(self.rejects.values()) + self.num_rows, 1)

    def to_json(self) -> str:
        """The text of the manifest: the totals, then every part."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "num_parts": len(self.parts),
            "num_rows": self.num_rows,
            "num_tokens": self.num_tokens,
            "num_rejects": sum(self.rejects.values()),
            "rejects": self.rejects,
            "left_out": left_out_to_json(self.left_out),
            "left_out_of_source": left_out_to_json(self.left_out_of_source),
            "parts": [part.to_json() for part in self.parts],
        }
        return json.dumps(document, indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest | None:
        """The manifest in a text, or None where it cannot be understood (it can be rebuilt from the parts)."""
        try:
            document = json.loads(text)
            return Manifest(
                parts=tuple(Part.from_json(part) for part in document["parts"]),
                left_out_of_source=left_out_from_json(document.get("left_out_of_source", ())),
            )
        except (ValueError, KeyError, TypeError):
            return None


def clips_of_footer(footer: pq.FileMetaData) -> tuple[int, int]:
    """Of a part's rows, how many are clips of videos, and of how many frames all of them together."""
    num_clips, num_frames = json.loads((footer.metadata or {}).get(FOOTER_CLIPS.encode(), b"[0, 0]"))
    return num_clips, num_frames


def left_out_to_json(counts: Mapping[LeftOut, int]) -> list[dict[str, Any]]:
    """Counts as JSON has them: a list of {reason, extension, count}, in order."""
    return [
        {"reason": each.reason, "extension": each.extension, "count": count} for each, count in sorted(counts.items())
    ]


def left_out_from_json(records: Sequence[Mapping[str, Any]]) -> dict[LeftOut, int]:
    """The counts of `left_out_to_json`; raises KeyError, TypeError or ValueError where these are none."""
    return {LeftOut(str(each["reason"]), str(each["extension"])): int(each["count"]) for each in records}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactedFrom:
    """The dataset that a compacted one was merged from, as it was then; `complete` says whether it had _SUCCESS."""

    url: str
    complete: bool
    num_parts: int
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDocument:
    """The run document: the latest configuration, and the fingerprint that all parts share; both as written.

    `compacted_from` is None where `tatok tokenize` wrote the dataset.
    """

    schema_version: str
    fingerprint: Mapping[str, str]
    config: Mapping[str, Any]
    compacted_from: CompactedFrom | None = None

    def to_json(self) -> str:
        """The text of the file."""
        document = asdict(self)
        if self.compacted_from is None:
            del document["compacted_from"]
        return json.dumps(document, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> RunDocument:
        """Raises ValueError if the text is not a run document."""
        try:
            document = json.loads(text)
            compacted_from = document.get("compacted_from")
            return RunDocument(
                schema_version=str(document["schema_version"]),
                fingerprint=dict(document["fingerprint"]),
                config=dict(document["config"]),
                compacted_from=None if compacted_from is None else CompactedFrom(**compacted_from),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a run document: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What one run added to the dataset: a file of its own, written at the run's end.

    `started_at` is UTC in ISO 8601. Counts are those of the shards that this run committed.
    """

    started_at: str
    seconds: float
    status: str
    num_shards: int
    num_rows: int
    num_tokens: int
    num_rejects: int
    num_failed_shards: int

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> RunRecord:
        """Raises ValueError if the text is not such a record."""
        try:
            return RunRecord(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a run record: {error}") from error
