"""Listed files -> the samples among them, with the text files beside each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from tatok.pipeline.readers.formats import ATTACHMENTS, is_media
from tatok.pipeline.storage.listing import ListedFile
from tatok.schemas.records import SourceFile

__all__ = ["files_with_sidecars"]

_VERSION_CHARS = 12  # of an etag: 48 bits tell two versions of one file apart


def files_with_sidecars(listed: Iterable[ListedFile], folder: str) -> Iterator[SourceFile]:
    """The images and videos of a listing that is sorted by path; `folder` is the URI that its paths are below.

    `a/b.txt`, `a/b.cls` and `a/b.json` belong to `a/b.jpg`. The key is the path below the folder, with its extension.
    A sidecar's size and etag are part of its sample's version, so one that is edited makes a new version of it.
    """
    # All names with one stem have the stem up to the first dot in common, so they are next to each other.
    for _, names in groupby(listed, key=lambda file: _to_first_dot(file.path)):
        group = list(names)
        texts = {file.path: file for file in group if file.path.rpartition(".")[2] in ATTACHMENTS}
        for file in group:
            uri = f"{folder.rstrip('/')}/{file.path}"
            if not is_media(uri):
                continue
            stem = file.path.rpartition(".")[0]
            beside = {
                extension: texts[f"{stem}.{extension}"] for extension in ATTACHMENTS if f"{stem}.{extension}" in texts
            }
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


def _to_first_dot(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]
