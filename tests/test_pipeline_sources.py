"""Every layout in every store: the same photos, captions and labels come out (docs/SOURCES.md names these tests)."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jpeg, tar_bytes
from web_server import serving

from pipeline.plan import plan_shards
from pipeline.read import Place, read_places, read_samples
from schemas.errors import SourceError
from schemas.records import Sample

Put = Callable[[str, bytes], str]
"""Stores a file under a name and returns its address."""

PHOTOS = {f"p{i}": jpeg(i) for i in range(6)}
CAPTIONS = {key: f"photo {key}, ünïcödé" for key in PHOTOS}
LABELS = {key: key[1:] for key in PHOTOS}


def members(keys: Iterator[str] | list[str]) -> list[tuple[str, bytes]]:
    return [
        member
        for key in keys
        for member in (
            (f"{key}.jpg", PHOTOS[key]),
            (f"{key}.txt", CAPTIONS[key].encode()),
            (f"{key}.cls", LABELS[key].encode()),
        )
    ]


def parquet(**columns: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=4)
    return buffer.getvalue()


def texts() -> dict[str, list[str]]:
    return {"caption": list(CAPTIONS.values()), "label": list(LABELS.values())}


def tar(put: Put) -> str:
    return put("photos.tar", tar_bytes(members(list(PHOTOS))))


def tar_gz(put: Put) -> str:
    return put("photos.tar.gz", gzip.compress(tar_bytes(members(list(PHOTOS)))))


def tar_zst(put: Put) -> str:
    return put("photos.tar.zst", bytes(pa.compress(tar_bytes(members(list(PHOTOS))), "zstd", asbytes=True)))


def tars_by_braces(put: Put) -> str:
    keys = list(PHOTOS)
    put("part-0.tar", tar_bytes(members(keys[:3])))
    return put("part-1.tar", tar_bytes(members(keys[3:]))).replace("part-1", "part-{0..1}")


def parquet_bytes(put: Put) -> str:
    return put("photos.parquet", parquet(key=list(PHOTOS), jpg=list(PHOTOS.values()), **texts()))


def parquet_struct(put: Put) -> str:
    images = [{"bytes": photo, "path": f"{key}.jpg"} for key, photo in PHOTOS.items()]
    return put("photos.parquet", parquet(key=list(PHOTOS), image=images, **texts()))


def parquet_uris(put: Put) -> str:
    """Every other URI is relative."""
    uris = [put(f"{key}.jpg", photo) for key, photo in PHOTOS.items()]
    uris[::2] = [f"{key}.jpg" for key in list(PHOTOS)[::2]]
    return put("photos.parquet", parquet(key=list(PHOTOS), url=uris, **texts()))


def folder(put: Put) -> str:
    for name, data in members(list(PHOTOS)):
        address = put(f"photos/deep/{name}", data)
    return address.partition("/deep/")[0]


def files_by_glob(put: Put) -> str:
    for name, data in members(list(PHOTOS)):
        address = put(f"some/{name}", data)
    return address.rpartition("/")[0] + "/p*"


def list_txt(put: Put) -> str:
    uris = [put(f"{key}.jpg", photo) for key, photo in PHOTOS.items()]
    return put("list.txt", "\n".join(["# photos", *uris, ""]).encode())


def list_csv(put: Put) -> str:
    for key, photo in PHOTOS.items():
        put(f"{key}.jpg", photo)
    rows = [f'{key}.jpg,"{CAPTIONS[key]}",{LABELS[key]},{key}' for key in PHOTOS]
    return put("list.csv", "\r\n".join(["url,caption,label,key", *rows]).encode())


def list_jsonl(put: Put) -> str:
    rows = [
        json.dumps({"key": key, "uri": put(f"{key}.jpg", photo), "text": CAPTIONS[key], "cls": int(LABELS[key])})
        for key, photo in PHOTOS.items()
    ]
    return put("list.jsonl", "\n".join(rows).encode())


LAYOUTS = (
    tar, tar_gz, tar_zst, tars_by_braces, parquet_bytes, parquet_struct, parquet_uris, folder, files_by_glob,
    list_txt, list_csv, list_jsonl,
)  # fmt: skip
STORES = ("local", "s3", "http")
WITHOUT_LISTING = (folder, files_by_glob)  # a web server does not tell what it has


@pytest.fixture
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Put]:
    """The store that the test's parameter names."""

    def put_local(name: str, data: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    match request.param:
        case "local":
            yield put_local
        case "s3":
            root = f"{request.getfixturevalue('s3_bucket')}/layouts/{tmp_path.name}"
            fs = fsspec.filesystem("s3")

            def put_s3(name: str, data: bytes) -> str:
                fs.pipe_file(f"{root}/{name}", data)
                return f"s3://{root}/{name}"

            yield put_s3
        case "http":
            with serving(tmp_path) as web:
                yield lambda name, data: put_local(name, data).replace(str(tmp_path), web.url)


@pytest.mark.parametrize("put", STORES, indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layout_in_store(layout: Callable[[Put], str], put: Put, request: pytest.FixtureRequest) -> None:
    if layout in WITHOUT_LISTING and "http" in request.node.name:
        pytest.skip("a web server has no listing: name its files in a list")
    source = layout(put)
    shards = plan_shards([source])
    samples = [sample for shard in shards for sample in read_samples(shard, max_sample_bytes=1 << 20)]
    assert all(isinstance(sample, Sample) for sample in samples), samples
    key_of = {photo: key for key, photo in PHOTOS.items()}
    assert [key_of[sample.payload] for sample in samples] == list(PHOTOS)
    assert {sample.media for sample in samples} == {"image"}
    for sample in samples:
        key = key_of[sample.payload]
        assert key in sample.key
        if layout is not list_txt:
            assert sample.attachments["txt"].decode() == CAPTIONS[key]
            assert sample.attachments["cls"].decode() == LABELS[key]
    places = [place for shard in shards for place in read_places(shard, max_sample_bytes=1 << 20)]
    assert places == [Place(sample.uri, sample.index, sample.key) for sample in samples]
    assert len({(place.uri, place.index) for place in places}) == len(PHOTOS)
    assert plan_shards([source]) == shards, "ids are stable"


def test_folder_of_a_web_server_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with serving(tmp_path) as web, pytest.raises(SourceError, match="list"):
        plan_shards([f"{web.url}/photos/"])
