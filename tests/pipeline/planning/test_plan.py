from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from tatok.pipeline.planning.pending import compare_with_committed
from tatok.pipeline.planning.plan import plan_shards
from tatok.schemas.errors import ConfigError, SourceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b-1.tar", "b-0.tar", "a-0.tar", "a-1.tar", "c.tar.gz", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(*sources: object) -> list[str]:
    return [Path(shard.uri).name for shard in plan_shards([str(source) for source in sources])]


def test_patterns_keep_their_order(folder: Path) -> None:
    assert names(folder / "b-0.tar") == ["b-0.tar"]
    assert names(folder / "*-?.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    assert names(f"{folder}/{{b,a}}-{{1..0}}.tar") == ["b-1.tar", "b-0.tar", "a-1.tar", "a-0.tar"]
    assert names(f"{folder}/{{b-{{0,1}},a-0}}.tar") == ["b-0.tar", "b-1.tar", "a-0.tar"]
    assert names(f"{folder}/{{b,a}}-*.tar") == ["b-0.tar", "b-1.tar", "a-0.tar", "a-1.tar"]
    assert names(folder / "b-1.tar", folder / "a*") == ["b-1.tar", "a-0.tar", "a-1.tar"]


def test_folder_stands_for_its_archives(folder: Path) -> None:
    assert names(folder) == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar", "c.tar.gz"]


def test_an_archive_after_images_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert len(plan_shards([str(tmp_path)])) == 1
    (tmp_path / "e.tar").write_bytes(b"")
    assert names(tmp_path) == ["e.tar", tmp_path.name]


def test_existing_file_with_pattern_characters(folder: Path) -> None:
    (folder / "odd{1}[2].tar").write_bytes(b"x")
    assert names(folder / "odd{1}[2].tar") == ["odd{1}[2].tar"]


def test_many_names_in_one_folder(folder: Path) -> None:
    for i in range(12):
        (folder / f"many-{i:02}.tar").write_bytes(b"x" * i)
    shards = plan_shards([f"{folder}/many-{{00..11}}.tar"])
    assert [shard.num_bytes for shard in shards] == list(range(12))
    with pytest.raises(SourceError, match=r"many-12\.tar"):
        plan_shards([f"{folder}/many-{{00..12}}.tar"])


def test_relative_and_absolute_are_one_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert plan_shards(["a-0.tar"]) == plan_shards([f"file://{folder}/a-0.tar"]) == plan_shards([f"{folder}/a-0.tar"])


def test_shard_id_survives_a_touch_and_tells_sizes_apart(folder: Path) -> None:
    path = folder / "a-0.tar"
    before = plan_shards([str(path)])[0].shard_id
    os.utime(path, (1, 1))
    assert plan_shards([str(path)])[0].shard_id == before
    path.write_bytes(b"another size")
    assert plan_shards([str(path)])[0].shard_id != before


def test_any_fsspec_url() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("x-0.tar", "x-1.tar"):
        fs.pipe_file(f"/bucket/{name}", b"abc")
    for pattern in ("memory://bucket/x-*.tar", "memory://bucket/x-{0,1}.tar", "memory://bucket"):
        shards = plan_shards([pattern])
        assert [shard.uri for shard in shards] == ["memory:///bucket/x-0.tar", "memory:///bucket/x-1.tar"]
        assert fsspec.open(shards[0].uri).open().read() == b"abc"


@pytest.mark.parametrize("pattern", ["none-*.tar", "none.tar", "a-{0..2}.tar", "empty"])
def test_missing_source_is_named(folder: Path, pattern: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(SourceError) as caught:
        plan_shards([f"{folder}/{pattern}"])
    assert pattern in str(caught.value)


def test_malformed_and_double_sources(folder: Path) -> None:
    with pytest.raises(ConfigError, match="braces"):
        plan_shards([f"{folder}/a-{{0.tar"])
    with pytest.raises(ConfigError, match="twice"):
        plan_shards([f"{folder}/a-0.tar", f"{folder}/a-*.tar"])
    with pytest.raises(ConfigError, match="no source"):
        plan_shards([])
    with pytest.raises(SourceError, match="nonsense"):
        plan_shards(["nonsense://bucket/a.tar"])


def test_pending_keeps_the_order(folder: Path) -> None:
    shards = plan_shards([str(folder)])
    progress = compare_with_committed(shards, {shards[1].shard_id, "stranger"}, lambda ids: [])
    assert progress.pending == (shards[0], *shards[2:])
    assert (progress.committed, progress.unplanned) == ({shards[1].shard_id}, {"stranger"})
    assert progress.num_shards == len(shards)


def test_links_to_files_are_files(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    target = sorted(folder.glob("*.tar"))[0]
    (links / "a.tar").symlink_to(target)
    (links / "lost.tar").symlink_to(tmp_path / "nothing")
    for pattern in (links, f"{links}/*.tar"):
        [shard] = plan_shards([str(pattern)])
        assert (shard.uri, shard.num_bytes) == (str(links / "a.tar"), target.stat().st_size)
