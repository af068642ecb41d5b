"""TaTok with Dynamic Token Filtering: an adaptive image tokenizer."""

from schemas.records import Grid, TokenSequence
from tatok.rows import token_sequences
from tatok.tokenizer import Tokenizer

__all__ = ["Grid", "TokenSequence", "Tokenizer", "__version__", "token_sequences"]

__version__ = "0.1.0"
