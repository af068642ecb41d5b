"""Why a sample cannot be read: what becomes a reject of stage "read"."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.records import Reject

__all__ = ["Misfit", "misfit_reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Stands for bytes that could not be read; `ends_archive` where nothing after them can be, either."""

    reason: str
    detail: str
    ends_archive: bool = False


def misfit_reject(uri: str, index: int, key: str, misfit: Misfit) -> Reject:
    """The reject of the sample at a place."""
    return Reject(key=key, uri=uri, index=index, stage="read", reason=misfit.reason, detail=misfit.detail)
