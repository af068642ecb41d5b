"""The fixed-rate tokenizers that TaTok has to beat, out of a recipe: the same encoder, decoder, losses and steps.

    python -m benchmarks.ablations.rivals RECIPE FOLDER --tokens 56

writes their training files, each for a run beside the recipe's.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated

import typer
import yaml

from benchmarks.ablations.variants import Variant
from tatok.model.patches import anchor_grid
from tatok.schemas.errors import ConfigError
from tatok.training.config import KeptMixture, TrainingConfig, load_training_config

__all__ = ["bits_as_tokens", "rivals"]

_SQUARE_ENOUGH = 0.75  # rows over columns of a coarse grid: a long one would be a weak rival
_NONE = KeptMixture(none=1, full=0, random=0, energy=0)
_ALL = KeptMixture(none=0, full=1, random=0, energy=0)


def bits_as_tokens(tokens: float, num_global: int, num_patches: int, codebook_size: int) -> float:
    """How many codes have the bits of so many tokens, with log2 C(N, k) for the positions of the k patches kept.

    `tokens` is a mean, and need not be whole. Raises ConfigError where no image can have so many.
    """
    num_kept = tokens - num_global
    if not 0 <= num_kept <= num_patches:
        raise ConfigError(
            f"{tokens:g} tokens cannot be the mean of {num_global} globals and up to {num_patches} patches"
        )
    logs = [math.lgamma(count + 1) for count in (num_patches, num_kept, num_patches - num_kept)]
    return tokens + (logs[0] - logs[1] - logs[2]) / math.log(codebook_size)


def rivals(config: TrainingConfig, mean_tokens: float, cell_size: int | None = None) -> tuple[Variant, ...]:
    """Two coarse grids, of as many tokens and of at least as many bits as TaTok's mean, and patches without globals.

    A coarse grid is TaTok's own thumbnail with more cells, of `cell_size` pixels (None: a patch's), and nothing else:
    the decoder fills all positions from it. Grids have at least three rows for four columns; one may be both.
    """
    model = config.model
    num_patches = (max(stage.image_size for stage in config.stages) // model.patch_size) ** 2
    equal_bits = bits_as_tokens(mean_tokens, model.num_global, num_patches, model.codebook_size)

    def grid(least: float) -> Variant:
        count = next(n for n in itertools.count(math.ceil(least)) if _is_square_enough(n))
        side = cell_size or model.patch_size
        return Variant(
            name=f"grid-{count}-cell-{side}",
            title=f"coarse grid, cells of {side} pixels",
            model={"num_global": count, "cell_size": side},
            kept=_NONE,
            fixed_tokens=count,
        )

    of_tokens, of_bits = grid(mean_tokens), grid(equal_bits)
    return (
        of_tokens,
        *([] if of_bits == of_tokens else [of_bits]),
        Variant(
            name="patches",
            title="every patch, no globals",
            model={"num_global": 0},
            kept=_ALL,
            fixed_tokens=num_patches,
        ),
    )


def _is_square_enough(num_cells: int) -> bool:
    rows, columns = anchor_grid(num_cells)
    return rows >= _SQUARE_ENOUGH * columns


def main(
    recipe: Annotated[Path, typer.Argument(help="Training file of TaTok.")],
    folder: Annotated[Path, typer.Argument(help="Where the rivals' files go.")],
    tokens: Annotated[float, typer.Option(help="TaTok's mean count.")] = 56.0,
    grid_cell: Annotated[
        int | None, typer.Option(help="Pixels of the side of a coarse grid's cell; default: a patch's.")
    ] = None,
) -> None:
    """Write the training files of the rivals; a run of each goes to the recipe's output, with the rival's name."""
    whole = load_training_config(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    for rival in rivals(whole, tokens, grid_cell):
        config = rival.of(whole).model_copy(update={"output": f"{whole.output}-{rival.name}"})
        path = folder / f"{rival.name}.yaml"
        document = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        path.write_text(f"# {recipe.name} as {rival.title}, {rival.fixed_tokens} tokens.\n{document}", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    typer.run(main)
