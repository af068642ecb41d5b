"""Every format in every layout in every store: the same photos and words come out (docs/SOURCES.md names the cases)."""

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
from conftest import encoded, tar_bytes
from web_server import serving

from pipeline.decode import decode_sample
from pipeline.plan import plan_shards
from pipeline.read import Place, read_places, read_samples
from schemas.errors import SourceError
from schemas.job import Limits, Preprocessing
from schemas.records import Clip, Sample

Put = Callable[[str, bytes], str]
"""Stores a file under a name and returns its address."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP")
PHOTOS = {f"p{i}": encoded(i, 48, 32, image_format) for i, image_format in enumerate(FORMATS)}
PHOTOS["p7"] = b"\0\0\0\x18ftypisom" + bytes(100)
EXTENSIONS = ("jpg", "png", "webp", "avif", "gif", "tif", "bmp", "mp4")
NAMES = {key: f"{key}.{extension}" for key, extension in zip(PHOTOS, EXTENSIONS, strict=True)}
CAPTIONS = {key: f"photo {key}, ünïcödé" for key in PHOTOS}
LABELS = {key: key[1:] for key in PHOTOS}


def members(keys: Iterator[str] | list[str]) -> list[tuple[str, bytes]]:
    return [
        member
        for key in keys
        for member in (
            (NAMES[key], PHOTOS[key]),
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
    return put("photos.parquet", parquet(key=list(PHOTOS), image=list(PHOTOS.values()), **texts()))


def parquet_struct(put: Put) -> str:
    images = [{"bytes": photo, "path": NAMES[key]} for key, photo in PHOTOS.items()]
    return put("photos.parquet", parquet(key=list(PHOTOS), image=images, **texts()))


def parquet_uris(put: Put) -> str:
    """Every other URI is relative."""
    uris = [put(NAMES[key], photo) for key, photo in PHOTOS.items()]
    uris[::2] = [NAMES[key] for key in list(PHOTOS)[::2]]
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
    uris = [put(NAMES[key], photo) for key, photo in PHOTOS.items()]
    return put("list.txt", "\n".join(["# photos", *uris, ""]).encode())


def list_csv(put: Put) -> str:
    for key, photo in PHOTOS.items():
        put(NAMES[key], photo)
    rows = [f'{NAMES[key]},"{CAPTIONS[key]}",{LABELS[key]},{key}' for key in PHOTOS]
    return put("list.csv", "\r\n".join(["url,caption,label,key", *rows]).encode())


def list_jsonl(put: Put) -> str:
    rows = [
        json.dumps({"key": key, "uri": put(NAMES[key], photo), "text": CAPTIONS[key], "cls": int(LABELS[key])})
        for key, photo in PHOTOS.items()
    ]
    return put("list.jsonl", "\n".join(rows).encode())


LAYOUTS = (
    tar, tar_gz, tar_zst, tars_by_braces, parquet_bytes, parquet_struct, parquet_uris, folder, files_by_glob,
    list_txt, list_csv, list_jsonl,
)  # fmt: skip
STORES = ("local", "s3", "gs", "http")
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
        case "s3" | "gs" as scheme:
            bucket = request.getfixturevalue("s3_bucket" if scheme == "s3" else "gcs_bucket")
            root = f"{bucket}/layouts/{tmp_path.name}"
            fs = fsspec.filesystem(scheme)

            def put_object(name: str, data: bytes) -> str:
                fs.pipe_file(f"{root}/{name}", data)
                return f"{scheme}://{root}/{name}"

            yield put_object
        case "http":
            with serving(tmp_path) as web:
                yield lambda name, data: put_local(name, data).replace(str(tmp_path), web.url)


def content(sample: Sample) -> bytes:
    """The bytes, which a video that is a file of its own leaves where they lie."""
    if sample.payload_uri is None:
        return sample.payload
    assert sample.payload == b""
    with fsspec.open(sample.payload_uri, "rb") as file:
        return bytes(file.read())


@pytest.mark.parametrize("put", STORES, indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layout_in_store(layout: Callable[[Put], str], put: Put, request: pytest.FixtureRequest) -> None:
    if layout in WITHOUT_LISTING and "http" in request.node.name:
        pytest.skip("a web server has no listing: name its files in a list")
    source = layout(put)
    shards = plan_shards([source])
    samples = [sample for shard in shards for sample in read_samples(shard, max_sample_bytes=1 << 20)]
    assert len(samples) == len(PHOTOS)
    for sample, key in zip(samples, PHOTOS, strict=True):
        assert isinstance(sample, Sample)
        assert key in sample.key
        assert content(sample) == PHOTOS[key]
        assert sample.media == ("video" if key == "p7" else "image")
        if sample.media == "image":
            [clip] = decode_sample(sample, Preprocessing(image_size=16), Limits())
            assert isinstance(clip, Clip), (key, clip)
        if layout is not list_txt:
            assert sample.attachments["txt"].decode() == CAPTIONS[key]
            assert sample.attachments["cls"].decode() == LABELS[key]
    places = [place for shard in shards for place in read_places(shard, max_sample_bytes=1 << 20)]
    assert places == [Place(sample.uri, sample.index, sample.key) for sample in samples]
    assert len({(place.uri, place.index) for place in places}) == len(PHOTOS)
    assert plan_shards([source]) == shards, "ids are stable"


def test_an_address_with_a_query(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTOS["p0"])
    with serving(tmp_path) as web:
        [shard] = plan_shards([f"{web.url}/a.jpg?width=100"])
        [sample] = read_samples(shard, max_sample_bytes=1 << 20)
    assert isinstance(sample, Sample)
    assert (sample.payload, sample.extension) == (PHOTOS["p0"], "jpg")


def test_folder_of_a_web_server_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with serving(tmp_path) as web, pytest.raises(SourceError, match="list"):
        plan_shards([f"{web.url}/photos/"])
