"""A folder is everything below it, and what is not taken of it is counted."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.file_groups import unpack_group
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.records import LeftOut, Sample, left_out_text
from tests.support.photos import jpeg, photo_members, tar_bytes

OPTIONS = ReadOptions(max_sample_bytes=1 << 20)


def planned(*sources: object) -> tuple[list[str], dict[str, int]]:
    """What is taken, in order: archives and tables by their paths, files by their keys; and what is left out."""
    left_out = Counter[LeftOut]()
    taken = []
    for shard in plan_shards([str(source) for source in sources], left_out=left_out):
        taken += [file.key for file in unpack_group(shard)] if shard.kind == "files" else [shard.uri]
    return taken, {str(each): count for each, count in left_out.items()}


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".tar"):
            path.write_bytes(tar_bytes(photo_members(0, 2)))
        elif name.endswith(".parquet"):
            pq.write_table(pa.table({"image": [jpeg(0)]}), path)
        else:
            path.write_bytes(jpeg(len(name)))


def test_every_kind_at_every_depth(tmp_path: Path) -> None:
    write(
        tmp_path, "a.jpg", "one.tar", "deep/er/two.tar", "deep/table.parquet", "deep/er/b.png", "deep/film.mp4", "c.jpg"
    )
    taken, left_out = planned(tmp_path)
    archives = [str(tmp_path / name) for name in ("deep/er/two.tar", "deep/table.parquet", "one.tar")]
    assert taken == [*archives, "a.jpg", "c.jpg", "deep/er/b.png", "deep/film.mp4"]
    assert left_out == {}


def test_one_tar_does_not_hide_photos_and_their_group_is_that_of_the_photos_alone(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number:02}.jpg" for number in range(12)))
    [alone] = plan_shards([str(tmp_path)])
    write(tmp_path, "late.tar")
    tar, group = plan_shards([str(tmp_path)])
    assert (tar.kind, group) == ("webdataset", alone)


def test_what_is_not_taken_is_counted_by_extension_and_reason(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "a.txt", "a.cls", "b.txt", "notes.pdf", "README", "list.csv", "Thumbs.db", "more/Makefile")
    write(tmp_path, ".DS_Store", "._a.jpg", ".cache/deep/x.jpg", ".cache/y.jpg", "more/.hidden.tar")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "again.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "more")
    os.mkfifo(tmp_path / "pipe.jpg")
    taken, left_out = planned(tmp_path)
    assert taken == ["a.jpg", "again.jpg"]
    assert left_out == {
        "hidden": 4,
        "broken link": 1,
        "link to a folder": 1,
        "not a regular file": 1,
        ".txt (belongs to no image)": 1,
        ".csv (a list: name it by itself)": 1,
        ".pdf (no image, video, tar or table)": 1,
        ".db (no image, video, tar or table)": 1,
        "no image, video, tar or table": 2,
    }


def test_a_format_whose_plugin_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tatok.pipeline.planning.files.missing_extra", lambda extension: {"heic": "heif"}.get(extension)
    )
    write(tmp_path, "a.jpg", "b.HEIC", "c.heic", ".d")
    taken, left_out = planned(tmp_path)
    assert taken == ["a.jpg"]
    assert left_out == {".heic (needs tatok[heif])": 2, "hidden": 1}
    assert left_out_text({LeftOut("needs tatok[heif]", "heic"): 2, LeftOut("hidden"): 1}) == (
        "2 .heic (needs tatok[heif]), 1 hidden"
    )
    assert planned(tmp_path / "c.heic")[0] == ["c.heic"], "what is named by itself is not left out: it is a reject"


def test_a_folder_without_anything_to_take_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path, "sheet.csv", ".x.jpg")
    with pytest.raises(SourceError, match=r"left out: 1 \.csv \(a list: name it by itself\), 1 hidden"):
        plan_shards([str(tmp_path)])


def test_tables_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "images.parquet")
    pq.write_table(pa.table({"file_name": ["a.jpg"], "caption": ["a"]}), tmp_path / "metadata.parquet")
    pq.write_table(pa.table({"width": [80]}), tmp_path / "sizes.parquet")
    taken, left_out = planned(tmp_path)
    assert taken == [str(tmp_path / "images.parquet"), "a.jpg"]
    assert left_out == {
        ".parquet (a table of URIs: name it by itself)": 1,
        ".parquet (no column of images)": 1,
    }
    assert planned(tmp_path / "metadata.parquet")[0] == ["a.jpg"] or planned(tmp_path / "metadata.parquet")[1] == {}
    with pytest.raises(ConfigError, match=r"sizes\.parquet"):
        plan_shards([str(tmp_path / "sizes.parquet")])


def test_globs_leave_out_by_the_same_rules(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.csv", ".c.jpg", "d.pdf", "e.tar", "sub/f.jpg", "sub/.g.jpg", ".dots/h.jpg")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    taken, left_out = planned(tmp_path / "*")
    assert taken == [str(tmp_path / "e.tar"), "a.jpg"]
    assert left_out.pop("folder: name it without a wildcard") in (1, 2)  # fsspec does or does not match hidden folders
    assert left_out.pop("hidden", 0) in (0, 1)
    assert left_out == {
        "broken link": 1,
        ".csv (a list: name it by itself)": 1,
        ".pdf (no image, video, tar or table)": 1,
    }
    assert planned(f"{tmp_path}/**/*.jpg")[0] == ["a.jpg", "sub/f.jpg"]
    assert planned(f"{tmp_path}/.dots/*.jpg")[0] == ["h.jpg"], "a name that is spelt out is meant"
    assert planned(f"{tmp_path}/.*.jpg")[0] == [".c.jpg"], "and so is a pattern that asks for dots"
    assert planned(tmp_path / ".c.jpg")[0] == [".c.jpg"]


@pytest.mark.parametrize("place", ["s3", "memory"])
def test_a_bucket_is_left_out_of_by_the_same_rules(place: str, s3_bucket: str) -> None:
    url = f"s3://{s3_bucket}/mixed" if place == "s3" else "memory://mixed"
    fs, root = fsspec.core.url_to_fs(url)
    tar = tar_bytes(photo_members(0, 2))
    names = ("a.jpg", "deep/one.tar", "deep/._one.tar", ".git/x/y.jpg", ".git/z.jpg", "notes.pdf", "deep/b.png")
    for name in names:
        fs.pipe_file(f"{root}/{name}", tar if name.endswith(".tar") else jpeg(0))
    taken, left_out = planned(url)
    assert [name.rpartition("mixed/")[2] for name in taken] == ["deep/one.tar", "a.jpg", "deep/b.png"]
    assert left_out == {"hidden": 2, ".pdf (no image, video, tar or table)": 1}
    taken, left_out = planned(f"{url}/*")
    assert (taken, left_out.pop("folder: name it without a wildcard") >= 1) == (["a.jpg"], True)
    fs.rm(root, recursive=True)


def test_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/d\xe9p\xf4t"
    os.mkdir(folder)
    (contents := {b"caf\xe9.jpg": jpeg(1), b"plain.jpg": jpeg(2), b"one\xff.tar": tar_bytes(photo_members(0, 2))})
    for name, content in contents.items():
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(content)
    Path(os.fsdecode(folder + b"/caf\xe9.txt")).write_bytes(b"a coffee house")
    taken, left_out = planned(tmp_path)
    below = r"d\xe9p\xf4t"
    assert taken == [f"{tmp_path}/{below}/one\\xff.tar", rf"{below}/caf\xe9.jpg", f"{below}/plain.jpg"]
    assert left_out == {}
    samples = [sample for shard in plan_shards([str(tmp_path)]) for sample in read_samples(shard, OPTIONS)]
    by_key = {sample.key: sample for sample in samples if isinstance(sample, Sample)}
    assert len(samples) == len(by_key) == 4
    assert by_key[rf"{below}/caf\xe9.jpg"].payload == contents[b"caf\xe9.jpg"]
    assert by_key[rf"{below}/caf\xe9.jpg"].attachments["txt"] == b"a coffee house"
    for named in (os.fsdecode(folder), os.fsdecode(folder + b"/caf\xe9.jpg"), f"{tmp_path}/{below}/caf\\xe9.jpg"):
        assert any(key.endswith(r"caf\xe9.jpg") for key in planned(named)[0])


def test_a_name_that_spells_out_another_is_never_read_in_its_place(tmp_path: Path) -> None:
    write(tmp_path, r"caf\xe9.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(jpeg(99))
    taken, left_out = planned(tmp_path)
    assert taken == [r"caf\xe9.jpg"]
    assert left_out == {"not UTF-8, and spelt out the name of another": 1}
    [shard] = plan_shards([str(tmp_path)])
    [sample] = read_samples(shard, OPTIONS)
    assert isinstance(sample, Sample)
    assert sample.payload == (tmp_path / r"caf\xe9.jpg").read_bytes()


@pytest.mark.parametrize("place", ["disk", "s3", "memory"])
@pytest.mark.parametrize("name", ["photos [2023]", "set{a,b}", "a{0..2}[x]"])
def test_names_that_look_like_patterns_mean_themselves(name: str, place: str, tmp_path: Path, s3_bucket: str) -> None:
    root = {"disk": f"{tmp_path}", "s3": f"s3://{s3_bucket}/odd", "memory": "memory://odd"}[place]
    for other in ("photos 2", "seta", "setb", "a0x"):
        fsspec.open(f"{root}/{other}/1.jpg", "wb", auto_mkdir=True).open().close()
    fs, folder = fsspec.core.url_to_fs(root)
    fs.makedirs(f"{folder}/{name}/deep[1]", exist_ok=True)
    for path in ("1.jpg", "2.jpg", "3.png", "deep[1]/4.jpg"):
        fs.pipe_file(f"{folder}/{name}/{path}", jpeg(1))
    for pattern, keys in {
        "": ["1.jpg", "2.jpg", "3.png", "deep[1]/4.jpg"],
        "/*.jpg": ["1.jpg", "2.jpg"],
        "/[12].jpg": ["1.jpg", "2.jpg"],
        "/{2.jpg,3.png}": ["2.jpg", "3.png"],
        "/deep[1]/*": ["4.jpg"],
        "/deep[1]/4.jpg": ["4.jpg"],
    }.items():
        assert planned(f"{root}/{name}{pattern}") == (keys, {}), pattern
    fs.rm(folder, recursive=True)
