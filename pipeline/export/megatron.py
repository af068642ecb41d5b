"""Export to Megatron-LM: one image or clip a document of an indexed dataset (.bin, .idx), in one vocabulary."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np
import pyarrow as pa

from tatok.pipeline.export.base import Export, ExportSummary, index_text, list_values, read_slices
from tatok.pipeline.export.merge import OnRows
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.records import Grid

__all__ = ["Layout", "Vocabulary", "export_megatron"]

Layout = Literal["interleaved", "codes"]

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_DTYPE_CODES = {"<i4": 4, "<u2": 8}  # of Megatron's own numbering, those that it picks for token ids
_CHUNK = 1 << 20
_SHAPE_COLUMNS = ("num_global_tokens", "grid_frames", "grid_height", "grid_width")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Where the ids of one sequence come from: K codes a codebook, N positions.

    Globals are 0 .. K-1, patch codes K .. 2K-1, positions 2K .. 2K+N-1, the end of an image 2K+N.
    """

    num_codes: int
    num_positions: int

    @property
    def first_patch(self) -> int:
        """Id of patch code 0."""
        return self.num_codes

    @property
    def first_position(self) -> int:
        """Id of grid position 0."""
        return 2 * self.num_codes

    @property
    def end(self) -> int:
        """The last id, which ends each image."""
        return 2 * self.num_codes + self.num_positions

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.end + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    num_global: int
    grid: Grid


def export_megatron(
    export: Export,
    *,
    layout: Layout = "interleaved",
    prefix: str = "tokens",
    on_rows: OnRows = lambda num_rows: None,
) -> ExportSummary:
    """Write PREFIX.bin and PREFIX.idx as Megatron-LM's IndexedDataset reads them, then PREFIX.json, which says ids.

    Document i is row i of the dataset. "interleaved": the globals, then for each kept patch its position and its code,
    then the end. "codes": the globals, the patch codes, the end; PREFIX_positions.bin and .idx then hold, for each id,
    the grid position of a patch, and N for globals and the end.

    Raises ConfigError if rows differ in their grid or number of globals (one vocabulary would not tell them apart)
    or there are more ids than int32 holds; SourceError if a code or position is out of range.
    """
    shape = _only_shape(export)
    vocabulary = Vocabulary(num_codes=export.data.vocab_size, num_positions=shape.grid.num_positions)
    if vocabulary.size > np.iinfo(np.int32).max:
        raise ConfigError(f"{export.data.url} needs {vocabulary.size:,} ids, more than Megatron's int32 holds")
    with ExitStack() as files:

        def writer(size: int) -> _IndexedWriter:
            scratch = [files.enter_context(export.scratch_file()) for _ in range(3)]
            return files.enter_context(_IndexedWriter(scratch[0], scratch[1], scratch[2], _id_dtype(size)))

        tokens = writer(vocabulary.size)
        places = writer(vocabulary.num_positions + 1) if layout == "codes" else None
        for table in read_slices(export.data, ["tokens", "positions"]):
            rows = _Rows.of(table, shape, vocabulary)
            if places is None:
                tokens.write(*rows.interleaved(vocabulary))
            else:
                tokens.write(*rows.codes(vocabulary))
                places.write(*rows.places(vocabulary))
            on_rows(len(table))
        tokens.publish(export, prefix)
        if places is not None:
            places.publish(export, f"{prefix}_positions")
    return export.finish(f"{prefix}.json", index_text(_describe(export, layout, prefix, shape, vocabulary)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Rows of one table as flat arrays; `row_T` and `within_T` are each token's row and its place in it."""

    num_global: int
    lengths_B: np.ndarray
    row_T: np.ndarray
    within_T: np.ndarray
    codes_T: np.ndarray
    positions_P: np.ndarray

    @staticmethod
    def of(table: pa.Table, shape: _Shape, vocabulary: Vocabulary) -> _Rows:
        codes, offsets = list_values(table.column("tokens"))
        positions, position_offsets = list_values(table.column("positions"))
        lengths = np.diff(offsets)
        if not np.array_equal(lengths, np.diff(position_offsets) + shape.num_global):
            raise SourceError("a row's tokens and positions differ in length; the part is damaged: tokenize it again")
        for what, values, size in (
            ("code", codes, vocabulary.num_codes),
            ("position", positions, vocabulary.num_positions),
        ):
            if len(values) and int(values.max()) >= size:
                raise SourceError(f"a {what} is {values.max()}, beyond the {size} there are; the part is damaged")
        return _Rows(
            num_global=shape.num_global,
            lengths_B=lengths,
            row_T=np.repeat(np.arange(len(lengths)), lengths),
            within_T=np.arange(len(codes)) - np.repeat(offsets[:-1], lengths),
            codes_T=codes.astype(np.int64),
            positions_P=positions.astype(np.int64),
        )

    def interleaved(self, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """(ids, lengths): globals, then position and code of each patch, then the end."""
        lengths = self.num_global + 2 * (self.lengths_B - self.num_global) + 1
        starts = np.cumsum(lengths) - lengths
        ids = np.full(int(lengths.sum()), vocabulary.end)
        is_patch = self.within_T >= self.num_global
        patch_places = (starts[self.row_T] + 2 * self.within_T - self.num_global)[is_patch]
        ids[(starts[self.row_T] + self.within_T)[~is_patch]] = self.codes_T[~is_patch]
        ids[patch_places] = self.positions_P + vocabulary.first_position
        ids[patch_places + 1] = self.codes_T[is_patch] + vocabulary.first_patch
        return ids, lengths

    def codes(self, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """(ids, lengths): globals, patch codes, the end."""
        return self._with_end(
            self.codes_T + vocabulary.first_patch * (self.within_T >= self.num_global), vocabulary.end
        )

    def places(self, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """(positions, lengths): the patches' positions, N elsewhere; of the same lengths as `codes`."""
        positions = np.full(len(self.codes_T), vocabulary.num_positions)
        positions[self.within_T >= self.num_global] = self.positions_P
        return self._with_end(positions, vocabulary.num_positions)

    def _with_end(self, values_T: np.ndarray, end: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = self.lengths_B + 1
        ids = np.full(int(lengths.sum()), end)
        ids[np.arange(len(values_T)) + self.row_T] = values_T
        return ids, lengths


class _IndexedWriter:
    """Writes one .bin as documents come, and its .idx at the end; lengths wait in a file, not in memory."""

    def __init__(self, bin_path: Path, idx_path: Path, lengths_path: Path, dtype: str) -> None:
        self._bin_path, self._idx_path, self._lengths_path = bin_path, idx_path, lengths_path
        self._dtype = np.dtype(dtype)
        self._bin: BinaryIO = bin_path.open("wb")
        self._lengths: BinaryIO = lengths_path.open("wb")
        self._num_documents = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bin.close()
        self._lengths.close()

    def write(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their ids one after the other, and the length of each."""
        self._bin.write(ids.astype(self._dtype).tobytes())
        self._lengths.write(lengths.astype("<i4").tobytes())
        self._num_documents += len(lengths)

    def publish(self, export: Export, prefix: str) -> None:
        """Write the index and give both files their names, the .idx last."""
        self._bin.close()
        self._lengths.close()
        with self._idx_path.open("wb") as idx:
            idx.write(_MAGIC + struct.pack("<QB", _VERSION, _DTYPE_CODES[self._dtype.str]))
            # One sequence a document; documents are given by their ends, from 0.
            idx.write(struct.pack("<QQ", self._num_documents, self._num_documents + 1))
            for lengths in self._read_lengths():
                idx.write(lengths.tobytes())
            start = 0
            for lengths in self._read_lengths():
                ends = start + np.cumsum(lengths, dtype="<i8") * self._dtype.itemsize
                idx.write((ends - lengths.astype("<i8") * self._dtype.itemsize).tobytes())
                start = int(ends[-1])
            for first in range(0, self._num_documents + 1, _CHUNK):
                idx.write(np.arange(first, min(first + _CHUNK, self._num_documents + 1), dtype="<i8").tobytes())
        export.publish(self._bin_path, f"{prefix}.bin")
        export.publish(self._idx_path, f"{prefix}.idx")

    def _read_lengths(self) -> Iterator[np.ndarray]:
        with self._lengths_path.open("rb") as file:
            while block := file.read(_CHUNK * 4):
                yield np.frombuffer(block, dtype="<i4")


def _id_dtype(num_ids: int) -> str:
    return "<u2" if num_ids < 65_500 else "<i4"  # as Megatron's own DType.optimal_dtype


def _only_shape(export: Export) -> _Shape:
    shapes: set[tuple[int, ...]] = set()
    for table in read_slices(export.data, _SHAPE_COLUMNS):
        counted = table.group_by(list(_SHAPE_COLUMNS)).aggregate([])
        shapes |= {tuple(row[name] for name in _SHAPE_COLUMNS) for row in counted.to_pylist()}
    if len(shapes) != 1:
        found = ", ".join("{} globals on {}x{}x{}".format(*shape) for shape in sorted(shapes)[:4])
        raise ConfigError(
            f"{export.data.url} holds rows of {len(shapes)} shapes ({found or 'no rows'}); one Megatron vocabulary "
            "needs exactly one: export a dataset of one image size"
        )
    num_global, frames, height, width = shapes.pop()
    return _Shape(num_global=num_global, grid=Grid(frames, height, width))


def _describe(export: Export, layout: Layout, prefix: str, shape: _Shape, vocabulary: Vocabulary) -> dict[str, object]:
    sequences = {
        "interleaved": "globals, then (position, patch code) of each kept patch in raster order, then the end",
        "codes": "globals, then the code of each kept patch in raster order, then the end",
    }
    return {
        "layout": layout,
        "sequence": sequences[layout],
        "token_ids": {
            "globals": [0, vocabulary.first_patch - 1],
            "patch_codes": [vocabulary.first_patch, vocabulary.first_position - 1],
            "positions": [vocabulary.first_position, vocabulary.end - 1],
            "end": vocabulary.end,
        },
        "vocabulary_size": vocabulary.size,
        "dtype": np.dtype(_id_dtype(vocabulary.size)).name,
        "positions_prefix": f"{prefix}_positions" if layout == "codes" else None,
        "no_position": vocabulary.num_positions,
        "num_documents": export.data.num_rows,
        "num_global_tokens": shape.num_global,
        "grid": shape.grid._asdict(),
        "data_set": export.describe(),
    }
