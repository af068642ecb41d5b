"""A job over every kind of source on a real Ray; it grows, is resumed, and is verified."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tatok.pipeline.decode.originals import Recipe, read_originals, source_places
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.records import Clip
from tests.support.photos import jpeg, photo_members, tar_bytes
from tests.support.runs import job, rejects, rows, run

pytestmark = pytest.mark.usefixtures("local_ray")


def test_all_layouts_in_one_growing_job(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for i in range(6):
        (folder / f"class-{i % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"class-{i % 2}" / f"{i}.jpg").write_bytes(jpeg(i))
    (folder / "class-0" / "0.txt").write_text("a caption")
    (folder / "class-0" / "4.jpg").write_bytes(b"no photo")
    (tmp_path / "photos.tar").write_bytes(tar_bytes(photo_members(10, 3)))
    table = pa.table({"key": ["x", "y"], "image": [jpeg(20), jpeg(21)], "label": [7, 8]})
    pq.write_table(table, tmp_path / "photos.parquet")
    for i in (30, 31):
        (tmp_path / f"named-{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "list.jsonl").write_text(
        "\n".join(json.dumps({"uri": f"named-{i}.jpg", "text": f"words {i}"}) for i in (30, 31, 32))
    )
    sources = [f"{tmp_path}/{name}" for name in ("folder", "photos.tar", "photos.parquet", "list.jsonl")]
    config = job(sources[0], tmp_path / "out", label_from_folder=True).model_copy(update={"source": tuple(sources)})

    summary = run(config)
    assert (summary.status, summary.num_rows, summary.num_shards) == ("complete", 12, 4)
    assert dict(summary.rejects) == {"missing": 1, "not_an_image": 1}
    by_key = {row["key"]: row for row in rows(tmp_path / "out")}
    assert by_key["class-0/0.jpg"]["caption"] == "a caption"
    assert [by_key[f"class-{i % 2}/{i}.jpg"]["label"] for i in (0, 1, 2, 3, 5)] == [
        "class-0", "class-1", "class-0", "class-1", "class-1"
    ]  # fmt: skip
    assert (by_key["x"]["label"], by_key["photo-0010"]["label"]) == ("7", "0")
    assert by_key["named-31.jpg"]["caption"] == "words 31"
    assert {row["key"] for row in rejects(tmp_path / "out")} == {"class-0/4.jpg", "named-32.jpg"}

    (folder / "class-2").mkdir()
    (folder / "class-2" / "9.jpg").write_bytes(jpeg(9))
    again = run(config)
    assert (again.status, again.num_rows, again.num_shards) == ("complete", 13, 5)
    assert [report.num_rows for report in again.reports] == [1], "the new file alone"
    assert run(config).reports == ()
    found = verify_output(str(tmp_path / "out"), sources)
    assert found.findings == ()
    assert found.num_samples == 15

    places = source_places(ds.dataset(tmp_path / "out" / "data").to_table())
    clips = read_originals(places, Recipe.of_job(config))
    assert len(clips) == 13
    assert all(isinstance(clip, Clip) for clip in clips.values())

    (folder / "class-1" / "1.jpg").write_bytes(jpeg(50, width=100))
    findings = {finding.check for finding in verify_output(str(tmp_path / "out"), sources).findings}
    assert findings == {"shards"}, "its new version has no part, and the old one's is of no source"
