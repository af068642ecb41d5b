"""What a source holds, counted without the readers; the right numbers are by hand, from docs/guides/sources.md."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok.pipeline.census import source as census
from tatok.pipeline.census.lists import count_listed
from tatok.pipeline.census.source import Count, MediaNames, NoCount, count_source
from tatok.pipeline.census.tables import count_rows
from tatok.schemas.errors import SourceError
from tests.support.layouts import LAYOUTS, PHOTOS, WITHOUT_LISTING, Put
from tests.support.photos import photo_members, tar_bytes
from tests.support.services.web_server import serving

MEDIA = MediaNames(
    read=frozenset(["jpg", "png", "webp", "avif", "gif", "tif", "bmp", "mp4"]), needs_extra=frozenset(["heic"])
)


def counted(*patterns: str, image_field: str | None = None) -> dict[str, int | None]:
    """Base name -> samples; only what is there for sure."""
    counts = list(count_source(patterns, MEDIA, image_field=image_field))
    assert all(isinstance(each, Count) for each in counts), counts
    return {
        each.uri.rpartition("/")[2]: each.most for each in counts if isinstance(each, Count) and not each.is_optional
    }


def optional(*patterns: str) -> list[str]:
    counts = count_source(patterns, MEDIA)
    return [each.uri.rpartition("/")[2] for each in counts if isinstance(each, Count) and each.is_optional]


def put_all(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(tar_bytes(photo_members(0, 3)) if name.endswith("tar") else b"x")
    return folder


def test_a_folder_is_everything_below_it(tmp_path: Path) -> None:
    root = put_all(
        tmp_path / "r", "1.jpg", "2.PNG", "2.txt", "deep/er/3.mp4", "deep/a.tar", "b.tar", "list.csv", "notes",
        "x.heic", ".4.jpg", ".git/5.jpg", "deep/.cache/c.tar", "6.doc",
    )  # fmt: skip
    (root / "table.parquet").write_bytes(parquet(image=[b"1", b"2"]))
    (root / "deep" / "words.parquet").write_bytes(parquet(text=["a"]))
    (root / "link.jpg").symlink_to(root / "1.jpg")
    (root / "broken.jpg").symlink_to(root / "nothing.jpg")
    (root / "again").symlink_to(root / "deep")
    os.mkfifo(root / "pipe.jpg")
    files = {"1.jpg": 1, "2.PNG": 1, "3.mp4": 1, "link.jpg": 1, "a.tar": 3, "b.tar": 3, "table.parquet": 2}
    assert counted(str(root)) == files
    assert counted(f"file://{root}") == files
    assert sorted(optional(str(root))) == ["words.parquet", "x.heic"]


def test_what_is_named_by_itself_is_taken_whatever_its_name(tmp_path: Path) -> None:
    names = [".hidden.jpg", ".all/1.jpg", "x.heic", "archive", "a [1]{b,c}/d*?.jpg", "e.jpg"]
    put_all(tmp_path, *names)
    (tmp_path / "archive").write_bytes(tar_bytes(photo_members(0, 2)))
    (tmp_path / "list.txt").write_bytes(b"a.jpg\nb.jpg\n")
    assert counted(f"{tmp_path}/.hidden.jpg", f"{tmp_path}/.all", f"{tmp_path}/x.heic") == {
        ".hidden.jpg": 1, "1.jpg": 1, "x.heic": 1,
    }  # fmt: skip
    assert counted(f"{tmp_path}/archive", f"{tmp_path}/list.txt") == {"archive": 2, "list.txt": 2}
    assert counted(f"{tmp_path}/a [1]{{b,c}}") == {"d*?.jpg": 1}
    assert counted(f"{tmp_path}/a [1]{{b,c}}/d*?.jpg") == {"d*?.jpg": 1}


def test_globs_and_braces(tmp_path: Path) -> None:
    put_all(tmp_path, "s/1.jpg", "s/1.txt", "s/.2.jpg", "s/notes", "s/x.heic", "s/sub/3.jpg", "t/a.tar", "t/b.tar")
    (tmp_path / "t" / "list.csv").write_bytes(b"url\n1.jpg\n")
    assert counted(f"{tmp_path}/s/*") == {"1.jpg": 1}  # among images a text is a caption, and nothing else a tar
    assert counted(f"{tmp_path}/s/**") == {"1.jpg": 1, "3.jpg": 1}
    assert counted(f"{tmp_path}/s/.*") == {".2.jpg": 1}
    assert counted(f"{tmp_path}/t/*") == {"a.tar": 3, "b.tar": 3, "list.csv": 1}
    assert counted(f"{tmp_path}/t/{{a,b}}.tar") == {"a.tar": 3, "b.tar": 3}
    assert counted(f"{tmp_path}/{{s,t}}") == {"1.jpg": 1, "3.jpg": 1, "a.tar": 3, "b.tar": 3}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    assert counted(str(tmp_path)) == {"caf\\xe9.jpg": 1}


def parquet(**columns: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=2)
    return buffer.getvalue()


def test_tables_by_their_footer(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    bytes_of = pa.array([b"1", None, b"33"])
    columns = {
        "plain": bytes_of, "large": bytes_of.cast(pa.large_binary()), "fixed": pa.array([b"12"] * 3, pa.binary(2)),
        "dictionary": bytes_of.dictionary_encode(), "text": pa.array(["a", "b", "c"]),
        "struct": pa.array([{"bytes": b"1", "path": "x"}] * 3), "words": pa.array([{"bytes": "1"}] * 3),
    }  # fmt: skip
    path.write_bytes(parquet(**columns))
    table = count_rows(str(path))
    assert table is not None
    assert table.row_groups == (2, 1)
    assert table.byte_columns == {"plain", "large", "fixed", "dictionary", "struct"}
    assert counted(str(path), image_field="text") == {"t.parquet": 3}  # named by itself a table of URIs is a source
    assert counted(str(tmp_path), image_field="large") == {"t.parquet": 3}
    assert counted(str(tmp_path), image_field="text") == {}
    path.write_bytes(path.read_bytes()[:-5])
    assert count_rows(str(path)) is None
    [damaged] = count_source([str(path)], MEDIA)
    assert isinstance(damaged, Count)
    assert (damaged.least, damaged.most) == (1, None)


@pytest.mark.parametrize(
    ("name", "text", "num_rows"),
    [
        ("a.txt", "", 0),
        ("a.txt", "a.jpg\n\n# no\n  # no\n b.jpg \nc#.jpg", 3),
        ("a.txt", "\ufeff# no\r\na.jpg\r\nb.jpg\r\n", 2),
        ("a.jsonl", '\ufeff{"uri":\r"a"}\r\n\r\n{"uri": "b"}\r\n', 2),
        ("a.csv", "\ufeffurl\r\n", 0),
        ("a.jsonl", '{"uri": "a"}\n\n \t\n{"uri": "b\\n\u2028"}', 2),
        ("a.csv", "url", 0),
        ("a.csv", "url,caption\na,b\nc,d\n", 2),
        ("a.csv", "url,caption\r\na,b\r\nc,d", 2),
        ("a.csv", 'url,caption\na,"one\ntwo"\nb,"with ""quotes""\n\nand lines"\nc,d', 3),
        ("a.csv", '\ufeff"url","a ""head"""\n"a,\n",""\n', 1),
        ("a.csv", 'url,caption\n"a","x' + "\n" * 5000 + '"\nb,c\n', 2),
        ("a.tsv", 'url\tcaption\na\t6" tall\nb\t"quoted"\nc\tit\'s "so\n', 3),
        ("a.tsv", 'url\tcaption\na\t"\nb\t"\n', 2),
        ("a.tsv", "url\tcaption\n\t\n", 1),
    ],
)
def test_lists_by_their_lines(
    name: str, text: str, num_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert count_listed(f"{tmp_path}/{name}", name.rpartition(".")[2]) == num_rows
    for size in (3, 4, 7):  # wherever a chunk ends
        monkeypatch.setattr("tatok.pipeline.census.lists._CHUNK_BYTES", size)
        assert count_listed(f"{tmp_path}/{name}", name.rpartition(".")[2]) == num_rows, size


def test_what_cannot_be_counted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all(tmp_path, "a.tar", "b.tar")

    def failing(uri: str) -> tuple[int, int]:
        if uri.endswith("a.tar"):
            raise SourceError("the store has failed")
        return (3, 3)

    monkeypatch.setattr(census, "count_tar", failing)
    first, second = sorted(count_source([str(tmp_path)], MEDIA), key=lambda each: each.uri)
    assert first == NoCount(uri=f"{tmp_path}/a.tar", reason="the store has failed")
    assert isinstance(second, Count)
    [nowhere] = count_source(["no-such-scheme://bucket/*.tar"], MEDIA)
    assert isinstance(nowhere, NoCount)
    [gone] = count_source([f"{tmp_path}/gone.parquet"], MEDIA)
    assert isinstance(gone, NoCount)
    assert "gone.parquet" in gone.reason


@pytest.fixture
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Put]:
    """A store that is far away: where things are put."""
    if request.param == "http":

        def put_file(name: str, data: bytes) -> str:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
            return f"{web.url}/{name}"

        with serving(tmp_path) as web:
            yield put_file
        return
    bucket = request.getfixturevalue("s3_bucket" if request.param == "s3" else "gcs_bucket")
    fs = fsspec.filesystem(request.param)

    def put_object(name: str, data: bytes) -> str:
        fs.pipe_file(f"{bucket}/census/{tmp_path.name}/{name}", data)
        return f"{request.param}://{bucket}/census/{tmp_path.name}/{name}"

    yield put_object


@pytest.mark.parametrize("put", ["s3", "gs", "http"], indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts_in_stores(layout: Callable[[Put], str], put: Put, request: pytest.FixtureRequest) -> None:
    if layout in WITHOUT_LISTING and "http" in request.node.name:
        pytest.skip("a web server has no listing: name its files in a list")
    source = layout(put)
    counts = list(count_source([source], MEDIA))
    assert all(isinstance(each, Count) for each in counts), counts
    assert sum(each.least for each in counts if isinstance(each, Count)) == len(PHOTOS)
    assert sum(each.most or 0 for each in counts if isinstance(each, Count)) == len(PHOTOS)
    scheme = source.partition("://")[0]
    assert all(each.uri.startswith(f"{scheme}://") for each in counts)


@pytest.mark.parametrize("put", ["s3"], indirect=True)
def test_hidden_objects_and_markers_of_folders(put: Put) -> None:
    for name in ("d/1.jpg", "d/.2.jpg", "d/.x/3.jpg", "d/e/", "d/e/4.jpg"):
        address = put(name, b"" if name.endswith("/") else b"x")
    folder = address.rpartition("/e/")[0]
    assert counted(folder) == {"1.jpg": 1, "4.jpg": 1}
    assert counted(f"{folder}/*") == {"1.jpg": 1}
