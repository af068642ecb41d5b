"""What would end a generator's training later, asked before its first step and said all at once."""

from __future__ import annotations

import os
from os import PathLike

from tatok.generator.data import GeneratorData
from tatok.generator.recipe import GeneratorRecipe
from tatok.schemas.errors import ConfigError, TatokError, together
from tatok.training.requirements import check_output
from tatok.watching.event_files import check_tensorboard

__all__ = ["check_generator"]


def check_generator(
    data: str | PathLike[str],
    output: str | PathLike[str],
    recipe: GeneratorRecipe,
    *,
    heldout: str | PathLike[str] | None,
    log_every_steps: int,
    save_every_steps: int,
    tensorboard: bool = False,
) -> GeneratorData:
    """What the dataset asks of a generator; raises a TatokError with all that stands in the way.

    An output that cannot be written, settings that are none, a dataset that is not fit, held-out rows that the
    generator could not be asked about.
    """
    errors: list[TatokError] = []
    try:
        check_output(os.fspath(output))
    except TatokError as error:
        errors.append(error)
    if tensorboard:
        try:
            check_tensorboard(os.fspath(output))
        except TatokError as error:
            errors.append(error)
    least = {
        "width": recipe.width,
        "num_layers": recipe.num_layers,
        "num_heads": recipe.num_heads,
        "batch_tokens": recipe.batch_tokens,
        "log_every_steps": log_every_steps,
        "save_every_steps": save_every_steps,
    }
    errors += [ConfigError(f"{name} is {value}; it must be at least 1") for name, value in least.items() if value < 1]
    if not recipe.learning_rate > 0:
        errors.append(ConfigError(f"learning_rate is {recipe.learning_rate}; it must be above 0"))
    if recipe.num_heads > 0 and recipe.width % recipe.num_heads:
        errors.append(ConfigError(f"width {recipe.width} is no multiple of num_heads {recipe.num_heads}"))
    seen: GeneratorData | None = None
    try:
        seen = GeneratorData.of(data, unconditional=recipe.unconditional)
        if heldout is not None:
            held_out = GeneratorData.of(heldout, unconditional=recipe.unconditional)
            errors += _differences(held_out, seen, os.fspath(heldout))
    except TatokError as error:
        errors.append(error)
    if errors:
        raise together(errors, "this training")
    assert seen is not None
    return seen


def _differences(held_out: GeneratorData, seen: GeneratorData, place: str) -> list[TatokError]:
    found: list[TatokError] = []
    for name, words in (("vocab_size", "codes"), ("num_global", "globals"), ("grid", "a grid")):
        own, other = getattr(held_out, name), getattr(seen, name)
        if own != other:
            found.append(ConfigError(f"the held-out {place} has {words} of {own}, the training data of {other}"))
    if held_out.tokenizer_weights_sha256 != seen.tokenizer_weights_sha256:
        found.append(
            ConfigError(f"the held-out {place} was tokenized by other weights than the training data; tokenize it anew")
        )
    unknown = sorted(set(held_out.classes) - set(seen.classes))
    if unknown:
        found.append(
            ConfigError(f"the generator's training data have no label {', '.join(unknown)}; hold out rows of theirs")
        )
    return found
