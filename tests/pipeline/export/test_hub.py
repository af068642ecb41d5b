"""The Hub export: what `datasets` loads is the dataset, and its card is true."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tatok.dataset.parts import TokenizedData
from tatok.dataset.rows import token_sequences
from tatok.pipeline.export.base import open_export
from tatok.pipeline.export.hub import export_hub
from tatok.pipeline.export.hub_card import COLUMNS, card
from tatok.pipeline.output.commit import commit_shard
from tatok.pipeline.output.manifest import mark_incomplete, mark_success, update_manifest
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.schemas.errors import CommitError, ConfigError, SourceError
from tatok.schemas.tokens import REPEATS, token_schema
from tatok.statistics.summary import summarize
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.parts import shard, video_clip
from tests.support.real_data import DEMO_PHOTOS, write_real_data
from tests.support.synthetic_tokens import write_synthetic

datasets = pytest.importorskip("datasets")


@pytest.fixture
def source(tmp_path: Path) -> TokenizedData:
    write_synthetic(
        str(tmp_path / "photos-v1"),
        700,
        rows_per_part=100,
        row_group_rows=40,
        patch_entropy=True,
        rejects_per_part=2,
    )
    return TokenizedData.open(tmp_path / "photos-v1")


def load(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> datasets.Dataset:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


def front_matter(folder: Path) -> dict:
    _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front)


def test_datasets_loads_it(
    source: TokenizedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("datasets").addHandler(caplog.handler)
    hub, told = tmp_path / "hub", []
    summary = export_hub(open_export(source.url, str(hub)), file_bytes=200_000, on_rows=told.append)
    names = sorted(path.name for path in (hub / "data").iterdir())
    assert len(names) == summary.num_files - 1
    assert 1 < len(names) < 7
    assert names == [f"train-{i:05}-of-{len(names):05}.parquet" for i in range(len(names))]
    assert sum(told) == summary.num_rows == 700
    rows = load(hub, tmp_path, monkeypatch)
    logging.getLogger("datasets").removeHandler(caplog.handler)
    assert not [record.message for record in caplog.records if "Ignoring" in record.message]
    assert rows.features["tokens"].feature.dtype == "uint16"
    assert rows.features["positions"].feature.dtype == "uint16"
    assert rows.features["patch_entropy_bits"].feature.dtype == "float16"
    assert rows.features["entropy_bits"].dtype == "float32"
    assert rows.features["metadata"].dtype == "string"
    table = rows.with_format("arrow")[:]
    assert table.column_names == source.schema.names
    for name, column in zip(source.schema.names, source.read_all().columns, strict=True):
        assert table.column(name).cast(column.type).combine_chunks().equals(column.combine_chunks()), name
    assert {path.name for path in hub.iterdir()} == {"data", "README.md"}


def test_a_missing_file_is_noticed(source: TokenizedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub"
    export_hub(open_export(source.url, str(hub)), file_bytes=200_000)
    next(iter((hub / "data").iterdir())).unlink()
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError, match="num_examples=700"):
        load(hub, tmp_path, monkeypatch)


def test_the_card(source: TokenizedData, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    export_hub(open_export(source.url, str(hub)), title="Photos | <b>one</b>", license_id="cc0-1.0")
    front = front_matter(hub)
    assert front["license"] == "cc0-1.0"
    assert front["size_categories"] == ["n<1K"]
    (split,) = front["dataset_info"]["splits"]
    assert (split["name"], split["num_examples"]) == ("train", 700)
    files = [pq.read_metadata(path) for path in (hub / "data").iterdir()]
    assert split["num_bytes"] == sum(f.row_group(i).total_byte_size for f in files for i in range(f.num_row_groups))
    assert front["dataset_info"]["download_size"] == sum(path.stat().st_size for path in (hub / "data").iterdir())
    assert [feature["name"] for feature in front["dataset_info"]["features"]] == source.schema.names
    text = (hub / "README.md").read_text(encoding="utf-8")
    assert "# Photos / (b)one(/b)\n" in text
    assert f"| tokens | {source.num_tokens:,} |" in text
    assert "| samples that could not be tokenized | 14 |" in text
    assert "No license" not in text
    assert "| tokenizer.weights_sha256 | `synthetic` |" in text
    for name in source.schema.names:
        assert re.search(rf"^\| `{name}` \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE), name


def test_the_card_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second snippet runs, on the rows of its first."""
    write_real_data(str(tmp_path / "photos-v1"), (DEMO_PHOTOS,))
    source, hub = TokenizedData.open(tmp_path / "photos-v1"), tmp_path / "hub"
    export_hub(open_export(source.url, str(hub)), without=["source_uri", "key", "patch_entropy_bits"])
    text = (hub / "README.md").read_text(encoding="utf-8")
    assert "No license is given yet" in text
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert 'load_dataset("USER/NAME", split="train")' in first
    names = {"rows": load(hub, tmp_path, monkeypatch)}
    assert not {"source_uri", "key", "patch_entropy_bits"} & set(names["rows"].column_names)
    exec(compile(second, "README.md", "exec"), names)
    assert tuple(names["pixels"].shape) == (9, 3, 256, 256)
    expected = token_sequences(source.read_all().slice(0, 9))
    for found, wanted in zip(token_sequences(names["rows"].with_format("arrow")[:9]), expected, strict=True):
        assert np.array_equal(found.codes, wanted.codes)
        assert np.array_equal(found.positions, wanted.positions)


def test_a_large_part_is_copied_as_it_is(source: TokenizedData, tmp_path: Path) -> None:
    export_hub(open_export(source.url, str(tmp_path / "hub")), file_bytes=1)
    copies = sorted((tmp_path / "hub" / "data").iterdir())
    for copy, part in zip(copies, source.parts, strict=True):
        assert copy.read_bytes() == (Path(source.url) / "data" / part.name).read_bytes()


def test_what_is_refused(source: TokenizedData, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    export_hub(open_export(source.url, str(hub)))
    with pytest.raises(CommitError, match=r"hub is not empty \(it holds README\.md, data\)"):
        open_export(source.url, str(hub))
    with pytest.raises(ConfigError, match="--without tokens: only key, "):
        export_hub(open_export(source.url, str(tmp_path / "other")), without=["tokens"])
    mark_incomplete(OutputStore.open(source.url))
    with pytest.raises(SourceError, match="--allow-incomplete"):
        open_export(source.url, str(tmp_path / "other"))
    export_hub(open_export(source.url, str(tmp_path / "other"), allow_incomplete=True))
    assert "had not finished" in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "_run.json").write_text('{"schema_version": "1", "fingerprint": {}, "config": {}}')
    with pytest.raises(SourceError, match="nothing to export"):
        open_export(str(tmp_path / "empty"), str(tmp_path / "third"), allow_incomplete=True)


def test_an_interrupted_export_has_no_card(
    source: TokenizedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"

    def interrupt(num_rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_hub(open_export(source.url, str(hub)), on_rows=interrupt)
    assert not [path for path in hub.rglob("*") if path.is_file()]
    assert open_export(source.url, str(hub)).data == source  # nothing in the way


def test_buckets(source: TokenizedData, s3_bucket: str) -> None:
    url = f"s3://{s3_bucket}/hub"
    export_hub(open_export(source.url, url), file_bytes=200_000)
    store = OutputStore.open(url)
    assert "train-*.parquet" in (store.read_text("README.md") or "")
    names = sorted(store.list_files("data"))
    tables = []
    for name in names:
        with store.open_input(f"data/{name}") as file:
            tables.append(pq.read_table(file))
    assert pa.concat_tables(tables).equals(source.read_all())
    with pytest.raises(CommitError, match="not empty"):
        open_export(source.url, url)
    copied = f"s3://{s3_bucket}/hub-copied"
    export_hub(open_export(source.url, copied), file_bytes=1)
    assert len(OutputStore.open(copied).list_files("data")) == 7


def test_the_card_of_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, hub, tokenizer = tmp_path / "clips", tmp_path / "hub", Tokenizer.load()
    store = OutputStore.open(str(clips))
    items = [video_clip(number, num_frames=2) for number in range(3)]
    fingerprint = {"vocab_size": str(tokenizer.vocab_size)}
    batches = tokenize_clips(
        items, tokenizer.encode_clips, batch_size=3, vocab_size=tokenizer.vocab_size, patch_entropy=True
    )
    commit_shard(
        store,
        shard(),
        batches,
        fingerprint=fingerprint,
        vocab_size=tokenizer.vocab_size,
        patch_entropy=True,
        row_group_rows=4,
    )
    update_manifest(store, [], {})
    mark_success(store)
    export_hub(open_export(str(clips), str(hub)))
    text = (hub / "README.md").read_text(encoding="utf-8")
    assert "\n3 clips as sequences of discrete tokens" in text
    assert "| clips | 3 |" in text
    assert "| tokens a clip | mean" in text
    assert "One row is one clip." in text
    assert not re.search("(tokens|entropy of) an image,? ", text)
    assert "unconditional-image-generation" not in text
    assert front_matter(hub)["tags"] == ["tatok", "video-tokens", "discrete-tokens"]
    _, snippet = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"rows": load(hub, tmp_path, monkeypatch)}
    exec(compile(snippet, "README.md", "exec"), names)
    assert tuple(names["pixels"].shape) == (1, 2, 3, 32, 32)


def test_the_card_of_images_and_clips(source: TokenizedData) -> None:
    found = summarize(source)
    (images,) = found.grids
    both = dataclasses.replace(found, grids=(images, dataclasses.replace(images, grid=images.grid._replace(frames=4))))
    text = card(source.run, source.schema, both, title="t", license_id=None, num_bytes=1, unpacked_bytes=1)
    assert "700 images and clips as sequences" in text
    assert "One row is an image or a clip." in text
    assert "| tokens a row | mean" in text


def test_columns_that_repeat_others_are_marked_where_those_are(source: TokenizedData) -> None:
    def meanings(schema: pa.Schema) -> dict[str, str]:
        text = card(source.run, schema, summarize(source), title="t", license_id=None, num_bytes=1, unpacked_bytes=1)
        return dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*) \|$", text, re.MULTILINE))

    found = meanings(source.schema)
    assert {name for name, meaning in found.items() if "*repeats*" in meaning} == set(REPEATS)
    assert found["num_patch_tokens"].endswith("; *repeats* `len(positions)`")
    fewer = source.schema.remove(source.schema.get_field_index("patch_entropy_bits"))
    assert "*repeats*" not in meanings(fewer)["entropy_max_bits"]


def test_every_column_is_explained() -> None:
    assert list(COLUMNS) == token_schema(4096, patch_entropy=True, patch_worth=True).names


@pytest.mark.parametrize(
    ("num_rows", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (10**6 - 1, "100K<n<1M"), (10**9, "1B<n<10B"), (10**12, "n>1T")],
)
def test_size_categories(source: TokenizedData, num_rows: int, category: str) -> None:
    statistics = dataclasses.replace(summarize(source), num_rows=num_rows)
    text = card(source.run, source.schema, statistics, title="t", license_id=None, num_bytes=1, unpacked_bytes=1)
    assert yaml.safe_load(text.split("---\n")[1])["size_categories"] == [category]
