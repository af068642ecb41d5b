"""The Arrow schemas of a tokenized dataset: the token table, the rejects table, their version and footer keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pyarrow as pa

from tatok.schemas.errors import ConfigError

__all__ = [
    "ENTROPY_COLUMNS",
    "FOOTER_CLIPS",
    "FOOTER_FINGERPRINT",
    "FOOTER_LEFT_OUT",
    "FOOTER_NUM_REJECTS",
    "FOOTER_NUM_TOKENS",
    "FOOTER_REJECTS",
    "FOOTER_SCHEMA_VERSION",
    "FOOTER_SHARD",
    "FOOTER_SHARDS",
    "REJECTS_SCHEMA",
    "REPEATS",
    "SCHEMA_VERSION",
    "code_dtype",
    "code_type",
    "recorded_schema",
    "token_schema",
]

SCHEMA_VERSION = "2"
"""Raised whenever a column changes its name, type or meaning.

Version 1 had no `clip_index` and no `flipped` (0 and false in all its rows), and no clips of several frames, whose
globals `global_frames` and `global_cells` place. Its datasets are read as they are:
loaded, queried, decoded. What checks, merges or adds to parts asks for the present version.
Datasets whose fingerprint says `entropy: none` have nulls in the six columns of entropies, which are else never null.
"""

# Keys of the Parquet footer's metadata; the values are UTF-8 text.
FOOTER_SCHEMA_VERSION = "tatok.schema_version"
FOOTER_FINGERPRINT = "tatok.fingerprint"  # JSON object, the same as in the run document
FOOTER_SHARD = "tatok.shard"  # JSON object: the Shard's fields
FOOTER_SHARDS = "tatok.shards"  # in its place in a merged part: JSON list of them, in the order of their rows
FOOTER_NUM_TOKENS = "tatok.num_tokens"  # decimal
FOOTER_NUM_REJECTS = "tatok.num_rejects"  # JSON object: reason -> count
FOOTER_LEFT_OUT = "tatok.left_out"  # JSON list of {reason, extension, count}; not there where nothing was left out
FOOTER_CLIPS = "tatok.clips"  # JSON list: rows that are clips of videos, and their frames; not there where none are
FOOTER_REJECTS = "tatok.rejects"  # the rejects themselves: an Arrow stream of the table, zstd, in base64

MAX_POSITIONS = 1 << 16

ENTROPY_COLUMNS = (
    "entropy_bits",
    "kept_entropy_bits",
    "residual_bits",
    "surprisal_bits",
    "entropy_mean_bits",
    "entropy_max_bits",
)
"""What a tokenizer's prior says of an image as a whole; null where it has none."""


REPEATS = {
    "clip_start_s": "frame_pts_s[1]",
    "num_tokens": "num_global_tokens + num_patch_tokens",
    "num_patch_tokens": "len(positions)",
    "residual_bits": "entropy_bits - kept_entropy_bits",  # with one round of DTF
    "entropy_mean_bits": "entropy_bits / (grid_frames * grid_height * grid_width)",
    "entropy_max_bits": "list_max(patch_entropy_bits)",  # where it is stored, in float16
}
"""Columns that follow from others, and how, in SQL; docs/explanation/entropy-columns.md says why they are kept."""


def code_type(vocab_size: int) -> pa.DataType:
    """The narrowest Arrow integer that holds codes 0 .. vocab_size - 1 (uint16, or uint32 above 65,536 codes).

    Raises ConfigError if vocab_size is not in 1 .. 2**32.
    """
    if not 1 <= vocab_size <= 1 << 32:
        raise ConfigError(f"vocab_size is {vocab_size}; it must be in 1 .. 4294967296")
    return pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()


def code_dtype(vocab_size: int) -> np.dtype[np.integer]:
    """The same as `code_type`, as NumPy has it."""
    return np.dtype(code_type(vocab_size).to_pandas_dtype())


@cache  # one is asked for with every batch of rows
def token_schema(
    vocab_size: int, *, patch_entropy: bool, patch_worth: bool = False, has_entropy: bool = True
) -> pa.Schema:
    """The token table: one row an image or clip.

    `global_frames` and `global_cells` give the place of each global token of a clip; they are null for images.
    With `patch_entropy` the column `patch_entropy_bits` (float16, all N positions in raster order) is there,
    with `patch_worth` the column `patch_worth_bits` of the same kind. Without `has_entropy` all columns of entropies
    are there, and null.
    """
    fields = [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("source_index", pa.int64(), nullable=False),
        pa.field("clip_index", pa.int32(), nullable=False),
        pa.field("media", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("crop_left", pa.int32(), nullable=False),
        pa.field("crop_top", pa.int32(), nullable=False),
        pa.field("crop_width", pa.int32(), nullable=False),
        pa.field("crop_height", pa.int32(), nullable=False),
        pa.field("flipped", pa.bool_(), nullable=False),
        pa.field("clip_start_s", pa.float64()),
        pa.field("fps", pa.float64()),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("frame_pts_s", pa.list_(pa.float64())),
        pa.field("tokens", pa.list_(pa.field("element", code_type(vocab_size), nullable=False)), nullable=False),
        pa.field("positions", pa.list_(pa.field("element", pa.uint16(), nullable=False)), nullable=False),
        pa.field("global_frames", pa.list_(pa.field("element", pa.uint16(), nullable=False))),
        pa.field("global_cells", pa.list_(pa.field("element", pa.uint16(), nullable=False))),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_global_tokens", pa.int32(), nullable=False),
        pa.field("num_patch_tokens", pa.int32(), nullable=False),
        pa.field("grid_frames", pa.int32(), nullable=False),
        pa.field("grid_height", pa.int32(), nullable=False),
        pa.field("grid_width", pa.int32(), nullable=False),
        *(pa.field(name, pa.float32(), nullable=not has_entropy) for name in ENTROPY_COLUMNS),
    ]
    if patch_entropy:
        fields.append(pa.field("patch_entropy_bits", pa.list_(pa.field("element", pa.float16(), nullable=False))))
    if patch_worth:
        fields.append(pa.field("patch_worth_bits", pa.list_(pa.field("element", pa.float16(), nullable=False))))
    fields += [
        pa.field("caption", pa.string()),
        pa.field("label", pa.string()),
        pa.field("metadata", pa.string()),
    ]
    return pa.schema(fields)


def recorded_schema(fingerprint: Mapping[str, str]) -> pa.Schema:
    """The token table of a dataset with this fingerprint; raises KeyError or ValueError if it is none."""
    return token_schema(
        int(fingerprint["vocab_size"]),
        patch_entropy=fingerprint.get("patch_entropy") != "false",
        patch_worth=fingerprint.get("patch_worth") == "true",
        has_entropy=fingerprint.get("entropy") != "none",
    )


REJECTS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("source_index", pa.int64(), nullable=False),
        pa.field("clip_index", pa.int32(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
