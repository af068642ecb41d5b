"""The same photos and words in every layout that sources come in."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.photos import encoded, tar_bytes

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
STORES = ("local", "s3", "gs", "az", "hf", "http")
WITHOUT_LISTING = (folder, files_by_glob)  # a web server does not tell what it has
