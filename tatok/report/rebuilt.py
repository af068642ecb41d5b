"""Tokens -> pixels again, by the tokenizer that made them; any other would turn the codes into noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from tatok.dataset.parts import TokenizedData
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["criterion_of", "rebuilt_clips", "tokenizer_of"]

_BATCH = 16


def tokenizer_of(data: TokenizedData, checkpoint: str | None = None, device: str | None = None) -> Tokenizer:
    """The tokenizer that made these tokens, from `checkpoint`, else from the one that run.json names.

    Raises ConfigError if it cannot be loaded, or has other weights than the tokens were made with.
    """
    recorded = data.run.config.get("checkpoint")
    chosen = checkpoint or (None if recorded is None else str(recorded))
    remedy = "name the checkpoint that made it with --checkpoint"
    try:
        tokenizer = Tokenizer.load(chosen, device)
    except ConfigError as error:
        raise ConfigError(f"{error}; if {data.url} was made with another one, {remedy}") from error
    made_with = data.run.fingerprint.get("tokenizer.weights_sha256", "(unknown)")
    loaded = tokenizer.identity["weights_sha256"]
    if made_with != loaded:
        raise ConfigError(
            f"{data.url} was made with the weights {made_with[:16]}, but {chosen or 'the bundled checkpoint'} holds "
            f"{loaded[:16]}; {remedy}"
        )
    return tokenizer


def criterion_of(data: TokenizedData) -> str | None:
    """DTF's criterion, where run.json says."""
    try:
        dtf = json.loads(data.run.fingerprint.get("tokenizer.dtf", "null"))
    except ValueError:
        return None
    return dtf.get("criterion") if isinstance(dtf, dict) else None


def rebuilt_clips(
    data: TokenizedData, sequences: Sequence[TokenSequence], tokenizer: Tokenizer
) -> Iterator[np.ndarray]:
    """Pixels, uint8 [T, 3, H, W], of each sequence of `data` in order; neighbours of one grid are decoded together.

    Raises SourceError if tokens cannot be decoded.
    """
    for _, alike in groupby(sequences, key=lambda sequence: sequence.grid):
        group = list(alike)
        for first in range(0, len(group), _BATCH):
            try:
                clips_BT3HW = tokenizer.decode_clips(group[first : first + _BATCH])
            except ValueError as error:
                raise SourceError(
                    f"{data.url} holds tokens that cannot be decoded: {error}; is a part damaged?"
                ) from error
            yield from clips_BT3HW.cpu().numpy()
