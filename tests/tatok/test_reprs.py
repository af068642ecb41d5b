"""What a notebook prints of an object is one short line: counts and names, no arrays, whatever its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tatok
from tatok.jobs.python.opened import OpenedDataset
from tatok.pipeline.cluster.leases import Attempt, Failure
from tatok.pipeline.planning.survey import survey_source
from tatok.pipeline.run import RunSummary
from tatok.schemas.records import Grid
from tests.support.parts import clip, report, shard
from tests.support.photos import write_photo_shards
from tests.support.synthetic_tokens import write_synthetic
from tests.support.tiny_checkpoint import tiny_images, tiny_tokenizer

MOST = 120
COLUMNS = ("label", "caption", "key", "sha256", "width")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedDataset:
    folder = tmp_path_factory.mktemp("r") / "d"
    write_synthetic(str(folder), 300)
    return tatok.open(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tatok.Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


def rows(opened: OpenedDataset) -> tatok.TokenDataset:
    return opened.dataset(columns=COLUMNS, filters=[("num_tokens", ">", 0)])


OF_A_DATASET: dict[str, tuple[Callable[[OpenedDataset], object], str]] = {
    "opened": (lambda opened: opened, ": 300 rows, "),
    "TokenizedData": (lambda opened: opened.data, "300 rows"),
    "statistics": (lambda opened: opened.stats(), "300 rows"),
    "groups": (lambda opened: opened.stats(by="label"), "label"),
    "TokenDataset": (rows, "300 rows that pass its filters"),
    "row": (lambda opened: rows(opened)[7], "TokenRow(row 7: "),
    "sequence": (lambda opened: opened.sequences()[0], " of them global; grid 16x16; "),
    "entropy": (lambda opened: opened.sequences()[0].entropy, "bits in 256 patches: "),
    "stream": (lambda opened: rows(opened).stream(tatok.Packing(tokens=4096)), "300 rows an epoch, up to epoch 1"),
    "packed": (
        lambda opened: next(iter(rows(opened).stream(tatok.Packing(tokens=4096, fixed_size=True)))),
        " of padding; epoch 0; with label, caption, key, sha256 and 1 more)",
    ),
    "padded": (lambda opened: next(iter(rows(opened).stream(tatok.Bucketing(tokens=4096)))), "of them tokens"),
    "rows": (lambda opened: next(iter(rows(opened).stream(tatok.Rows(rows=8)))), "RowsBatch(8 rows, "),
}


@pytest.mark.parametrize("what", OF_A_DATASET)
def test_of_a_dataset(what: str, opened: OpenedDataset) -> None:
    make, said = OF_A_DATASET[what]
    text = repr(make(opened))
    assert said in text
    assert "\n" not in text
    assert len(text) - len(opened.url) <= MOST, text


def test_of_a_tokenizer_and_its_tokens(tokenizer: tatok.Tokenizer) -> None:
    batch = tokenizer.encode(tiny_images(3))
    image = tokenizer.encode(np.zeros((64, 80, 3), np.uint8), preprocessing={"image_size": 32})
    video = replace(batch[0], grid=Grid(4, 8, 8), entropy=None)
    for what in (tokenizer, batch, batch[0], batch.entropy, image, video, image.preprocessing, clip(0)):
        text = repr(what)
        assert "array(" not in text
        assert "\n" not in text
        assert len(text) <= MOST, text
    assert "grid 4x8x8)" in repr(video)
    assert repr(image).startswith("ImageTokens(")


def test_of_a_plan_and_a_run(tmp_path: Path) -> None:
    source = write_photo_shards(tmp_path, 3, 2)
    plan = survey_source([source])
    assert repr(plan).startswith("Survey(3 shards of webdataset: samples unknown, ")
    assert repr(plan.shards[0]).startswith(f"Shard({tmp_path}/source/photos-0000.tar: webdataset, ")
    for number in range(500):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
    [grouped] = survey_source([str(tmp_path / "*.jpg")]).shards
    assert len(repr(grouped)) <= MOST + len(str(tmp_path))
    summary = RunSummary(
        status="shards_failed",
        output="s3://bucket/tokens",
        num_shards=2000,
        reports=(report(Attempt(shard=shard(), number=1, guarded=False)),) * 2000,
        failed={shard("s1"): Failure(kind="source", message="gone")},
        num_parts=1999,
        num_rows=123_456_789,
        num_clips=0,
        num_frames=0,
        num_tokens=12_345_678_901,
        rejects={"corrupt": 12_345},
        left_out={},
        seconds=86_400.0,
    )
    text = repr(summary)
    assert "shards_failed: 1,999 parts, 123,456,789 rows" in text
    assert "12,345 rejects; this run: 2,000 shards in 86400.0 s, 1 failed" in text
    assert len(text) <= MOST + 60
