"""A table's columns -> which is the image, the key, the caption, the label; the rest is metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tatok.pipeline.readers.formats import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from tatok.schemas.errors import ConfigError

__all__ = [
    "KEY_COLUMNS",
    "URI_COLUMNS",
    "SourceColumns",
    "is_byte_list",
    "media_columns",
    "parquet_columns",
    "row_attachments",
    "table_columns",
]

KEY_COLUMNS = ("__key__", "key", "id", "image_id")
CAPTION_COLUMNS = ("caption", "text", "txt")
LABEL_COLUMNS = ("label", "cls", "class", "class_name")
MEDIA_COLUMNS = ("image", "video", "img", "bytes", "image_bytes", "content")
URI_COLUMNS = (
    "uri", "url", "path", "image_url", "image_uri", "image_path", "video_url", "video_uri", "video_path",
    "file_name", "filename", "file", "image", "video",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceColumns:
    """What the columns of a table are; `holds_bytes` says whether `media` holds the bytes or says where they lie."""

    media: str
    holds_bytes: bool
    key: str | None
    caption: str | None
    label: str | None
    metadata: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Every column that is read."""
        chosen = (self.media, self.key, self.caption, self.label)
        return [name for name in (*chosen, *self.metadata) if name is not None]


def parquet_columns(schema: pa.Schema, image_field: str | None, origin: str) -> SourceColumns:
    """The columns of a Parquet file, as `media_columns` finds the image.

    Raises ConfigError, which lists the columns, where no column or more than one may be the image.
    """
    types: dict[str, pa.DataType] = {field.name: field.type for field in schema}
    found = media_columns(schema, image_field)
    if len(found) != 1:
        wanted = "is no column of bytes, {bytes, path} or URIs" if image_field else "set image_field to the image's"
        raise ConfigError(f"{origin} has the columns {', '.join(types)}: {image_field or ''}{wanted}")
    readable = [name for name, kind in types.items() if not _is_binary(kind) and not _is_struct(kind)]
    return _columns(found[0], not _is_text(types[found[0]]), readable)


def media_columns(schema: pa.Schema, image_field: str | None) -> list[str]:
    """The columns that may be the image: `image_field`, else by type and name, else one of URIs by name.

    Bytes are a binary column or the struct {bytes, path} of Hugging Face. Those of a fixed size and lists of small
    numbers, which are hashes and vectors more often than images, have to have an image's name.
    """
    types: dict[str, pa.DataType] = {field.name: field.type for field in schema}
    structs = [name for name, kind in types.items() if _is_struct(kind)]
    binaries = [name for name, kind in types.items() if _is_binary(kind)]
    others = [name for name, kind in types.items() if _is_fixed_binary(kind) or is_byte_list(kind)]
    texts = [name for name, kind in types.items() if _is_text(kind)]
    if image_field is not None:
        return [image_field] if image_field in {*structs, *binaries, *others, *texts} else []
    named = (*MEDIA_COLUMNS, *sorted(IMAGE_EXTENSIONS), *sorted(VIDEO_EXTENSIONS))
    media = structs or binaries
    by_name = _first_of(named, media) or ([] if structs else _first_of(named, others))
    found = media if len(media) == 1 and not by_name else by_name or media
    # Text in a column of that name is an address, or the image itself in base64; but "content" is an article's.
    return found or _first_of((*URI_COLUMNS, *(name for name in MEDIA_COLUMNS if name != "content")), texts)


def table_columns(names: Sequence[str], image_field: str | None, origin: str) -> SourceColumns:
    """The columns of a list of URIs; raises ConfigError if none is named like one."""
    found = [image_field] if image_field in names else [] if image_field else _first_of(URI_COLUMNS, names)
    if not found:
        raise ConfigError(
            f"{origin} has the columns {', '.join(names)}, but none of {', '.join(URI_COLUMNS)}; "
            "rename the column of URIs, or name it by image_field"
        )
    assert found[0] is not None
    return _columns(found[0], False, names)


def row_attachments(columns: SourceColumns, row: Mapping[str, Any]) -> dict[str, str]:
    """A row's caption, label and metadata as the texts of .txt, .cls and .json members; what is null is left out."""
    texts: dict[str, str] = {}
    for extension, name in (("txt", columns.caption), ("cls", columns.label)):
        if name is not None and row.get(name) is not None:
            texts[extension] = str(row[name])
    rest = {name: _plain(row[name]) for name in columns.metadata if row.get(name) is not None}
    if rest:
        texts["json"] = json.dumps(rest, ensure_ascii=False)
    return texts


def _columns(media: str, holds_bytes: bool, readable: Sequence[str]) -> SourceColumns:
    taken = {media}

    def choose(candidates: Sequence[str]) -> str | None:
        chosen = next(iter(_first_of(candidates, [name for name in readable if name not in taken])), None)
        taken.update({chosen} if chosen is not None else ())
        return chosen

    key, caption, label = choose(KEY_COLUMNS), choose(CAPTION_COLUMNS), choose(LABEL_COLUMNS)
    return SourceColumns(
        media=media,
        holds_bytes=holds_bytes,
        key=key,
        caption=caption,
        label=label,
        metadata=tuple(name for name in readable if name not in taken),
    )


def _first_of(wanted: Sequence[str], names: Collection[str]) -> list[str]:
    by_lower = {name.lower(): name for name in reversed(list(names))}
    return [by_lower[name] for name in wanted if name in by_lower][:1]


def is_byte_list(kind: pa.DataType) -> bool:
    """Whether a column's cells are bytes as lists of numbers."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_uint8(kind.value_type)


def _is_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    inner = kind.field("bytes").type
    return _is_binary(inner) or _is_fixed_binary(inner)


def _is_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_fixed_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_fixed_size_binary(kind) and not pa.types.is_decimal(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _plain(value: Any) -> Any:
    """A cell as strict JSON: what it cannot hold becomes text, not-a-number becomes null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
