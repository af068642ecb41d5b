"""The C library's memory: what is freed is kept for the next batch, not handed back to the system."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's names for mallopt
_MOST_KEPT_BYTES = 512 << 20
_LARGEST_BLOCK_BYTES = 32 << 20  # glibc takes no more
_HEAP_BYTES = 64 << 20  # all threads but the main one have heaps of this size; an empty one goes back, unless padded


def keep_freed_memory() -> bool:
    """Let this process keep up to half a gigabyte that it has freed; whether the C library can do so (glibc can).

    A model on a CPU allocates the same large arrays for every batch. Each time they come fresh from the system, which
    fills every page with zeros when it is first touched: an eighth of the time of encoding, measured with the default
    checkpoint and batches of 16. Padding is address space; what is not touched takes no memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = {
        _MMAP_THRESHOLD: _LARGEST_BLOCK_BYTES,
        _TRIM_THRESHOLD: _MOST_KEPT_BYTES,
        _TOP_PAD: _HEAP_BYTES,
    }
    return all(mallopt(name, value) for name, value in settings.items())
