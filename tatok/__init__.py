"""TaTok with Dynamic Token Filtering: an adaptive image tokenizer, and what users do with its tokens.

Names load when they are first used: torch takes two seconds, and asking for statistics does not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from schemas.records import Grid, TokenSequence

if TYPE_CHECKING:
    from tatok import statistics
    from tatok.batches import pack, pad
    from tatok.dataset import TokenDataset
    from tatok.packing import Bucketing, Packing, Rows
    from tatok.rows import token_sequences
    from tatok.tokenizer import Tokenizer

__all__ = [
    "Bucketing",
    "Grid",
    "Packing",
    "Rows",
    "TokenDataset",
    "TokenSequence",
    "Tokenizer",
    "__version__",
    "pack",
    "pad",
    "statistics",
    "token_sequences",
]

__version__ = "0.1.0"

_MODULES = {
    "Bucketing": "tatok.packing",
    "Packing": "tatok.packing",
    "Rows": "tatok.packing",
    "TokenDataset": "tatok.dataset",
    "Tokenizer": "tatok.tokenizer",
    "pack": "tatok.batches",
    "pad": "tatok.batches",
    "statistics": "tatok.statistics",
    "token_sequences": "tatok.rows",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'tatok' has no attribute {name!r}")
    module = importlib.import_module(_MODULES[name])
    return module if name == "statistics" else getattr(module, name)
