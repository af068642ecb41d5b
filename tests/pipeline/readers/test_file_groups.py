"""Groups of files: each file in exactly one, of about equal work, and stable while a source grows."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.readers.file_groups import file_identity, group_files, pack_group, unpack_group
from tatok.schemas.records import Shard, SourceFile


def file(name: str, num_bytes: int | None = 1000, **changes: object) -> SourceFile:
    return SourceFile(uri=f"s3://b/photos/{name}", key=name, num_bytes=num_bytes, **changes)  # type: ignore[arg-type]


def groups(files: list[SourceFile], *, group_bytes: int = 10_000, most_files: int = 16) -> list[Shard]:
    return list(group_files(files, "s3://b/photos", group_bytes=group_bytes, most_files=most_files))


SIZES = st.lists(st.one_of(st.none(), st.integers(0, 20_000)), max_size=200)


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES)
def test_each_file_is_in_one_group_and_groups_are_bounded(sizes: list[int | None]) -> None:
    files = [file(f"{i:04}.jpg", size) for i, size in enumerate(sizes)]
    shards = groups(files, group_bytes=1 << 20)
    assert [each for shard in shards for each in unpack_group(shard)] == files
    assert len({shard.shard_id for shard in shards}) == len(shards)
    for shard in shards:
        assert shard.num_samples is not None
        assert 1 <= shard.num_samples <= 16
        assert shard.num_bytes <= 1 << 20
        assert shard.num_bytes == sum(each.num_bytes or 0 for each in unpack_group(shard))


def test_groups_are_between_half_full_and_full() -> None:
    shards = groups([file(f"{i:05}.jpg") for i in range(5000)], most_files=64, group_bytes=1 << 30)
    counts = [shard.num_samples or 0 for shard in shards]
    assert min(counts[:-1]) >= 32
    assert max(counts) <= 64
    assert 38 <= 5000 / len(counts) <= 60


def test_a_large_file_stands_alone() -> None:
    shards = groups([file("a.jpg"), file("b.mp4", 50_000), file("c.jpg")])
    assert [shard.num_samples for shard in shards] == [1, 1, 1]


def test_a_new_file_changes_few_groups() -> None:
    old = [file(f"{i:05}.jpg") for i in range(2000)]
    before = {shard.shard_id for shard in groups(old, group_bytes=1 << 30)}
    changed = []
    for place in range(0, 2000, 100):
        grown = [*old[:place], file(f"{place:05}-new.jpg"), *old[place:]]
        changed.append(len({shard.shard_id for shard in groups(grown, group_bytes=1 << 30)} - before))
    assert len(before) > 150
    assert sum(changed) / len(changed) < 6


def test_an_appended_file_changes_the_last_group_alone() -> None:
    old = [file(f"{i:05}.jpg") for i in range(1000)]
    before, after = groups(old), groups([*old, file("99999.jpg")])
    assert before[:-1] == after[: len(before) - 1]


@pytest.mark.parametrize(
    "change",
    [{"num_bytes": 1001}, {"version": "abc"}, {"sidecars": ("txt",)}, {"attachments": (("txt", "words"),)}],
    ids=str,
)
def test_another_version_of_a_file_is_another_shard(change: dict[str, object]) -> None:
    one = file("a.jpg")
    other = dataclasses.replace(one, **change)  # type: ignore[arg-type]
    assert file_identity(one) != file_identity(other)
    assert pack_group([one], "s3://b/photos").shard_id != pack_group([other], "s3://b/photos").shard_id


def test_the_row_of_a_list_is_no_version() -> None:
    one = file("a.jpg", index=3)
    assert file_identity(one) == file_identity(dataclasses.replace(one, index=4))


def test_a_footer_gives_the_files_back() -> None:
    files = [
        file('a/ünï "x".jpg', sidecars=("txt", "json"), version="0a1b"),
        SourceFile(uri="https://host/b?c=d", key="b", index=7, attachments=(("txt", "words"), ("cls", "3"))),
    ]
    shard = pack_group(files, "s3://b/photos")
    again = Shard(**json.loads(json.dumps(dataclasses.asdict(shard))))
    assert again == shard
    assert unpack_group(again) == files


def test_a_footer_stays_small() -> None:
    """A path of 60 characters and an etag: under 30 bytes a file."""
    files = [
        file(
            f"train/n{i // 50:08}/n{i // 50:08}_{i * 7919 % 100_000}.JPEG",
            100_000 + i * 37 % 9999,
            version=f"{i * 2654435761 % (1 << 48):012x}",
        )
        for i in range(1000)
    ]
    assert len(pack_group(files, "s3://bucket/imagenet").listing) < 30_000
