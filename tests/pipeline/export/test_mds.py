"""The MDS export: read back by MosaicML Streaming where it is installed; what we hand to its writer everywhere."""

from __future__ import annotations

import json
import math
import sys
import types
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.export.base import open_export
from tatok.pipeline.export.mds import export_mds, require_streaming
from tatok.schemas.errors import ConfigError
from tests.support.synthetic_tokens import write_synthetic


@pytest.fixture
def source(tmp_path: Path) -> TokenizedData:
    write_synthetic(str(tmp_path / "source"), 130, rows_per_part=50, row_group_rows=20, patch_entropy=True)
    return TokenizedData.open(tmp_path / "source")


class RecordingWriter:
    """Stands in for MDSWriter, whose package drags in too much for the tests: five samples a shard, types checked."""

    shards: ClassVar[list[list[dict[str, Any]]]] = []
    columns: ClassVar[dict[str, str]] = {}

    def __init__(self, *, out: str, columns: dict[str, str], size_limit: int) -> None:
        self.folder = Path(out)
        self.samples: list[dict[str, Any]] = []
        type(self).shards, type(self).columns = [], columns
        assert not any(self.folder.iterdir())
        assert size_limit == 1000

    def write(self, sample: dict[str, Any]) -> None:
        integers, floats = dict.fromkeys(("uint8", "int32", "int64"), int), dict.fromkeys(("float32", "float64"), float)
        kinds: dict[str, type] = {"str": str, "bytes": bytes} | integers | floats
        assert sample.keys() == self.columns.keys()
        for name, value in sample.items():
            assert isinstance(value, kinds[self.columns[name]]), name
        self.samples.append(sample)
        if len(self.samples) == 5:
            self.flush()

    def flush(self) -> None:
        if self.samples:
            (self.folder / f"shard.{len(self.shards):05}.mds").write_text(str(len(self.shards)))
            self.shards.append(self.samples)
            self.samples = []

    def finish(self) -> None:
        self.flush()
        (self.folder / "index.json").write_text('{"shards": "all of them"}')


@pytest.fixture
def recording_writer(monkeypatch: pytest.MonkeyPatch) -> type[RecordingWriter]:
    module = types.ModuleType("streaming")
    module.MDSWriter = RecordingWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "streaming", module)
    return RecordingWriter


def test_what_the_writer_gets(source: TokenizedData, tmp_path: Path, recording_writer: type[RecordingWriter]) -> None:
    told: list[int] = []
    summary = export_mds(open_export(source.url, str(tmp_path / "mds")), shard_bytes=1000, on_rows=told.append)
    assert sum(told) == summary.num_rows == 130
    shards = {f"shard.{i:05}.mds" for i in range(26)}
    assert {path.name for path in (tmp_path / "mds").iterdir()} == shards | {"tatok.json", "index.json"}
    assert (tmp_path / "mds" / "shard.00025.mds").read_text() == "25"
    assert json.loads((tmp_path / "mds" / "index.json").read_text()) == {"shards": "all of them"}
    layout = json.loads((tmp_path / "mds" / "tatok.json").read_text())
    codes = dict.fromkeys(("tokens", "positions", "global_frames", "global_cells"), "uint16")
    assert layout["list_dtypes"] == {"frame_pts_s": "float64"} | codes
    assert layout["encodings"]["flipped"] == "uint8"
    assert layout["encodings"] == recording_writer.columns
    samples = [sample for shard in recording_writer.shards for sample in shard]
    missing_lists = {"frame_pts_s", "global_frames", "global_cells"}  # of images
    for sample, row in zip(samples, source.read_all().to_pylist(), strict=True):
        for name in ("tokens", "positions"):
            assert np.frombuffer(sample.pop(name), "<u2").tolist() == row.pop(name)
        for name in missing_lists:
            assert row[name] is None
            assert sample.pop(name) == b""
        assert sample.pop("metadata") == ""
        assert math.isnan(sample.pop("fps"))
        assert math.isnan(sample.pop("clip_start_s"))
        assert {name: row[name] for name in sample} == sample
        assert row.keys() - sample.keys() == missing_lists | {"patch_entropy_bits", "metadata", "fps", "clip_start_s"}


def test_its_limit_on_shards(source: TokenizedData, tmp_path: Path, recording_writer: type[RecordingWriter]) -> None:
    with pytest.raises(ConfigError, match="below 4 GiB"):
        export_mds(open_export(source.url, str(tmp_path / "mds")), shard_bytes=1 << 32)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "streaming", None)
    with pytest.raises(ConfigError, match="pip install mosaicml-streaming"):
        require_streaming()


def test_streaming_reads_it(source: TokenizedData, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        streaming = pytest.importorskip("streaming", reason="needs mosaicml-streaming")
        export_mds(open_export(source.url, str(tmp_path / "mds")), shard_bytes=30_000)
        dataset = streaming.StreamingDataset(local=str(tmp_path / "mds"), shuffle=False, batch_size=1)
        samples = [dataset[i] for i in range(len(dataset))]
    assert len(list((tmp_path / "mds").glob("*.mds"))) > 1
    for sample, row in zip(samples, source.read_all().to_pylist(), strict=True):
        assert np.frombuffer(sample["tokens"], "<u2").tolist() == row["tokens"]
        assert np.frombuffer(sample["positions"], "<u2").tolist() == row["positions"]
        assert sample["entropy_bits"] == row["entropy_bits"]
        assert sample["key"] == row["key"]
