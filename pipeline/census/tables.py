"""The rows of a Parquet file, by its footer alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tatok.pipeline.census.forward import open_stored

__all__ = ["Table", "count_rows"]

# What Arrow raises on bytes that are not what they should be; a store that fails is a SourceError.
_DAMAGE = (OSError, pa.ArrowException, ValueError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a footer says: rows of each row group, and the columns that hold bytes, for sure."""

    row_groups: tuple[int, ...]
    byte_columns: frozenset[str]


def count_rows(uri: str) -> Table | None:
    """What the footer says; None where it cannot be read or contradicts itself. Raises SourceError."""
    with open_stored(uri) as file:
        try:
            metadata = pq.read_metadata(pa.PythonFile(file, mode="r"))
            groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
            schema = metadata.schema.to_arrow_schema()
        except _DAMAGE:
            return None
    if sum(groups) != metadata.num_rows or min(groups, default=0) < 0:
        return None
    return Table(row_groups=groups, byte_columns=frozenset(field.name for field in schema if _holds_bytes(field.type)))


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
