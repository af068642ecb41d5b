"""A folder in a store -> the files below it, one after the other, in the order of their paths."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from tatok.pipeline.storage.background import LISTING_S, answered
from tatok.schemas.records import LeftOut
from tatok.schemas.urls import text_of_path

__all__ = [
    "ListedFile",
    "as_glob",
    "etag_of",
    "hidden_part",
    "is_local",
    "list_below",
    "list_directly_in",
    "list_matching",
]

_MAGIC = re.compile(r"[*?[]")
HIDDEN = LeftOut("hidden")
BROKEN_LINK = LeftOut("broken link")
LINK_TO_FOLDER = LeftOut("link to a folder")
NO_FILE = LeftOut("not a regular file")
FOLDER = LeftOut("folder: name it without a wildcard")
TWO_NAMES = LeftOut("not UTF-8, and spelt out the name of another")


class ListedFile(NamedTuple):
    """One file as listed: its path below the folder, its size and its etag (None and "" where the store has none)."""

    path: str
    num_bytes: int | None
    etag: str


def list_below(fs: AbstractFileSystem, folder: str, left_out: Counter[LeftOut] | None = None) -> Iterator[ListedFile]:
    """Every file below a folder, at any depth, by path; what is no file that can be read is counted in `left_out`.

    That are hidden names (a leading dot; a hidden folder counts once), and on disks links to folders, links that lead
    nowhere, and what is neither file nor folder. A disk is listed folder by folder and S3 page by page, so that memory
    does not grow with the number of files, but for those of one folder on a disk. Other stores are asked by fsspec,
    which holds about 1 kB for each file.
    """
    left_out = Counter() if left_out is None else left_out
    if is_local(fs):
        yield from _local(folder, "", left_out)
        return
    last_hidden = None
    for file in _s3(fs, folder) if "s3" in _protocols(fs) else _any(fs, folder):
        hidden = hidden_part(file.path)
        if hidden is None:
            yield file
        elif hidden != last_hidden:
            left_out[HIDDEN] += 1
            last_hidden = hidden


def hidden_part(path: str) -> str | None:
    """A path up to its first name that begins with a dot; None where there is none ("." and ".." are no names)."""
    if not (path.startswith(".") or "/." in path):
        return None  # as nearly all; members of tars are asked one by one
    names = path.split("/")
    hidden = next((n for n, name in enumerate(names) if name.startswith(".") and name not in (".", "..")), None)
    return None if hidden is None else "/".join(names[: hidden + 1])


def list_directly_in(fs: AbstractFileSystem, folder: str) -> Iterator[dict[str, Any]]:
    """fsspec's account of every file directly in a folder, in no certain order; S3 is asked page by page."""
    if "s3" not in _protocols(fs):
        yield from (
            info
            for info in (_followed(fs, info) for info in answered(partial(fs.ls, folder, detail=True), LISTING_S))
            if info["type"] == "file"
        )
        return
    bucket, prefix, _ = fs.split_path(folder)
    yield from _s3_files(fs, bucket, f"{prefix.rstrip('/')}/" if prefix else "", Counter())


def list_matching(
    fs: AbstractFileSystem, literal: str, glob: str, left_out: Counter[LeftOut]
) -> Iterator[dict[str, Any]]:
    """fsspec's account of every file that `literal`, a path as it is written, and a glob behind it match.

    The order is no certain one; what is no file is counted. A name that a wildcard matched and that is hidden is left
    out, unless the glob asks for dots. S3 is asked page by page where only the last part of the glob has wildcards;
    else fsspec, which holds every name.
    """
    wild = _MAGIC.search(glob)
    assert wild is not None, "what is no glob needs no listing"
    fixed = f"{literal}{glob[: wild.start()]}".rpartition("/")[0]
    asks_for_dots = re.search(r"(^|/)\.[^./]", f"{literal}{glob}"[len(fixed) :]) is not None
    for info in _matching(fs, literal, glob, wild.start(), left_out):
        if not asks_for_dots and hidden_part(info["name"][len(fixed) :].strip("/")) is not None:
            left_out[HIDDEN] += 1
        else:
            yield info


def _matching(
    fs: AbstractFileSystem, literal: str, glob: str, wild: int, left_out: Counter[LeftOut]
) -> Iterator[dict[str, Any]]:
    pattern = as_glob(literal) + glob
    start = f"{literal}{glob[:wild]}"
    bucket, slash, prefix = start.partition("/")
    if "s3" in _protocols(fs) and "/" not in glob[wild:] and slash:
        matches = re.compile(glob_translate(pattern)).match
        folders = Counter[str]()
        for info in _s3_files(fs, bucket, prefix, folders):
            if matches(info["name"]):
                yield info
        left_out.update(FOLDER for folder in folders if matches(folder))
        return
    for info in answered(partial(fs.glob, pattern, detail=True), LISTING_S).values():
        info = _followed(fs, info)
        if info["type"] == "file":
            yield info
        elif info["type"] != "directory":
            left_out[BROKEN_LINK if info.get("islink") else NO_FILE] += 1
        elif "**" not in pattern:  # which matches what is below it, too
            left_out[FOLDER] += 1


def as_glob(literal: str) -> str:
    """A glob that matches this path alone."""
    return _MAGIC.sub(lambda character: f"[{character[0]}]", literal)


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


def _local(folder: str, below: str, left_out: Counter[LeftOut]) -> Iterator[ListedFile]:
    with os.scandir(folder) as entries:
        found = [(entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""), entry) for entry in entries]
    names = {name for name, _ in found}
    # With its slash a folder sorts where its files' paths do.
    for name, entry in sorted(found, key=lambda item: text_of_path(item[0])):
        text = text_of_path(name)
        if name.startswith("."):
            left_out[HIDDEN] += 1
        elif text != name and text in names:
            left_out[TWO_NAMES] += 1
        elif name.endswith("/"):
            yield from _local(entry.path, below + text, left_out)
        elif entry.is_file():
            yield ListedFile(below + text, entry.stat().st_size, "")
        elif entry.is_symlink():
            left_out[LINK_TO_FOLDER if entry.is_dir() else BROKEN_LINK] += 1
        else:
            left_out[NO_FILE] += 1


def _s3(fs: AbstractFileSystem, folder: str) -> Iterator[ListedFile]:
    # s3fs's own listing holds every entry, and keeps it.
    bucket, prefix, _ = fs.split_path(folder)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    for entry in _s3_pages(fs, Counter(), Bucket=bucket, Prefix=prefix):
        if not entry["Key"].endswith("/"):
            yield ListedFile(entry["Key"].removeprefix(prefix), int(entry["Size"]), etag_of(entry))


def _s3_files(fs: AbstractFileSystem, bucket: str, prefix: str, folders: Counter[str]) -> Iterator[dict[str, Any]]:
    for entry in _s3_pages(fs, folders, Bucket=bucket, Prefix=prefix, Delimiter="/"):
        if not entry["Key"].endswith("/"):
            yield {"name": f"{bucket}/{entry['Key']}", "size": entry["Size"], "ETag": entry.get("ETag"), "type": "file"}


def _s3_pages(fs: AbstractFileSystem, folders: Counter[str], **request: str) -> Iterator[dict[str, Any]]:
    more: dict[str, str] = {}
    while True:
        page = answered(partial(fs.call_s3, "list_objects_v2", **request, **more))
        folders.update(f"{request['Bucket']}/{each['Prefix'].rstrip('/')}" for each in page.get("CommonPrefixes", ()))
        yield from page.get("Contents", ())
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _any(fs: AbstractFileSystem, folder: str) -> Iterator[ListedFile]:
    root = f"{folder.rstrip('/')}/"
    for path, info in sorted(answered(partial(fs.find, folder, detail=True), LISTING_S).items()):
        if info["type"] == "file":
            yield ListedFile(path.removeprefix(root), info.get("size"), etag_of(info))
