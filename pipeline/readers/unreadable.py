"""Why a sample cannot be read: what becomes a reject of stage "read"."""

from __future__ import annotations

from dataclasses import dataclass

from tatok.schemas.records import Reject

__all__ = ["Unreadable", "unreadable_reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """Takes the place of bytes that could not be read; `ends_archive` where nothing after them can be, either."""

    reason: str
    detail: str
    ends_archive: bool = False


def unreadable_reject(uri: str, index: int, key: str, unreadable: Unreadable) -> Reject:
    """The reject of the sample at a place."""
    return Reject(key=key, uri=uri, index=index, stage="read", reason=unreadable.reason, detail=unreadable.detail)
