"""The nouns that cross package boundaries, as frozen dataclasses.

Shapes in names: B batch, N patch positions of one image, M global tokens, K kept patch tokens,
T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

__all__ = [
    "DUPLICATE",
    "FILTERED",
    "Clip",
    "Crop",
    "EntropyStatistics",
    "Grid",
    "LeftOut",
    "LeftOutMembers",
    "Reject",
    "Sample",
    "SampleFacts",
    "Shard",
    "ShardReport",
    "SourceFile",
    "TokenSequence",
    "count_text",
    "grid_text",
    "is_intended",
    "is_or_are",
    "left_out_text",
]

ShardKind = Literal["webdataset", "parquet", "files"]
Media = Literal["image", "video"]

DUPLICATE, FILTERED = "duplicate", "filtered"
"""Reasons of rejects that a job asks for; FILTERED may be followed by ": " and the filter's own."""


def is_intended(reason: str) -> bool:
    """Whether the job asked for such rejects, so that they say nothing about the health of its source."""
    return reason == DUPLICATE or reason.partition(":")[0] == FILTERED


class LeftOut(NamedTuple):
    """What is not taken as a sample, and is counted: why, and the lower-case extension without its dot.

    `extension` is "" where it says nothing ("hidden", "broken link") or where there is none.
    """

    reason: str
    extension: str = ""

    def __str__(self) -> str:
        return f".{self.extension} ({self.reason})" if self.extension else self.reason


def left_out_text(counts: Mapping[LeftOut, int]) -> str:
    """Such as "12 .heic (needs tatok[heif]), 3 hidden", the most first; "nothing" where there is nothing."""
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {each}" for each, count in most_first) or "nothing"


def count_text(count: int, noun: str, plural: str = "") -> str:
    """Such as "1 shard" and "12,345 shards"; `plural` where it is not the noun and an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def is_or_are(count: int) -> str:
    """The verb after a count."""
    return "is" if count == 1 else "are"


class Grid(NamedTuple):
    """Patch grid of one clip; N = frames * height * width, positions count in raster order."""

    frames: int
    height: int
    width: int

    @property
    def num_positions(self) -> int:
        """N, over all frames."""
        return self.frames * self.height * self.width


def grid_text(grid: Grid) -> str:
    """Such as "16x16", rows by columns; with its frames "4x16x16"."""
    return "x".join(map(str, grid[grid.frames == 1 :]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Unit of work, of retry and of commit: one source file, the samples [start, stop) of it, or a group of files.

    `stop` is None where the shard goes to the end of the file. `num_bytes` is what there is to read. `shard_id` is a
    stable hash of where the data is and what it is (uri, range, size, and the etag where the store has one): the
    name of the part that the shard becomes.

    `offset` is the byte at which the sample `start` begins, 0 where it is to be counted from the file's start.
    `version` is the size and the etag that a file had when it was split, "" where it was not. `listing` holds the
    files of a group, packed (pipeline/readers/file_groups.py); `uri` is then the folder, pattern or list of them.
    """

    uri: str
    kind: ShardKind
    start: int
    stop: int | None
    num_bytes: int
    shard_id: str
    offset: int = 0
    version: str = ""
    listing: str = ""

    def __repr__(self) -> str:
        samples = "" if self.start == 0 and self.stop is None else f" [{self.start}:{self.stop or ''}]"
        return f"Shard({self.uri}{samples}: {self.kind}, {self.num_bytes:,} bytes, {self.shard_id})"

    @property
    def num_samples(self) -> int | None:
        """How many samples there are, None where that is known only when they have been read."""
        return None if self.stop is None else self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a group: a sample of its own, where it lies and what is known of it without opening it.

    `index` is 0, or the row of the list that names the file. `num_bytes` is None and `version` (the start of its etag)
    is "" where nobody was asked. `sidecars` are the extensions of the files beside it that belong to it ("txt", "cls",
    "json"), `attachments` what a list says of it, under the same extensions.
    """

    uri: str
    key: str
    index: int = 0
    num_bytes: int | None = None
    version: str = ""
    sidecars: tuple[str, ...] = ()
    attachments: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One item as found in a shard: raw bytes, nothing decoded.

    `index` is the sample's place in its source file, from 0; (uri, index) is unique even where `key` is not.
    One sample becomes one clip or several, each a row.
    `attachments` maps a member's extension ("txt", "cls", "json") to its bytes. A video that is a file of its own is
    not read into memory: `payload` is then empty, `payload_uri` names the file to open, and `payload_bytes` says how
    large it is, where a listing did; elsewhere both are None.
    """

    key: str
    uri: str
    index: int
    media: Media
    extension: str
    payload: bytes
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    payload_uri: str | None = None
    payload_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutMembers:
    """The members of an archive that belong to no sample, counted; comes once, after a shard's samples, if any."""

    counts: Mapping[LeftOut, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """The part of the source image that was tokenized, in pixels of the source as displayed (after EXIF rotation)."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What one row is made from, ready for the tokenizer; an image is T = 1.

    `pixels` is uint8 [T, 3, H, W], sRGB. `width` and `height` are the source's, after EXIF rotation. `clip_index` is
    the clip's place among those of its sample, from 0. `flipped`: mirrored left to right after cropping.
    Clips of a video say where they start, and the time of each frame, in seconds from the start of the video;
    `fps` is the rate at which their frames were taken.
    """

    key: str
    uri: str
    index: int
    media: Media
    pixels: np.ndarray
    width: int
    height: int
    crop: Crop
    sha256: str
    clip_index: int = 0
    flipped: bool = False
    clip_start_s: float | None = None
    fps: float | None = None
    frame_pts_s: tuple[float, ...] | None = None
    caption: str | None = None
    label: str | None = None
    metadata: str | None = None

    def __repr__(self) -> str:
        frames, _, height, width = self.pixels.shape
        return f"Clip({self.key!r} of {self.uri} [{self.index}]: {frames} x {width}x{height} pixels)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFacts:
    """What a user's filter decides by; `width` and `height` are upright, texts are None where there are none.

    `num_bytes` and `sha256` are those of the encoded image or video; `metadata` is JSON.
    """

    key: str
    uri: str
    index: int
    media: Media
    extension: str
    num_bytes: int
    sha256: str
    width: int
    height: int
    caption: str | None
    label: str | None
    metadata: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyStatistics:
    """What the prior says of the patch codes of an image or of a whole clip, in bits (docs/explanation/method.md).

    For one-shot DTF (one round) `entropy_bits == kept_entropy_bits + residual_bits`. `patch_worth_bits_N` are the bits
    that DTF ranked the patches by, in its first round; None where nobody stored them.
    """

    entropy_bits: float
    kept_entropy_bits: float
    residual_bits: float
    surprisal_bits: float
    entropy_mean_bits: float
    entropy_max_bits: float
    patch_entropy_bits_N: np.ndarray
    patch_worth_bits_N: np.ndarray | None = None

    def __repr__(self) -> str:
        return (
            f"EntropyStatistics({self.entropy_bits:,.1f} bits in {len(self.patch_entropy_bits_N)} patches: "
            f"{self.kept_entropy_bits:,.1f} kept, {self.residual_bits:,.1f} dropped)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """The tokens of one image or clip: M global codes, then the K kept patch codes in raster order, frame by frame.

    `codes` is integer [M + K]; `positions` is integer [K], the grid index of each kept patch, ascending.
    Global and patch codes have codebooks of their own, so both count from 0 to vocab_size - 1.
    The globals of a clip come frame by frame, too: frame 0 has one for every cell, a later frame for the cells that it
    renews. `global_frames` and `global_cells`, integer [M], tell them apart; both are None for an image, which has all.
    `num_frames` are the frames of pixels, where the tokenizer's grid has fewer of them; else None.
    `entropy` is None where the tokenizer has no prior. Where a position has several codes, `positions` repeats it.
    """

    codes: np.ndarray
    positions: np.ndarray
    num_global: int
    grid: Grid
    entropy: EntropyStatistics | None = None
    global_frames: np.ndarray | None = None
    global_cells: np.ndarray | None = None
    num_frames: int | None = None

    def __repr__(self) -> str:
        bits = "" if self.entropy is None else f"; {self.entropy.entropy_bits:,.0f} bits"
        return (
            f"{type(self).__name__}({self.num_tokens:,} tokens, {self.num_global:,} of them global; "
            f"grid {grid_text(self.grid)}{bits})"
        )

    @property
    def num_tokens(self) -> int:
        """Globals and kept patches together."""
        return len(self.codes)

    @property
    def num_patches(self) -> int:
        """K, the codes of kept patches."""
        return len(self.positions)

    @property
    def num_kept(self) -> int:
        """Patches that are kept: K, unless each has several codes."""
        return len(np.unique(self.positions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A sample that did not become a row, or not to its end: data, not an exception.

    `clip_index` is the place of the row that is not there: the clips before it, if any, are rows.
    """

    key: str
    uri: str
    index: int
    stage: Literal["read", "dedup", "decode", "filter", "tokenize"]
    reason: str
    detail: str
    clip_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What one committed shard came to; `rejects` maps a reason to its count.

    Of its rows, `num_clips` are clips of videos, with `num_frames` in all; the others are images.
    `left_out` counts members of an archive that belong to no sample. `part_bytes`, `row_group_rows` (the rows of each
    row group) and `part_sha256` are those of the token part as published; the checksum is None where another attempt
    had published the shard first.
    """

    shard: Shard
    num_rows: int
    num_tokens: int
    rejects: Mapping[str, int]
    seconds: float
    part_bytes: int
    row_group_rows: tuple[int, ...]
    part_sha256: str | None
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)
    num_clips: int = 0
    num_frames: int = 0

    @property
    def num_rejects(self) -> int:
        """Rejects of every reason."""
        return sum(self.rejects.values())

    @property
    def num_faults(self) -> int:
        """Rejects that nobody asked for."""
        return sum(count for reason, count in self.rejects.items() if not is_intended(reason))
