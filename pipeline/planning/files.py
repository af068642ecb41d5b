"""Listed files -> the samples among them, with the text files beside each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from tatok.pipeline.readers.formats import ATTACHMENTS, extension_of, format_of, is_media, missing_extra
from tatok.pipeline.storage.listing import ListedFile
from tatok.schemas.records import LeftOut, SourceFile

__all__ = ["files_with_sidecars"]

_VERSION_CHARS = 12  # of an etag: 48 bits tell two versions of one file apart


def files_with_sidecars(
    listed: Iterable[ListedFile], folder: str, left_out: Counter[LeftOut], *, are_named: bool = False
) -> Iterator[SourceFile]:
    """The images and videos of a listing that is sorted by path; `folder` is the URI that its paths are below.

    `a/b.txt`, `a/b.cls` and `a/b.json` belong to `a/b.jpg`. The key is the path below the folder, with its extension.
    A sidecar's size and etag are part of its sample's version, so one that is edited makes a new version of it.
    Files that are neither are counted in `left_out`, and so are images that need a plug-in which is not installed,
    unless they `are_named` each by itself: a reject then says it.
    """
    # All names with one stem have the stem up to the first dot in common, so they are next to each other.
    for _, names in groupby(listed, key=lambda file: _to_first_dot(file.path)):
        group = list(names)
        texts = {file.path: file for file in group if file.path.rpartition(".")[2] in ATTACHMENTS}
        taken = set[str]()
        for file in group:
            uri = f"{folder.rstrip('/')}/{file.path}"
            if not is_media(uri) or (not are_named and missing_extra(extension_of(uri)) is not None):
                continue
            stem = file.path.rpartition(".")[0]
            beside = {
                extension: texts[f"{stem}.{extension}"] for extension in ATTACHMENTS if f"{stem}.{extension}" in texts
            }
            taken.update([file.path, *(text.path for text in beside.values())])
            version = file.etag[:_VERSION_CHARS]
            if beside:
                version = ",".join(
                    [version, *(f"{text.num_bytes}:{text.etag[:_VERSION_CHARS]}" for text in beside.values())]
                )
            yield SourceFile(
                uri=uri,
                key=file.path,
                num_bytes=file.num_bytes,
                version=version,
                sidecars=tuple(beside),
            )
        left_out.update(_why_not(file.path) for file in group if file.path not in taken)


def _why_not(path: str) -> LeftOut:
    extension = extension_of(path)
    if (extra := missing_extra(extension)) is not None:
        return LeftOut(f"needs tatok[{extra}]", extension)
    if extension in ATTACHMENTS:
        return LeftOut("belongs to no image", extension)
    if format_of(path) == "list":
        return LeftOut("a list: name it by itself", extension)
    return LeftOut("no image, video, tar or table", extension)


def _to_first_dot(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]
