"""Pieces of multipart uploads whose processes were killed: in no listing of files, and paid for until aborted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from fsspec.spec import AbstractFileSystem

__all__ = ["STALE_UPLOAD", "abort_stale_uploads"]

STALE_UPLOAD = timedelta(days=1)  # a part's upload takes minutes: none that old is another run's at work


def abort_stale_uploads(fs: AbstractFileSystem, folder: str) -> int:
    """Abort the multipart uploads to a folder of an S3 store that began more than a day ago; how many there were.

    Other stores have none, or forget them by themselves.
    """
    if "s3" not in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        return 0
    bucket, prefix, _ = fs.split_path(folder)
    stale = [each for each in _uploads(fs, bucket, f"{prefix.rstrip('/')}/" if prefix else "") if _is_stale(each)]
    for upload in stale:
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return len(stale)


def _uploads(fs: AbstractFileSystem, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    more: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
        yield from page.get("Uploads", ())
        if not page.get("IsTruncated"):
            return
        more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _is_stale(upload: dict[str, Any]) -> bool:
    began: datetime = upload["Initiated"]
    return datetime.now(UTC) - began > STALE_UPLOAD
