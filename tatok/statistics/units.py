"""Numbers of bytes as people read them."""

from __future__ import annotations

__all__ = ["bytes_text"]


def bytes_text(count: float) -> str:
    """A size such as "1.4 GB": units are powers of 1000, as those of disks and buckets are."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} bytes"
