"""How a job's tokenizer is loaded, in whichever process and onto whichever device it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tatok.checkpoint_files import check_checkpoint
from tatok.pipeline.storage.background import Unanswered, within
from tatok.pipeline.storage.remedies import SILENT_REMEDY
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.tokenizer.named import NamedTokenizer

if TYPE_CHECKING:
    from tatok.precision import Precision
    from tatok.tokenizer.protocol import AnyTokenizer

__all__ = ["LoadTokenizer", "check_job_tokenizer", "configured_loader", "load_configured_tokenizer", "load_spec"]

_ANSWER_S = 20.0

LoadTokenizer = Callable[[str], "AnyTokenizer"]
"""Loads the tokenizer onto the device of that name; must pickle, because it runs in other processes."""


def load_configured_tokenizer(
    checkpoint: str | None,
    device: str,
    *,
    precision: Precision,
    threshold: float | None,
    texture_bits: float | None,
    min_tokens: int | None,
    max_tokens: int | None,
    temporal: bool | None,
) -> AnyTokenizer:
    """Load a checkpoint and apply a job's DTF settings."""
    from tatok.tokenizer.tokenizer import Tokenizer  # torch takes seconds to import

    tokenizer = Tokenizer.load(checkpoint, device=device, precision=_precision_on(device, precision))
    if all(value is None for value in (threshold, texture_bits, min_tokens, max_tokens, temporal)):
        return tokenizer
    return tokenizer.with_dtf(
        threshold=threshold,
        texture_bits=texture_bits,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        temporal=temporal,
    )


def load_named_tokenizer(named: NamedTokenizer, device: str, *, precision: Precision) -> AnyTokenizer:
    """Make a job's own tokenizer."""
    return named.load(device, _precision_on(device, precision))


def _precision_on(device: str, precision: Precision) -> Precision:
    """On a CPU, which has no tf32, it is float32: a tokenizer of tf32 is only asked there what it is."""
    return "float32" if device == "cpu" and precision == "tf32" else precision


def check_job_tokenizer(config: JobConfig) -> None:
    """Raise ConfigError, within seconds, unless the job's checkpoint is there and whole, as far as its files say.

    Of a tokenizer of the user's own: unless its function can be imported, and takes its options. Loading would find the
    rest, and this, too: once Ray and its processes have started.
    """
    if config.tokenizer is not None:
        NamedTokenizer.of(config.tokenizer, config.tokenizer_options).check(config.precision)
        return
    checkpoint = config.checkpoint
    if checkpoint is None:
        return
    try:
        within(_ANSWER_S, lambda: check_checkpoint(checkpoint))
    except Unanswered as error:
        raise ConfigError(
            f"cannot read the checkpoint {checkpoint}: no answer within {_ANSWER_S:g} s", remedy=SILENT_REMEDY
        ) from error


def configured_loader(config: JobConfig) -> LoadTokenizer:
    """What loads the job's tokenizer; it brings the file of a user's own along.

    Raises ConfigError where that cannot be read.
    """
    if config.tokenizer is not None:
        named = NamedTokenizer.of(config.tokenizer, config.tokenizer_options)
        return partial(load_named_tokenizer, named, precision=config.precision)
    # Workers may run in another folder; a checkpoint named by a URL stays as it is.
    checkpoint = config.checkpoint
    if checkpoint is not None and "://" not in checkpoint:
        checkpoint = str(Path(checkpoint).expanduser().absolute())
    return partial(
        load_configured_tokenizer,
        checkpoint,
        precision=config.precision,
        threshold=config.dtf.threshold,
        texture_bits=config.dtf.texture_bits,
        min_tokens=config.dtf.min_tokens,
        max_tokens=config.dtf.max_tokens,
        temporal=config.dtf.temporal,
    )


def load_spec(config: JobConfig, load_tokenizer: LoadTokenizer) -> TokenizerSpec:
    """The tokenizer's spec, read off it on this machine's CPU: the job's GPUs may be elsewhere, or not there yet."""
    spec = TokenizerSpec.of(load_tokenizer("cpu"))
    return spec.but(precision="tf32") if config.precision == "tf32" else spec
