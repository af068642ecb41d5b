"""A group of files -> samples: each image or video with the text files beside it, fetched several at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tatok.pipeline.readers.fetch import Fetcher, refusal
from tatok.pipeline.readers.file_groups import unpack_group
from tatok.pipeline.readers.formats import HEAD_BYTES, extension_of, media_of
from tatok.pipeline.readers.unreadable import Unreadable, unreadable_reject
from tatok.schemas.records import Reject, Sample, Shard, SourceFile

__all__ = ["read_files"]


def read_files(shard: Shard, *, max_sample_bytes: int, label_from_folder: bool = False) -> Iterator[Sample | Reject]:
    """Yield the files of a group as samples; `uri` is the file's own, `index` 0 or its row in the list that names it.

    Sidecars and what a list says become attachments. With `label_from_folder` the first folder of a key is the label
    of a sample that has no other. Videos are not read: their `payload_uri` says where they lie.

    Rejects, all of stage "read": "missing", "forbidden", "too_large", "unreachable", "unreadable_uri",
    "signed_uri"; see `tatok.pipeline.readers.fetch`. Raises SourceError if the store fails.
    """
    fetcher = Fetcher(max_bytes=max_sample_bytes)

    def sample(file: SourceFile) -> Sample | Reject:
        attachments = _attachments(file, fetcher, label_from_folder)
        if isinstance(attachments, Unreadable):
            return unreadable_reject(file.uri, file.index, file.key, attachments)
        extension = extension_of(file.uri)
        is_video = media_of(file.uri) == "video"
        payload: bytes | Unreadable = refusal(file.uri) or b""
        if not is_video:
            # A file whose size nobody gave is not known to exist, either.
            was_listed = file.num_bytes is not None
            payload = fetcher.fetch(file.uri, num_bytes=file.num_bytes, was_listed=was_listed)
        if isinstance(payload, Unreadable):
            return unreadable_reject(file.uri, file.index, file.key, payload)
        return Sample(
            key=file.key,
            uri=file.uri,
            index=file.index,
            media=media_of(file.uri, payload[:HEAD_BYTES]),
            extension=extension,
            payload=payload,
            attachments=attachments,
            payload_uri=file.uri if is_video else None,
            payload_bytes=file.num_bytes if is_video else None,
        )

    def give_up(file: SourceFile, unreadable: Unreadable) -> Reject:
        return unreadable_reject(file.uri, file.index, file.key, unreadable)

    yield from fetcher.map(unpack_group(shard), sample, num_bytes=_bytes_in_memory, give_up=give_up)


def _bytes_in_memory(file: SourceFile) -> int | None:
    return 1 if media_of(file.uri) == "video" else file.num_bytes


def _attachments(file: SourceFile, fetcher: Fetcher, label_from_folder: bool) -> Mapping[str, bytes] | Unreadable:
    attachments = {extension: text.encode() for extension, text in file.attachments}
    stem = file.uri.removesuffix(file.uri.rpartition(".")[2])
    for extension in file.sidecars:
        content = fetcher.fetch(stem + extension)
        if isinstance(content, Unreadable):
            return content
        attachments[extension] = content
    if label_from_folder and "cls" not in attachments and "/" in file.key:
        attachments["cls"] = file.key.partition("/")[0].encode()
    return attachments
