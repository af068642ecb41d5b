"""A computation of [rows, codes] in chunks of rows, so that it stays in a cache, or at least in memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["row_chunks"]

_CACHED_BYTES = 4 << 20
_DEVICE_BYTES = 1 << 30


def row_chunks(rows: Tensor, num_codes: int, *, cached_bytes: int | None = None) -> tuple[Tensor, ...]:
    """Split rows of which each gives `num_codes` float32 numbers into about equal chunks, none a small remainder.

    On a CPU the numbers of a whole batch would go through memory once for each step, which takes twice to three times
    as long: a chunk has `cached_bytes` for each thread. On a GPU it only bounds the memory. Rows are independent; of
    chunks of a few rows, though, matrix products are rounded otherwise, and an image's codes must not depend on how
    many others are in its batch.
    """
    on_cpu = rows.device.type == "cpu" and not torch.compiler.is_compiling()  # which fuses the steps
    most_bytes = (cached_bytes or _CACHED_BYTES) * torch.get_num_threads() if on_cpu else _DEVICE_BYTES
    most_rows = max(1, most_bytes // (4 * num_codes))
    return rows.tensor_split(max(1, math.ceil(len(rows) / most_rows)))
