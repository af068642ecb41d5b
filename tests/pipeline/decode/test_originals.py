"""Rows back to the clips that they were made from."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok.pipeline.decode import originals
from tatok.pipeline.decode.originals import NotFound, Recipe, SourcePlace, read_originals, source_places
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.schemas.errors import SourceError
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import RunDocument
from tatok.schemas.records import Clip, Reject
from tests.support.photos import jpeg, photo_members, tar_bytes

CONFIG = JobConfig(source="x", output="y", preprocessing={"image_size": 48})  # type: ignore[arg-type]
RECIPE = Recipe.of_job(CONFIG)


def clips_of(pattern: str) -> list[Clip]:
    clips = []
    for shard in plan_shards([pattern]):
        for sample in read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)):
            assert not isinstance(sample, Reject)
            [clip] = decode_sample(sample, CONFIG.preprocessing, CONFIG.limits)
            assert isinstance(clip, Clip)
            clips.append(clip)
    return clips


def place(clip: Clip) -> SourcePlace:
    return SourcePlace(uri=clip.uri, index=clip.index, sha256=clip.sha256)


def why(found: Clip | NotFound) -> str:
    assert isinstance(found, NotFound)
    return found.why


def test_the_same_pixels_come_back(photo_shards: Callable[..., str]) -> None:
    clips = clips_of(photo_shards(3, 5))
    wanted = [clips[i] for i in (14, 0, 7, 3, 7)]
    found = read_originals([place(clip) for clip in wanted], RECIPE)
    assert len(found) == 4
    for clip in wanted:
        again = found[place(clip)]
        assert isinstance(again, Clip)
        assert again.key == clip.key
        np.testing.assert_array_equal(again.pixels, clip.pixels)


def test_nothing_is_asked_for() -> None:
    assert read_originals([], RECIPE) == {}


def test_what_is_not_there_any_more(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    first, *_ = clips = clips_of(photo_shards(2, 3))
    gone = replace(place(first), uri=f"{tmp_path}/gone.tar")
    changed = replace(place(clips[1]), sha256="0" * 64)
    beyond = replace(place(first), index=99)
    found = read_originals([gone, changed, beyond, place(clips[5])], RECIPE)
    assert "gone.tar" in why(found[gone])
    assert "other bytes" in why(found[changed])
    assert "fewer samples" in why(found[beyond])
    assert isinstance(found[place(clips[5])], Clip)


def test_damage_after_the_last_wanted_sample_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    whole = tar_bytes(photo_members(0, 4))
    path.write_bytes(whole)
    clips = clips_of(str(path))
    # Cut after the header of sample 2's photo.
    path.write_bytes(whole[: whole.index(b"photo-0002.jpg") + 600])
    found = read_originals([place(clip) for clip in clips], RECIPE)
    assert [isinstance(found[place(clip)], Clip) for clip in clips] == [True, True, False, False]
    assert "damaged now" in why(found[place(clips[2])])


def test_a_source_that_hangs_is_given_up(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    clip = clips_of(photo_shards(1, 1))[0]
    pipe = tmp_path / "hangs.tar"
    os.mkfifo(pipe)
    hanging = replace(place(clip), uri=str(pipe))
    found = read_originals([hanging, place(clip)], RECIPE, max_seconds=1.0)
    assert isinstance(found[place(clip)], Clip)
    assert "within 1 s" in why(found[hanging])
    os.close(os.open(pipe, os.O_WRONLY))  # lets the thread that is left go
    for thread in threading.enumerate():
        if thread.name == originals.THREAD_NAME:
            thread.join(timeout=5)
            assert not thread.is_alive()


def test_a_mistake_of_ours_is_not_swallowed(photo_shards: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clips_of(photo_shards(1, 1))[0]

    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(originals, "read_samples", broken)
    with pytest.raises(ZeroDivisionError):
        read_originals([place(clip)], RECIPE)


def test_buckets(s3_bucket: str) -> None:
    uri = f"s3://{s3_bucket}/originals/photos.tar"
    fs, path = fsspec.core.url_to_fs(uri)
    fs.pipe_file(path, tar_bytes(photo_members(0, 3)))
    clips = clips_of(uri)
    found = read_originals(map(place, clips[1:]), RECIPE)
    assert [clip.key for clip in found.values() if isinstance(clip, Clip)] == ["photo-0001", "photo-0002"]


def test_the_recipe_is_that_of_the_parts() -> None:
    fingerprint = {"preprocessing.image_size": "96", "preprocessing.resample": '"lanczos"', "image_field": '"png"'}
    config = {"preprocessing": {"image_size": 32, "background": [0, 0, 0]}, "limits": {"min_side": 3}}
    recipe = Recipe.of_run(RunDocument(schema_version="1", fingerprint=fingerprint, config=config))
    assert recipe.preprocessing.image_size == 96
    assert recipe.preprocessing.resample == "lanczos"
    assert recipe.preprocessing.background == (0, 0, 0)
    assert recipe.limits.min_side == 3
    assert recipe.image_field == "png"
    assert Recipe.of_run(RunDocument(schema_version="1", fingerprint={}, config={})).preprocessing.image_size == 256
    newer = RunDocument(schema_version="1", fingerprint={"preprocessing.whiten": "true"}, config={})
    with pytest.raises(SourceError, match="whiten"):
        Recipe.of_run(newer)


def test_places_of_a_table() -> None:
    table = pa.table({"source_uri": ["a", "b"], "source_index": [3, 4], "sha256": ["x", "y"], "clip_index": [0, 2]})
    assert source_places(table) == [
        SourcePlace(uri="a", index=3, sha256="x"),
        SourcePlace(uri="b", index=4, sha256="y", clip_index=2),
    ]
    assert source_places(table.drop_columns(["clip_index"])) == [
        SourcePlace(uri="a", index=3, sha256="x"),
        SourcePlace(uri="b", index=4, sha256="y"),
    ]


def test_rows_of_every_layout_are_found_again(tmp_path: Path) -> None:
    """Also a tar without a telling name, and a photo without an extension, out of a list."""
    photos = [jpeg(i, 64, 64) for i in range(4)]
    pq.write_table(pa.table({"image": photos[:2]}), tmp_path / "a.parquet", row_group_size=1)
    (tmp_path / "archive").write_bytes(gzip.compress(tar_bytes([("x.jpg", photos[2])])))
    (tmp_path / "plain").write_bytes(photos[3])
    (tmp_path / "list.txt").write_text("plain")
    clips = [clip for name in ("a.parquet", "archive", "list.txt") for clip in clips_of(f"{tmp_path}/{name}")]
    found = read_originals([place(clip) for clip in clips], RECIPE)
    assert len(found) == 4
    assert all(isinstance(found[place(clip)], Clip) for clip in clips)
