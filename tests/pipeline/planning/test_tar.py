"""A tar in ranges holds the samples of the whole one, each once."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.planning.plan import ShardSizes, plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.schemas.records import Reject, Sample, Shard
from tests.support.photos import photo_members, tar_bytes


def split(source: str, num_ranges: int, size: int) -> list[Shard]:
    return plan_shards([source], sizes=ShardSizes(tar_bytes=max(size // num_ranges, 1)))


def read(shards: list[Shard]) -> list[Sample | Reject]:
    return [sample for shard in shards for sample in read_samples(shard, ReadOptions(max_sample_bytes=1 << 20))]


NAMES = st.tuples(st.sampled_from("abc"), st.sampled_from(["jpg", "png", "txt", "npy"])).map(".".join)
LONG = "deep/" * 30


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(st.tuples(NAMES, st.integers(0, 3000), st.booleans()), min_size=1, max_size=30),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    num_ranges=st.integers(2, 9),
)
def test_ranges_hold_the_samples_of_the_whole(
    names: list[tuple[str, int, bool]], form: int, num_ranges: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Names that repeat, come back later, need a header of their own, or belong to no image."""
    path = tmp_path_factory.mktemp("split") / "photos.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for i, (name, size, is_long) in enumerate(names):
            info = tarfile.TarInfo(LONG + name if is_long else name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes([i]) * size))
    shards = split(str(path), num_ranges, path.stat().st_size)
    assert read(shards) == read(plan_shards([str(path)]))
    assert sum(shard.num_bytes for shard in shards) == path.stat().st_size
    assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
    assert len({shard.shard_id for shard in shards}) == len(shards)


def test_ranges_are_balanced(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    path.write_bytes(tar_bytes(photo_members(0, 200)))
    shards = split(str(path), 8, path.stat().st_size)
    mean = path.stat().st_size / len(shards)
    assert 7 <= len(shards) <= 8
    assert all(0.5 * mean < shard.num_bytes < 1.6 * mean for shard in shards)
    assert all(shard.num_samples is not None for shard in shards[:-1])


def test_small_and_compressed_tars_stay_whole(tmp_path: Path) -> None:
    data = tar_bytes(photo_members(0, 40))
    for name in ("photos.tar.gz", "photos.tar.zst"):
        (tmp_path / name).write_bytes(data)
        assert len(split(str(tmp_path / name), 8, len(data))) == 1
    (tmp_path / "photos.tar").write_bytes(data)
    [whole] = split(str(tmp_path / "photos.tar"), 1, len(data))
    assert (whole.version, whole.offset, whole.stop) == ("", 0, None)


def test_damage_is_reported_by_the_last_range(tmp_path: Path) -> None:
    data = tar_bytes(photo_members(0, 40))
    path = tmp_path / "photos.tar"
    path.write_bytes(data[: len(data) * 3 // 4])
    shards = split(str(path), 4, len(data))
    assert len(shards) >= 3
    whole = read(plan_shards([str(path)]))
    assert read(shards) == whole
    assert [item.reason for item in whole if isinstance(item, Reject)] == ["truncated_archive"]


def test_archive_wide_headers_are_not_split(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all of it"}) as tar:
        for name, data in photo_members(0, 40):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert len(split(str(path), 4, path.stat().st_size)) == 1


def test_a_bucket_is_asked_for_headers_of_large_members_alone(s3_bucket: str) -> None:
    fs = fsspec.filesystem("s3")
    small = tar_bytes(photo_members(0, 100))
    large = tar_bytes([(f"clip-{i:02}.mp4", bytes(1_200_000)) for i in range(40)])
    for name, data in (("small", small), ("large", large)):
        fs.pipe_file(f"{s3_bucket}/split/{name}.tar", data)
    assert len(split(f"s3://{s3_bucket}/split/small.tar", 8, len(small))) == 1
    shards = split(f"s3://{s3_bucket}/split/large.tar", 8, len(large))
    assert len(shards) >= 7
    samples = [sample for shard in shards for sample in read_samples(shard, ReadOptions(max_sample_bytes=1 << 21))]
    assert [sample.key for sample in samples] == [f"clip-{i:02}" for i in range(40)]
    assert {sample.media for sample in samples if isinstance(sample, Sample)} == {"video"}
