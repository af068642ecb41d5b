"""A folder in a store -> the files below it, one after the other, in the order of their paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

__all__ = ["ListedFile", "etag_of", "is_local", "list_below", "list_directly_in", "list_matching"]

_MAGIC = re.compile(r"[*?[]")


class ListedFile(NamedTuple):
    """One file as listed: its path below the folder, its size and its etag (None and "" where the store has none)."""

    path: str
    num_bytes: int | None
    etag: str


def list_below(fs: AbstractFileSystem, folder: str) -> Iterator[ListedFile]:
    """Every file below a folder, at any depth, by path; hidden ones (a name that starts with a dot) are left out.

    A disk is listed folder by folder and S3 page by page, so that memory does not grow with the number of files, but
    for those of one folder on a disk. Other stores are asked by fsspec, which holds about 1 kB for each file. Links
    to folders are not followed.
    """
    if is_local(fs):
        yield from _local(folder, "")
        return
    listed = _s3(fs, folder) if "s3" in _protocols(fs) else _any(fs, folder)
    for file in listed:
        if not any(name.startswith(".") for name in file.path.split("/")):
            yield file


def list_directly_in(fs: AbstractFileSystem, folder: str) -> Iterator[dict[str, Any]]:
    """fsspec's account of every file directly in a folder, in no certain order; S3 is asked page by page."""
    if "s3" not in _protocols(fs):
        yield from (
            info for info in (_followed(fs, info) for info in fs.ls(folder, detail=True)) if info["type"] == "file"
        )
        return
    bucket, prefix, _ = fs.split_path(folder)
    yield from _s3_files(fs, bucket, f"{prefix.rstrip('/')}/" if prefix else "")


def list_matching(fs: AbstractFileSystem, pattern: str) -> Iterator[dict[str, Any]]:
    """fsspec's account of every file that a glob matches, in no certain order.

    S3 is asked page by page where only the last part of the pattern is one; else fsspec, which holds every name.
    """
    magic = _MAGIC.search(pattern)
    bucket, _, key = pattern.partition("/")
    if "s3" in _protocols(fs) and magic and "/" not in pattern[magic.start() :] and magic.start() > len(bucket):
        matches = re.compile(glob_translate(pattern)).match
        files = _s3_files(fs, bucket, key[: magic.start() - len(bucket) - 1])
        yield from (info for info in files if matches(info["name"]))
        return
    for info in fs.glob(pattern, detail=True).values():
        info = _followed(fs, info)
        if info["type"] == "file":
            yield info


def _followed(fs: AbstractFileSystem, info: dict[str, Any]) -> dict[str, Any]:
    """fsspec's account of what a link on a disk leads to; of what is no link, or leads nowhere, the one given."""
    if not info.get("islink"):
        return info
    try:
        return dict(fs.info(info["name"]))
    except FileNotFoundError:
        return info


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether paths of this filesystem are those of the machine."""
    return "file" in _protocols(fs)


def etag_of(info: dict[str, Any]) -> str:
    """The etag in fsspec's account of a file."""
    return str(info.get("ETag") or info.get("etag") or "").strip('"')


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _local(folder: str, below: str) -> Iterator[ListedFile]:
    with os.scandir(folder) as entries:
        found = [
            (entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""), entry)
            for entry in entries
            if not entry.name.startswith(".")
        ]
    # With its slash a folder sorts where its files' paths do.
    for name, entry in sorted(found, key=lambda item: item[0]):
        if name.endswith("/"):
            yield from _local(entry.path, below + name)
        elif entry.is_file():
            yield ListedFile(below + name, entry.stat().st_size, "")


def _s3(fs: AbstractFileSystem, folder: str) -> Iterator[ListedFile]:
    # s3fs's own listing holds every entry, and keeps it.
    bucket, prefix, _ = fs.split_path(folder)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    for entry in _s3_pages(fs, Bucket=bucket, Prefix=prefix):
        if not entry["Key"].endswith("/"):
            yield ListedFile(entry["Key"].removeprefix(prefix), int(entry["Size"]), etag_of(entry))


def _s3_files(fs: AbstractFileSystem, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    for entry in _s3_pages(fs, Bucket=bucket, Prefix=prefix, Delimiter="/"):
        if not entry["Key"].endswith("/"):
            yield {"name": f"{bucket}/{entry['Key']}", "size": entry["Size"], "ETag": entry.get("ETag"), "type": "file"}


def _s3_pages(fs: AbstractFileSystem, **request: str) -> Iterator[dict[str, Any]]:
    more: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", **request, **more)
        yield from page.get("Contents", ())
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _any(fs: AbstractFileSystem, folder: str) -> Iterator[ListedFile]:
    root = f"{folder.rstrip('/')}/"
    for path, info in sorted(fs.find(folder, detail=True).items()):
        if info["type"] == "file":
            yield ListedFile(path.removeprefix(root), info.get("size"), etag_of(info))
