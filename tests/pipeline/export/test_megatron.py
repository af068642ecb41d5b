"""The Megatron export, read by the published layout of IndexedDataset with numpy alone."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.export import megatron as module
from tatok.pipeline.export.base import open_export
from tatok.pipeline.export.megatron import Vocabulary, export_megatron
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.manifest import RunDocument
from tests.support.synthetic_tokens import write_synthetic

K, N, M = 4096, 256, 16  # codes, positions, globals of the synthetic data


@pytest.fixture
def source(tmp_path: Path) -> TokenizedData:
    write_synthetic(str(tmp_path / "source"), 400, rows_per_part=150, row_group_rows=64)
    return TokenizedData.open(tmp_path / "source")


def read_indexed(prefix: Path) -> list[np.ndarray]:
    """Documents of an IndexedDataset: header, version, dtype, counts, lengths, byte offsets, document ends."""
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, dtype_code, num_sequences, num_documents = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    dtype = {4: np.int32, 8: np.uint16}[dtype_code]
    offset = 9 + 8 + 1 + 8 + 8
    lengths = np.frombuffer(index, np.int32, num_sequences, offset)
    offset += lengths.nbytes
    pointers = np.frombuffer(index, np.int64, num_sequences, offset)
    offset += pointers.nbytes
    documents = np.frombuffer(index, np.int64, num_documents, offset)
    assert offset + documents.nbytes == len(index)
    assert documents.tolist() == list(range(num_sequences + 1))
    data = prefix.with_suffix(".bin").read_bytes()
    assert len(data) == int(lengths.sum()) * np.dtype(dtype).itemsize
    return [
        np.frombuffer(data, dtype, length, pointer) for length, pointer in zip(lengths, pointers.tolist(), strict=True)
    ]


def test_interleaved(source: TokenizedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)  # the index is written in many pieces
    part = source.read(source.parts[1].name).to_pydict()
    rewrite(source, "tokens", [part["tokens"][0][:M], *part["tokens"][1:]])  # an image of globals alone
    rewrite(source, "positions", [[], *part["positions"][1:]])
    told: list[int] = []
    summary = export_megatron(open_export(source.url, str(tmp_path / "meg")), on_rows=told.append)
    assert sum(told) == summary.num_rows == 400
    assert {path.name for path in (tmp_path / "meg").iterdir()} == {"tokens.bin", "tokens.idx", "tokens.json"}
    documents = read_indexed(tmp_path / "meg" / "tokens")
    rows = source.read_all(["tokens", "positions"]).to_pylist()
    assert len(documents) == len(rows)
    assert documents[0].dtype == np.uint16
    for document, row in zip(documents, rows, strict=True):
        pairs = zip(row["positions"], row["tokens"][M:], strict=True)
        expected = row["tokens"][:M] + [i for place, code in pairs for i in (2 * K + place, K + code)] + [2 * K + N]
        assert document.tolist() == expected
    assert len(documents[150]) == M + 1
    told_ids = json.loads((tmp_path / "meg" / "tokens.json").read_text())
    assert told_ids["layout"] == "interleaved"
    assert told_ids["token_ids"] == {
        "globals": [0, K - 1],
        "patch_codes": [K, 2 * K - 1],
        "positions": [2 * K, 2 * K + N - 1],
        "end": 2 * K + N,
    }
    assert told_ids["vocabulary_size"] == 2 * K + N + 1
    assert told_ids["dtype"] == "uint16"
    assert told_ids["num_global_tokens"] == M
    assert [part["num_rows"] for part in told_ids["data_set"]["parts"]] == [150, 150, 100]


def test_codes_with_positions_beside(source: TokenizedData, tmp_path: Path) -> None:
    export_megatron(open_export(source.url, str(tmp_path / "meg")), layout="codes", prefix="photos")
    codes = read_indexed(tmp_path / "meg" / "photos")
    places = read_indexed(tmp_path / "meg" / "photos_positions")
    rows = source.read_all(["tokens", "positions"]).to_pylist()
    for document, where, row in zip(codes, places, rows, strict=True):
        assert document.tolist() == row["tokens"][:M] + [K + code for code in row["tokens"][M:]] + [2 * K + N]
        assert where.tolist() == [N] * M + row["positions"] + [N]
    told_ids = json.loads((tmp_path / "meg" / "photos.json").read_text())
    assert told_ids["positions_prefix"] == "photos_positions"
    assert told_ids["no_position"] == N


def test_a_large_vocabulary_takes_int32(source: TokenizedData, tmp_path: Path) -> None:
    fingerprint = dict(source.run.fingerprint) | {"vocab_size": "40000"}
    run = RunDocument(schema_version="1", fingerprint=fingerprint, config={})
    OutputStore.open(source.url).write_text("_run.json", run.to_json())
    export_megatron(open_export(source.url, str(tmp_path / "meg")), layout="codes")
    documents = read_indexed(tmp_path / "meg" / "tokens")
    assert documents[0].dtype == np.int32
    assert documents[0][-1] == 80_256
    assert documents[0][M] == 40_000 + source.read_all(["tokens"]).column("tokens")[0].as_py()[M]
    assert read_indexed(tmp_path / "meg" / "tokens_positions")[0].dtype == np.uint16
    run = dataclasses.replace(run, fingerprint=fingerprint | {"vocab_size": str(1 << 31)})
    OutputStore.open(source.url).write_text("_run.json", run.to_json())
    with pytest.raises(ConfigError, match="int32"):
        export_megatron(open_export(source.url, str(tmp_path / "other")))


def test_vocabulary_is_gapless() -> None:
    vocabulary = Vocabulary(num_codes=10, num_positions=4)
    assert (vocabulary.first_patch, vocabulary.first_position, vocabulary.end, vocabulary.size) == (10, 20, 24, 25)


def rewrite(data: TokenizedData, name: str, values: list[object]) -> None:
    path = Path(data.path(data.parts[1].name))
    metadata, table = pq.read_metadata(path).metadata, pq.read_table(path)
    field = table.schema.field(name)
    table = table.set_column(table.schema.get_field_index(name), field, [pa.array(values, type=field.type)])
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=64)


def test_rows_that_one_vocabulary_cannot_tell(source: TokenizedData, tmp_path: Path) -> None:
    rewrite(source, "grid_height", [16] * 149 + [8])
    with pytest.raises(ConfigError, match=r"2 shapes \(16 globals on 1x8x16, 16 globals on 1x16x16\)"):
        export_megatron(open_export(source.url, str(tmp_path / "meg")))
    assert not list((tmp_path / "meg").rglob("tokens*"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("tokens", [[4096] * M], "a code is 4096, beyond the 4096 there are"),
        ("positions", [[256]], "a position is 256, beyond the 256 there are"),
        ("positions", [[1]], "differ in length"),
    ],
)
def test_damaged_rows_are_not_exported(
    source: TokenizedData, tmp_path: Path, column: str, values: list[object], message: str
) -> None:
    path = Path(source.path(source.parts[1].name))
    tokens = [[1] * (M + (message.startswith("a position")))]
    rewrite(source, "tokens", tokens * 150)
    rewrite(source, "positions", [[]] * 150 if column == "tokens" else [[0]] * 150)
    rewrite(source, column, values * 150)
    assert pq.read_metadata(path).num_rows == 150
    with pytest.raises(SourceError, match=message):
        export_megatron(open_export(source.url, str(tmp_path / "meg")))
    assert not list((tmp_path / "meg").rglob("tokens*"))


def test_buckets(source: TokenizedData, s3_bucket: str, tmp_path: Path) -> None:
    url = f"s3://{s3_bucket}/megatron"
    export_megatron(open_export(source.url, url))
    export_megatron(open_export(source.url, str(tmp_path / "meg")))
    for name in ("tokens.bin", "tokens.idx", "tokens.json"):
        with OutputStore.open(url).open_input(name) as file:
            assert file.read() == (tmp_path / "meg" / name).read_bytes()
