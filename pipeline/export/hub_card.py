"""The dataset card of the Hugging Face Hub: YAML that `datasets` reads, then text that people read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as pt
import yaml

from tatok.schemas.errors import ConfigError
from tatok.schemas.manifest import RunDocument
from tatok.schemas.tokens import REPEATS
from tatok.statistics.summary import DatasetStatistics
from tatok.statistics.units import Noun, bytes_text, noun_of, with_article

__all__ = ["COLUMNS", "card"]

COLUMNS = {
    "sample_id": "128 bits in hex that name the row; stable over runs of one source",
    "key": "the sample's key in its source",
    "source_uri": "the file that the sample was read from",
    "source_index": "its place in that file, from 0",
    "clip_index": "the row's place among those of its sample, from 0: further crops, flips or clips",
    "media": '"image" or "video"',
    "sha256": "of the encoded image, as found",
    "width": "of the source image, in pixels, as displayed",
    "height": "of the source image, in pixels, as displayed",
    "crop_left": "left edge of the part that was tokenized, in source pixels",
    "crop_top": "top edge of that part",
    "crop_width": "width of that part",
    "crop_height": "height of that part",
    "flipped": "whether it was mirrored left to right",
    "clip_start_s": "videos: where the clip starts, in seconds",
    "fps": "videos: frames a second",
    "num_frames": "1 for an image",
    "frame_pts_s": "videos: the time of each frame, in seconds",
    "tokens": "codes: the global tokens first, then the kept patch tokens in raster order",
    "positions": "grid index of each kept patch, ascending; as long as `num_patch_tokens`",
    "global_frames": "clips: the frame that each global token belongs to, ascending; null for an image",
    "global_cells": "clips: the cell of the frame that each global token describes; null for an image, which has all",
    "num_tokens": "length of `tokens`",
    "num_global_tokens": "how many of them are global",
    "num_patch_tokens": "how many of them are kept patches",
    "grid_frames": "patch grid: frames",
    "grid_height": "patch grid: rows",
    "grid_width": "patch grid: columns",
    "entropy_bits": "entropy of all patch codes, given the globals",
    "kept_entropy_bits": "the part of it at the kept positions",
    "residual_bits": "the entropy left at the filtered positions",
    "surprisal_bits": "-log2 of the prior's probability of the codes that occurred",
    "entropy_mean_bits": "mean entropy of a position",
    "entropy_max_bits": "largest entropy of a position",
    "patch_entropy_bits": "entropy of each position, in raster order",
    "patch_worth_bits": "bits by which DTF ranked each position, in raster order",
    "caption": "the source's .txt, if any",
    "label": "the source's .cls, if any",
    "metadata": "the source's .json, if any, as text",
}
"""What each column of the token table holds, in a phrase."""

_TYPE_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
_TASKS: dict[Noun, tuple[str, ...]] = {  # of the Hub's list, which has no generation of videos from nothing
    "image": ("unconditional-image-generation",),
    "clip": ("other",),
    "row": ("unconditional-image-generation", "other"),
}
_TAGS: dict[Noun, tuple[str, ...]] = {
    "image": ("image-tokens",),
    "clip": ("video-tokens",),
    "row": ("image-tokens", "video-tokens"),
}
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")  # the Hub's own categories


def card(
    run: RunDocument,
    schema: pa.Schema,
    statistics: DatasetStatistics,
    *,
    title: str,
    license_id: str | None,
    num_bytes: int,
    unpacked_bytes: int,
) -> str:
    """The text of README.md. `num_bytes` is the size of the Parquet files, `unpacked_bytes` that of their columns.

    Raises ConfigError if a column has a type that the Hub's metadata cannot name.
    """
    front: dict[str, Any] = {"pretty_name": title}
    if license_id is not None:
        front["license"] = license_id
    noun = noun_of(statistics)
    front |= {
        "task_categories": list(_TASKS[noun]),
        "tags": ["tatok", *_TAGS[noun], "discrete-tokens"],
        "size_categories": [_size_category(statistics.num_rows)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "dataset_info": {
            "features": [_feature(field) for field in schema],
            # `datasets` ignores splits that lack one of these; with them it notices a missing file.
            "splits": [{"name": "train", "num_bytes": unpacked_bytes, "num_examples": statistics.num_rows}],
            "download_size": num_bytes,
            "dataset_size": unpacked_bytes,
        },
    }
    yaml_text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=120)
    sections = [
        f"# {_plain(title)}",
        _introduction(statistics, run, license_id),
        _figures(statistics, num_bytes),
        _loading(run, noun),
        _columns(schema, noun),
        _recipe(run),
    ]
    return f"---\n{yaml_text}---\n\n" + "\n\n".join(sections) + "\n"


def _introduction(statistics: DatasetStatistics, run: RunDocument, license_id: str | None) -> str:
    noun = noun_of(statistics)
    what = "images and clips" if noun == "row" else f"{noun}s"
    text = f"{statistics.num_rows:,} {what} as sequences of discrete tokens, made with "
    if run.config.get("tokenizer") is None:
        globals_of = "an image" if noun == "image" else "a frame, none where it follows the frame before"
        text += (
            f"TaTok: a few global tokens {globals_of}, and patch tokens only where the image says something that the "
            f"globals do not. So sequences vary in length, and every {noun} carries its token count and entropies."
        )
    else:
        text += f"the tokenizer `{_made_by(run)}` by tatok's pipeline."
        text += "" if statistics.has_entropy else " It says no entropies, so that their columns are null."
    if not statistics.complete:
        text += " The job that wrote it had not finished: not all of its source is here."
    if license_id is None:
        text += "\n\nNo license is given yet. Tokens decode to images: the rights of the source apply."
    return text


def _figures(statistics: DatasetStatistics, num_bytes: int) -> str:
    noun = noun_of(statistics)
    rows = [
        (f"{noun}s", f"{statistics.num_rows:,}"),
        ("tokens", f"{statistics.num_tokens:,}"),
        ("size", f"{bytes_text(num_bytes)}, {num_bytes / max(statistics.num_tokens, 1):.2f} bytes a token"),
        ("samples that could not be tokenized", f"{statistics.num_rejects:,}"),
    ]
    a_noun = with_article(noun)
    for name, phrase in (("num_tokens", f"tokens {a_noun}"), ("entropy_bits", f"entropy of {a_noun}, bits")):
        for found in statistics.distributions:
            if found.column == name:
                numbers = (found.mean, found.min, found.p5, found.median, found.p95, found.max)
                words = ("mean", "least", "5 %", "median", "95 %", "most")
                rows.append(
                    (phrase, ", ".join(f"{word} {number:,.5g}" for word, number in zip(words, numbers, strict=True)))
                )
    for codebook in statistics.codebooks:
        if not codebook.num_tokens:
            continue
        rows.append(
            (
                f"{codebook.kind} codebook",
                f"{codebook.num_codes_used:,} of {codebook.vocab_size:,} codes used, perplexity "
                f"{codebook.perplexity:,.0f}",
            )
        )
    notes = [
        f"{what} rest on {basis.num_rows:,} of {basis.num_rows_total:,} {noun}s."
        for what, basis in (("Distributions", statistics.row_basis), ("Codebook figures", statistics.token_basis))
        if not basis.exact
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return "\n\n".join([f"## In figures\n\n| | |\n|---|---|\n{table}", *notes])


def _made_by(run: RunDocument) -> str:
    """What the run document calls a tokenizer of the user's own, without the folder that its file lay in."""
    return _plain(str(run.config["tokenizer"]).rpartition("/")[2])


def _loading(run: RunDocument, noun: Noun) -> str:
    return f"""## Load and decode

```python
from datasets import load_dataset

rows = load_dataset("USER/NAME", split="train")
rows[0]["tokens"], rows[0]["positions"]
```

{_decoding(run, noun) if run.config.get("tokenizer") is None else _decoding_by_own(run, noun)}"""


def _decoding_call(noun: Noun) -> str:
    if noun == "image":
        return 'pixels = tokenizer.decode(token_sequences(rows.with_format("arrow")[:9]))  # uint8 [9, 3, H, W]'
    comment = "uint8 [1, T, 3, H, W]; several at once must have one grid"
    return f'pixels = tokenizer.decode_clips(token_sequences(rows.with_format("arrow")[:1]))  # {comment}'


def _decoding_by_own(run: RunDocument, noun: Noun) -> str:
    codes_each = run.fingerprint.get("codes_per_position")
    several = "" if codes_each is None else f"\n\nEvery position has {_plain(codes_each)} codes, one after another."
    return f"""Back to pixels, with the tokenizer that made them and its options (`tokenizer_options`):

```python
from tatok import load_tokenizer, token_sequences

tokenizer = load_tokenizer({_made_by(run)!r}, options={{}})
{_decoding_call(noun)}
```{several}"""


def _decoding(run: RunDocument, noun: Noun) -> str:
    checkpoint = run.config.get("checkpoint")
    weights = run.fingerprint.get("tokenizer.weights_sha256", "unknown")
    if checkpoint is None:
        argument, origin = "", "that comes with tatok"
    else:
        # The last name only: the rest is of the machine that it lay on.
        name = str(checkpoint).rstrip("/").rpartition("/")[2]
        argument, origin = repr(name), f"`{_plain(name)}`"
    return f"""Back to pixels, with the checkpoint {origin} (SHA-256 of its weights: `{_plain(weights)}`):

```python
from tatok import Tokenizer, token_sequences

tokenizer = Tokenizer.load({argument})
{_decoding_call(noun)}
```

Global and patch codes have a codebook each, both from 0: a model that shares one embedding adds
{_plain(run.fingerprint.get("vocab_size", "the vocabulary's size"))} to one of the kinds."""


def _columns(schema: pa.Schema, noun: Noun) -> str:
    lines = [f"| `{field.name}` | {_type_text(field)} | {_meaning(field.name, schema.names)} |" for field in schema]
    one_row = "an image or a clip" if noun == "row" else f"one {noun}"
    return f"## Columns\n\nOne row is {one_row}.\n\n| column | type | |\n|---|---|---|\n" + "\n".join(lines)


def _meaning(name: str, present: Sequence[str]) -> str:
    repeats = REPEATS.get(name)
    of = () if repeats is None else [each for each in COLUMNS if re.search(rf"\b{each}\b", repeats)]
    if repeats is None or not set(of) <= set(present):  # what was left out cannot be repeated
        return COLUMNS.get(name, "")
    return f"{COLUMNS[name]}; *repeats* `{repeats}`"


def _recipe(run: RunDocument) -> str:
    lines = [f"| {_plain(name)} | `{_plain(value)}` |" for name, value in sorted(run.fingerprint.items())]
    return "## How it was made\n\nEverything that the tokens depend on:\n\n| | |\n|---|---|\n" + "\n".join(lines)


def _plain(text: str) -> str:
    # Into Markdown tables and code spans: nothing that ends them.
    return " ".join(str(text).split()).replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")")


def _feature(field: pa.Field) -> dict[str, str]:
    # "sequence" rather than "list": `datasets` of every version reads it.
    kind = "sequence" if pt.is_list(field.type) else "dtype"
    return {"name": field.name, kind: _type_name(field)}


def _type_name(field: pa.Field) -> str:
    kind = field.type.value_type if pt.is_list(field.type) else field.type
    if pt.is_nested(kind):
        raise ConfigError(f"column {field.name} has the type {field.type}, which the Hub's metadata cannot name")
    return _TYPE_NAMES.get(str(kind), str(kind))


def _type_text(field: pa.Field) -> str:
    return f"list of {_type_name(field)}" if pt.is_list(field.type) else _type_name(field)


def _size_category(num_rows: int) -> str:
    below = [name for place, name in enumerate(_SIZES) if num_rows >= 1000 * 10**place]
    if len(below) == len(_SIZES):
        return f"n>{_SIZES[-1]}"
    upper = f"n<{_SIZES[len(below)]}"
    return f"{below[-1]}<{upper}" if below else upper
