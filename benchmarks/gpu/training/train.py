"""Train by a recipe on a machine that may be taken away: other paths than the recipe's, and a second try uncompiled.

    python -m benchmarks.gpu.training.train RECIPE.yaml --output FOLDER --photos TAR_OR_GLOB ... --heldout TAR
        [--device cuda] [--start-from CHECKPOINT --first-stage N] [--scale 1.0]

`--scale` multiplies every stage's minutes. A run that was ended resumes from its folder's state; where only its
checkpoint is left, `--start-from` takes the weights and `--first-stage` skips the stages that made them.
"""

from __future__ import annotations

import argparse
import sys
import traceback

import torch

from tatok.schemas.settings_file import read_settings
from tatok.training.config import TrainingConfig
from tatok.training.run import train


def config_from(options: argparse.Namespace) -> TrainingConfig:
    """The recipe with this machine's paths and times."""
    config = read_settings(options.recipe).validated(TrainingConfig)
    stages = [
        stage.model_copy(
            update={"max_minutes": None if stage.max_minutes is None else stage.max_minutes * options.scale}
        )
        for stage in config.stages[options.first_stage :]
    ]
    heldout = tuple(options.heldout)
    paths = {"output": options.output, "photos": tuple(options.photos), "heldout": heldout}
    return config.model_copy(update={**paths, "stages": tuple(stages)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--output", required=True)
    parser.add_argument("--photos", nargs="+", required=True)
    parser.add_argument("--heldout", nargs="*", default=[])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--start-from")
    parser.add_argument("--first-stage", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    config = config_from(options)
    for is_compiled in (config.compiled, False):
        try:
            train(
                config.model_copy(update={"compiled": is_compiled}),
                torch.device(options.device),
                start_from=options.start_from,
                say=lambda line: print(line, flush=True),
            )
            return
        except Exception:
            traceback.print_exc()
            print("trying once more without compiled layers", flush=True)
            torch.cuda.empty_cache()
    sys.exit(1)


if __name__ == "__main__":
    main()
