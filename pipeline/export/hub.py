"""Export for the Hugging Face Hub: Parquet files of about 500 MB and a dataset card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tatok.pipeline.export.base import Export, ExportSummary
from tatok.pipeline.export.hub_card import card
from tatok.pipeline.export.merge import OnRows, group_parts, merged_footer, write_merged
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.manifest import Part
from tatok.schemas.urls import open_to_read
from tatok.statistics.summary import summarize

__all__ = ["INDEX", "OPTIONAL_COLUMNS", "export_hub"]

INDEX = "README.md"
OPTIONAL_COLUMNS = (
    "key",
    "source_uri",
    "source_index",
    "sha256",
    "caption",
    "label",
    "metadata",
    "patch_entropy_bits",
    "patch_worth_bits",
)
"""Columns that decoding does without, and that may say more than the publisher wants to."""

_ROW_GROUP_ROWS = 50_000


def export_hub(
    export: Export,
    *,
    title: str | None = None,
    license_id: str | None = None,
    file_bytes: int = 500_000_000,
    without: Sequence[str] = (),
    on_rows: OnRows = lambda num_rows: None,
) -> ExportSummary:
    """Write data/train-00000-of-000NN.parquet, ..., then README.md, the card.

    Parts are merged, in order, to files of between half and twice `file_bytes`; a part that is large enough is copied
    as it is. Rows and columns are those of the dataset, less the columns of `without`. `license_id` is one of the
    Hub's license identifiers; without it the card says that none is given.

    Raises ConfigError if `without` names a column that is not one of OPTIONAL_COLUMNS; CommitError if parts
    differ in their columns or settings.
    """
    needed = [name for name in without if name not in OPTIONAL_COLUMNS]
    if needed:
        raise ConfigError(f"--without {needed[0]}: only {', '.join(OPTIONAL_COLUMNS)} can be left out")
    data = export.data
    schema = data.schema.remove_metadata()
    groups = group_parts(data.parts, file_bytes)
    unpacked_bytes = 0
    for number, group in enumerate(groups):
        with export.scratch_file() as path:
            if len(group) == 1 and not without:
                _copy(export, group[0], path)
                on_rows(group[0].num_rows)
            else:
                footer = merged_footer(data, group)
                write_merged(
                    data,
                    group,
                    path,
                    schema=schema,
                    row_group_rows=_ROW_GROUP_ROWS,
                    footer=footer,
                    without=without,
                    on_rows=on_rows,
                )
            footer_of_file = pq.read_metadata(path)
            for index in range(footer_of_file.num_row_groups):
                unpacked_bytes += footer_of_file.row_group(index).total_byte_size
            export.publish(path, f"data/train-{number:05}-of-{len(groups):05}.parquet")
    text = card(
        data.run,
        pa.schema([field for field in schema if field.name not in without]),
        summarize(data),
        title=title or data.url.rpartition("/")[2],
        license_id=license_id,
        num_bytes=export.num_bytes,
        unpacked_bytes=unpacked_bytes,
    )
    return export.finish(INDEX, text)


def _copy(export: Export, part: Part, path: Path) -> None:
    source = export.data.path(part.name)
    try:
        with open_to_read(source) as file, path.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 22)
    except OSError as error:
        raise SourceError(f"cannot copy {source}: {error}; check the path, and the room on the disk") from error
    if path.stat().st_size != part.num_bytes:
        raise SourceError(f"{source} has {path.stat().st_size} bytes, the manifest says {part.num_bytes}")
