"""A source that grows, shrinks or changes between two runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.planning.pending import Progress, compare_with_committed
from tatok.pipeline.planning.plan import ShardSizes, plan_shards
from tatok.pipeline.readers.file_groups import group_files, unpack_group
from tatok.schemas.records import Shard, SourceFile
from tests.support.photos import jpeg, photo_members, tar_bytes


class Output:
    """Committed shards by id, as a dataset has them."""

    def __init__(self) -> None:
        self.shards: dict[str, Shard] = {}
        self.num_asked = 0

    def compare(self, planned: list[Shard]) -> Progress:
        return compare_with_committed(planned, self.shards, self._shards_of)

    def commit(self, shards: Iterable[Shard]) -> None:
        self.shards |= {shard.shard_id: shard for shard in shards}

    def _shards_of(self, ids: Iterable[str]) -> list[Shard]:
        found = [self.shards[shard_id] for shard_id in ids]
        self.num_asked += len(found)
        return found

    def files(self) -> list[str]:
        return sorted(file.uri for shard in self.shards.values() for file in unpack_group(shard))


def plan(names: Iterable[str], changed: frozenset[str] = frozenset()) -> list[Shard]:
    files = [SourceFile(uri=f"/d/{n}", key=n, num_bytes=1 + (n in changed)) for n in sorted(names)]
    return list(group_files(files, "/d", group_bytes=1 << 20, most_files=8))


NAMES = st.sets(st.integers(0, 300).map("{:04}.jpg".format), max_size=120)


@settings(max_examples=30, deadline=None)
@given(first=NAMES, second=NAMES, third=NAMES)
def test_each_file_is_committed_once_however_a_source_grows(first: set[str], second: set[str], third: set[str]) -> None:
    output = Output()
    for names in (first, first | second, first | second | third):
        progress = output.compare(plan(names))
        assert not progress.unplanned
        output.commit(progress.pending)
        assert output.files() == sorted(f"/d/{name}" for name in names)
        assert output.compare(plan(names)).pending == ()


def test_only_unknown_parts_are_looked_into() -> None:
    output = Output()
    names = {f"{i:04}.jpg" for i in range(200)}
    output.commit(plan(names))
    assert output.compare(plan(names)).pending == ()
    assert output.num_asked == 0
    assert sum(shard.num_samples or 0 for shard in output.compare(plan(names | {"0100-b.jpg"})).pending) == 1
    assert 1 <= output.num_asked <= 12, "of about 35"


def test_removed_and_changed_files() -> None:
    output = Output()
    names = {f"{i:04}.jpg" for i in range(20)}
    output.commit(plan(names))
    removed = output.compare(plan(names - {"0003.jpg"}))
    assert removed.pending == ()
    assert len(removed.unplanned) == 1, "its part holds a file that is gone"
    [changed] = output.compare(plan(names, frozenset({"0003.jpg"}))).pending
    assert [file.key for file in unpack_group(changed)] == ["0003.jpg"]


def test_another_source_is_a_stranger() -> None:
    output = Output()
    output.commit(group_files([SourceFile(uri="/e/a.jpg", key="a.jpg")], "/e", group_bytes=1, most_files=1))
    progress = output.compare(plan({"0000.jpg"}))
    assert progress.unplanned == set(output.shards)
    assert len(progress.pending) == 1


def test_a_tar_that_was_committed_whole_is_not_split_anew(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    path.write_bytes(tar_bytes(photo_members(0, 40)))
    output = Output()
    output.commit(plan_shards([str(path)]))
    ranges = plan_shards([str(path)], sizes=ShardSizes(tar_bytes=path.stat().st_size // 4))
    assert len(ranges) > 2
    progress = output.compare(ranges)
    assert (progress.pending, progress.unplanned) == ((), frozenset())
    assert progress.committed == set(output.shards)


@pytest.mark.parametrize("caption", [None, b"words"])
def test_a_new_caption_makes_a_new_version_of_a_photo(tmp_path: Path, caption: bytes | None) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    output = Output()
    output.commit(plan_shards([str(tmp_path)]))
    if caption is not None:
        (tmp_path / "a.txt").write_bytes(caption)
    assert len(output.compare(plan_shards([str(tmp_path)])).pending) == (caption is not None)
