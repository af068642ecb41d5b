"""TaTok with Dynamic Token Filtering: an adaptive image tokenizer, and what users do with its tokens.

Names load when they are first used: torch takes two seconds, and asking for statistics does not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tatok.schemas.records import Grid, TokenSequence

if TYPE_CHECKING:
    from tatok import statistics
    from tatok.dataset.batches import pack, pad
    from tatok.dataset.dataset import TokenDataset
    from tatok.dataset.packing import Bucketing, Packing, Rows
    from tatok.dataset.rows import token_sequences
    from tatok.tokenizer.named import load_tokenizer
    from tatok.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Bucketing",
    "Grid",
    "Packing",
    "Rows",
    "TokenDataset",
    "TokenSequence",
    "Tokenizer",
    "__version__",
    "load_tokenizer",
    "pack",
    "pad",
    "statistics",
    "token_sequences",
]

__version__ = "0.2.0"

_MODULES = {
    "Bucketing": "tatok.dataset.packing",
    "Packing": "tatok.dataset.packing",
    "Rows": "tatok.dataset.packing",
    "TokenDataset": "tatok.dataset.dataset",
    "Tokenizer": "tatok.tokenizer.tokenizer",
    "load_tokenizer": "tatok.tokenizer.named",
    "pack": "tatok.dataset.batches",
    "pad": "tatok.dataset.batches",
    "statistics": "tatok.statistics",
    "token_sequences": "tatok.dataset.rows",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'tatok' has no attribute {name!r}")
    module = importlib.import_module(_MODULES[name])
    return module if name == "statistics" else getattr(module, name)
