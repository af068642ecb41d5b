"""tatok's own loader, on the parts as `tatok tokenize` leaves them."""

from __future__ import annotations

from collections.abc import Iterable

from torch.utils.data import DataLoader

from benchmarks.loader.packing import TOKENS, Source
from tatok.dataset.batches import PackedBatch
from tatok.dataset.dataset import TokenDataset
from tatok.dataset.packing import Packing

__all__ = ["FORMATS", "VARIANTS"]

FORMATS: dict[str, object] = {}
"""Nothing to convert."""


def stream(source: Source) -> Iterable[PackedBatch]:
    """As the README shows it."""
    return _batches(TokenDataset(source.url, seed=source.seed), source.num_workers)


def cached(source: Source) -> Iterable[PackedBatch]:
    """What is read from the bucket is kept on the disk, for the epochs to come."""
    return _batches(TokenDataset(source.url, seed=source.seed, cache=source.cache), source.num_workers)


def _batches(dataset: TokenDataset, num_workers: int) -> Iterable[PackedBatch]:
    batches = dataset.stream(Packing(tokens=TOKENS))
    return DataLoader(batches, batch_size=None, num_workers=num_workers) if num_workers else batches  # type: ignore[return-value]


VARIANTS = {"stream": (stream, "parts"), "cached": (cached, "parts")}
