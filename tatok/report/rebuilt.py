"""Tokens -> pixels again, by the tokenizer that made them; any other would turn the codes into noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from tatok.dataset.parts import TokenizedData
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.identity import describe_difference
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.named import NamedTokenizer
from tatok.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tatok.tokenizer.protocol import AnyTokenizer

__all__ = ["criterion_of", "rebuilt_clips", "tokenizer_of"]

_BATCH = 16
_OF_CODE = ("code", "options", "torch", "precision")
"""Entries of an identity that may differ while the codes mean the same pixels."""


def tokenizer_of(
    data: TokenizedData,
    checkpoint: str | None = None,
    device: str | None = None,
    *,
    tokenizer: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> AnyTokenizer:
    """The tokenizer that made these tokens: the one that the run document names, but for what is named here instead.

    `tokenizer` and its `options` are for a dataset of a user's own tokenizer, `checkpoint` for one of tatok's. Raises
    ConfigError if it cannot be loaded, or has other weights, or another identity, than the tokens were made with.
    """
    own = data.run.config.get("tokenizer")
    if own is not None or tokenizer is not None:
        if checkpoint is not None or own is None:
            made_by = f"the tokenizer {own!r}; name that one with --tokenizer" if own else "a checkpoint of tatok"
            raise ConfigError(f"{data.url} was made by {made_by}")
        return _own_tokenizer(data, str(own), device, tokenizer, options)
    recorded = data.run.config.get("checkpoint")
    chosen = checkpoint or (None if recorded is None else str(recorded))
    remedy = "name the checkpoint that made it with --checkpoint"
    try:
        loaded = Tokenizer.load(chosen, device)
    except ConfigError as error:
        raise ConfigError(f"{error}; if {data.url} was made with another one, {remedy}") from error
    made_with = data.run.fingerprint.get("tokenizer.weights_sha256", "(unknown)")
    weights = loaded.identity["weights_sha256"]
    if made_with != weights:
        raise ConfigError(
            f"{data.url} was made with the weights {made_with[:16]}, but {chosen or 'the bundled checkpoint'} holds "
            f"{weights[:16]}; {remedy}"
        )
    return loaded


def _own_tokenizer(
    data: TokenizedData, recorded: str, device: str | None, named: str | None, options: Mapping[str, Any] | None
) -> AnyTokenizer:
    """The user's own tokenizer; one that is not `named` here must be of the very code that made the tokens."""
    import torch

    chosen_device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = {**(data.run.config.get("tokenizer_options") or {}), **(options or {})}
    try:
        loaded = NamedTokenizer.of(named or recorded, given).load(chosen_device)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; {data.url} was made by {recorded!r}",
            remedy="run from the folder that holds it, install what it needs, or name it with --tokenizer",
        ) from error
    prefix = "tokenizer."
    made_with = {name.removeprefix(prefix): v for name, v in data.run.fingerprint.items() if name.startswith(prefix)}
    may_differ = set(_OF_CODE) - (set() if named else {"code"})
    old, new = ({k: v for k, v in of.items() if k not in may_differ} for of in (made_with, loaded.identity))
    lines = describe_difference(old, new)
    if lines:
        raise ConfigError(
            f"{data.url} was made by another tokenizer than {named or recorded!r} is now:\n  " + "\n  ".join(lines),
            remedy="name the one that made it with --tokenizer, which may be of changed code if it decodes the same",
        )
    return loaded


def criterion_of(data: TokenizedData) -> str | None:
    """DTF's criterion, where the run document says."""
    try:
        dtf = json.loads(data.run.fingerprint.get("tokenizer.dtf", "null"))
    except ValueError:
        return None
    return dtf.get("criterion") if isinstance(dtf, dict) else None


def rebuilt_clips(
    data: TokenizedData, sequences: Sequence[TokenSequence], tokenizer: AnyTokenizer
) -> Iterator[np.ndarray]:
    """Pixels, uint8 [T, 3, H, W], of each sequence of `data` in order; neighbours of one grid are decoded together.

    Raises SourceError if tokens cannot be decoded, ConfigError if the tokenizer decodes nothing.
    """
    for _, alike in groupby(sequences, key=lambda sequence: (sequence.grid, sequence.num_frames)):
        group = list(alike)
        for first in range(0, len(group), _BATCH):
            try:
                clips_BT3HW = tokenizer.decode_clips(group[first : first + _BATCH])
            except ValueError as error:
                raise SourceError(
                    f"{data.url} holds tokens that cannot be decoded: {error}; is a part damaged?"
                ) from error
            yield from clips_BT3HW.cpu().numpy()
