"""The id of a row: where its sample lies in the source."""

from __future__ import annotations

import hashlib

__all__ = ["sample_id"]


def sample_id(uri: str, index: int, key: str, clip_index: int = 0) -> str:
    """128 bits in hex that name one row: unique in a dataset, equal in every run over the same source.

    It names the place, not the bytes: a source at another address gives other ids, and the column sha256 (with key)
    is what finds the same photo again. Hashing the bytes instead would give two copies of one photo one id, and a
    sample that cannot be read none.
    """
    clip = f"\0{clip_index}" if clip_index else ""
    return hashlib.sha256(f"{uri}\0{index}\0{key}{clip}".encode()).hexdigest()[:32]
