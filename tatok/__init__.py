"""TaTok with Dynamic Token Filtering: an adaptive image tokenizer, and what users do with its tokens.

Names load when they are first used: torch takes two seconds, and asking for statistics does not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tatok.schemas.errors import IncompleteError, TatokError
from tatok.schemas.records import Grid, TokenSequence

if TYPE_CHECKING:
    from tatok import statistics
    from tatok.dataset.batches import pack, pad
    from tatok.dataset.dataset import TokenDataset
    from tatok.dataset.packing import Bucketing, Packing, Rows
    from tatok.dataset.rows import token_sequences
    from tatok.jobs.python.opened import OpenedDataset
    from tatok.jobs.python.opened import open_dataset as open
    from tatok.jobs.python.tokenizing import plan, tokenize
    from tatok.tokenizer.images import ImageTokens
    from tatok.tokenizer.named import load_tokenizer
    from tatok.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Bucketing",
    "Grid",
    "ImageTokens",
    "IncompleteError",
    "OpenedDataset",
    "Packing",
    "Rows",
    "TatokError",
    "TokenDataset",
    "TokenSequence",
    "Tokenizer",
    "__version__",
    "load_tokenizer",
    "open",
    "pack",
    "pad",
    "plan",
    "statistics",
    "token_sequences",
    "tokenize",
]

__version__ = "0.3.0"

_PLACES = {
    "Bucketing": "tatok.dataset.packing:Bucketing",
    "ImageTokens": "tatok.tokenizer.images:ImageTokens",
    "OpenedDataset": "tatok.jobs.python.opened:OpenedDataset",
    "Packing": "tatok.dataset.packing:Packing",
    "Rows": "tatok.dataset.packing:Rows",
    "TokenDataset": "tatok.dataset.dataset:TokenDataset",
    "Tokenizer": "tatok.tokenizer.tokenizer:Tokenizer",
    "load_tokenizer": "tatok.tokenizer.named:load_tokenizer",
    "open": "tatok.jobs.python.opened:open_dataset",
    "pack": "tatok.dataset.batches:pack",
    "pad": "tatok.dataset.batches:pad",
    "plan": "tatok.jobs.python.tokenizing:plan",
    "statistics": "tatok.statistics:",
    "token_sequences": "tatok.dataset.rows:token_sequences",
    "tokenize": "tatok.jobs.python.tokenizing:tokenize",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'tatok' has no attribute {name!r}")
    place, _, attribute = _PLACES[name].partition(":")
    module = importlib.import_module(place)
    return getattr(module, attribute) if attribute else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
