"""How a job's tokenizer is loaded, in whichever process and onto whichever device it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.job import JobConfig

if TYPE_CHECKING:
    from tatok.model.precision import Precision
    from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["LoadTokenizer", "configured_loader", "load_configured_tokenizer", "load_spec"]

LoadTokenizer = Callable[[str], "Tokenizer"]
"""Loads the tokenizer onto the device of that name; must pickle, because it runs in other processes."""


def load_configured_tokenizer(
    checkpoint: str | None,
    device: str,
    *,
    precision: Precision,
    threshold: float | None,
    min_tokens: int | None,
    max_tokens: int | None,
    temporal: bool | None,
) -> Tokenizer:
    """Load a checkpoint and apply a job's DTF settings.

    On a CPU, which has no tf32, a tokenizer of that precision is one of float32: there it is only asked what it is.
    """
    from tatok.tokenizer.tokenizer import Tokenizer  # torch takes seconds to import

    if device == "cpu" and precision == "tf32":
        precision = "float32"
    tokenizer = Tokenizer.load(checkpoint, device=device, precision=precision)
    if threshold is None and min_tokens is None and max_tokens is None and temporal is None:
        return tokenizer
    return tokenizer.with_dtf(threshold=threshold, min_tokens=min_tokens, max_tokens=max_tokens, temporal=temporal)


def configured_loader(config: JobConfig) -> LoadTokenizer:
    """What loads the job's tokenizer."""
    # Workers may run in another folder; a checkpoint named by a URL stays as it is.
    checkpoint = config.checkpoint
    if checkpoint is not None and "://" not in checkpoint:
        checkpoint = str(Path(checkpoint).expanduser().absolute())
    return partial(
        load_configured_tokenizer,
        checkpoint,
        precision=config.precision,
        threshold=config.dtf.threshold,
        min_tokens=config.dtf.min_tokens,
        max_tokens=config.dtf.max_tokens,
        temporal=config.dtf.temporal,
    )


def load_spec(config: JobConfig, load_tokenizer: LoadTokenizer) -> TokenizerSpec:
    """The tokenizer's spec, read off it on this machine's CPU: the job's GPUs may be elsewhere, or not there yet."""
    spec = TokenizerSpec.of(load_tokenizer("cpu"))
    return spec.but(precision="tf32") if config.precision == "tf32" else spec
