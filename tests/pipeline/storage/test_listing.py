"""Listings are in one order wherever the files lie, so that groups of files are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.storage.listing import list_below, list_directly_in
from tatok.schemas.errors import ConfigError

NAMES = ("b.jpg", "a/x.jpg", "a/deep/y.jpg", "a-1.jpg", "a.jpg", "a0.jpg", "B.jpg", "ü.jpg")
HIDDEN = (".DS_Store", "a/._x.jpg", ".cache/z.jpg")


def write(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_disk_bucket_and_memory_agree(tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, NAMES + HIDDEN)
    s3, memory = fsspec.filesystem("s3"), fsspec.filesystem("memory")
    for name in NAMES + HIDDEN:
        s3.pipe_file(f"{s3_bucket}/listing/{name}", name.encode())
        memory.pipe_file(f"/listing/{name}", name.encode())
    s3.pipe_file(f"{s3_bucket}/listing-2/other.jpg", b"not below it")
    pages = []
    ask = s3.call_s3

    def in_small_pages(method: str, **request: Any) -> dict[str, Any]:
        pages.append(method)
        return dict(ask(method, **request, MaxKeys=3))

    monkeypatch.setattr(s3, "call_s3", in_small_pages)
    expected = [(name, len(name.encode())) for name in sorted(NAMES)]
    for fs, folder in ((fsspec.filesystem("file"), tmp_path), (s3, f"{s3_bucket}/listing"), (memory, "/listing")):
        assert [(file.path, file.num_bytes) for file in list_below(fs, str(folder))] == expected
        directly = {info["name"].rpartition("/")[2] for info in list_directly_in(fs, str(folder))}
        assert directly - {".DS_Store"} == {name for name in NAMES if "/" not in name}
    assert len(pages) >= 6


@pytest.mark.parametrize("pattern", ["many/p-*.tar", "many/p-{000..019}.tar", "many/p-0[01]?.tar", "many/*"])
def test_a_bucket_of_many_tars_is_asked_page_by_page(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    s3 = fsspec.filesystem("s3")
    for number in range(20):
        s3.pipe_file(f"{s3_bucket}/many/p-{number:03}.tar", b"x" * number)
    s3.pipe_file(f"{s3_bucket}/many/deep/p-100.tar", b"another folder's")
    s3.invalidate_cache()
    ask, pages = s3.call_s3, []

    def in_small_pages(method: str, **request: Any) -> dict[str, Any]:
        pages.append(method)
        return dict(ask(method, **request, MaxKeys=5))

    monkeypatch.setattr(s3, "call_s3", in_small_pages)
    shards = plan_shards([f"s3://{s3_bucket}/{pattern}"])
    assert [(shard.uri, shard.num_bytes) for shard in shards] == [
        (f"s3://{s3_bucket}/many/p-{number:03}.tar", number) for number in range(20)
    ]
    assert len(pages) >= 4
    assert not s3.dircache, "what was listed is not kept"


@settings(max_examples=20, deadline=None)
@given(names=st.sets(st.text("ab-/.0", min_size=1, max_size=8), max_size=12))
def test_a_disk_is_listed_in_the_order_of_paths(names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("listing")
    for name in sorted(names):
        path = folder / f"{name.strip('/')}x"
        if ".." in name or "//" in name or any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    paths = [file.path for file in list_below(fsspec.filesystem("file"), str(folder))]
    assert paths == sorted(paths)
    on_disk = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert {Path(path) for path in paths} == {p for p in on_disk if not any(part.startswith(".") for part in p.parts)}


def test_sources_that_overlap_are_refused(tmp_path: Path) -> None:
    write(tmp_path, NAMES)
    for sources in (("", "a"), ("a", ""), ("", "b.jpg"), ("b.jpg", ""), ("", "a/*.jpg"), ("a", "a")):
        with pytest.raises(ConfigError, match="twice"):
            plan_shards([f"{tmp_path}/{name}".rstrip("/") for name in sources])
