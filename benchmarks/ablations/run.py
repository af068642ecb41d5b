"""Trains and measures the variants of the recipe; the same command goes on where it was stopped.

    make bench-ablations

Trainings and results are kept in --work; those on record in --json, of the same settings, are not done again. Several
processes may share the work: each takes every `--of`-th training, from `--part` on, and writes the page of all that
there is by then. Hours of two idle cores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import TypeAdapter

from benchmarks.ablations.report import Trained, tables
from benchmarks.ablations.rivals import rivals
from benchmarks.ablations.variants import RECIPE, VARIANTS, WHOLE, Variant, configured
from benchmarks.document import put_between
from benchmarks.kept_results import once, same_settings
from benchmarks.machine import processor, versions
from tatok import Tokenizer
from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.comparison import PolicyScore, evaluate
from tatok.evaluation.distances import ImageFeatures, load_features
from tatok.evaluation.policies import FULL_RATE, GLOBALS_ONLY, SHIPPED, standard_policies
from tatok.training.config import AutoencoderSetting, TrainingConfig, load_training_config
from tatok.training.photos import centre_crops, expand_sources
from tatok.training.run import train

__all__ = ["MARK", "OTHER_SETS", "on_record", "train_and_measure", "trainings"]

MARK = "ablations"
_PLACES = {"output", "photos", "heldout"}
_TEACHER = "benchmarks.latents.tiny_autoencoder:load"
OTHER_SETS = ("fixed k by distance", "uniform grid", "random")  # on the weights of the whole recipe


def trainings(
    variants: Sequence[Variant], seeds: Sequence[int], names: Sequence[str] = (), *, has_teacher: bool = True
) -> list[tuple[Variant, int]]:
    """All variants, or those named, with the first seed, then all with the next; of a teacher's where there is one."""
    chosen = [
        variant
        for variant in variants
        if (not names or variant.name in names) and (has_teacher or not variant.has_teacher)
    ]
    return [(variant, seed) for seed in seeds for variant in chosen]


def train_and_measure(
    variant: Variant, seed: int, config: TrainingConfig, *, mean_tokens: float, num_photos: int
) -> Trained:
    """Train, or go on, and measure at full rate, by DTF at a mean count, and by the globals alone; a rival as it is."""
    tokenizer = Tokenizer.load(train(config, torch.device("cpu")), device="cpu")
    side = max(stage.image_size for stage in config.stages)
    photos = list(centre_crops(expand_sources(config.heldout), side, num_photos))
    patterns = [FULL_RATE, f"{SHIPPED}*", GLOBALS_ONLY, *(OTHER_SETS if variant == WHOLE else ())]
    if variant.fixed_tokens is not None:
        patterns, mean_tokens = [GLOBALS_ONLY if tokenizer.num_global else FULL_RATE], tokenizer.num_global
    policies = standard_policies(tokenizer.dtf, tokenizer.num_global, mean_tokens, patterns=patterns)
    features = ImageFeatures(load_features("mobilenet"), [photo[None] for photo in photos])
    scores: list[PolicyScore] = evaluate(EncodedPhotos(tokenizer, photos), policies, features=features)
    return Trained(variant=variant.name, seed=seed, scores=tuple(scores))


def on_record(results: Path, settings: Mapping[str, Any]) -> list[Trained]:
    """The trainings in a file of figures, if it is of these settings; keys that are younger have their defaults."""
    if not results.exists():
        return []
    recorded = json.loads(results.read_text(encoding="utf-8"))
    recipe = {**recorded["settings"]["recipe"], "output": "", "photos": ["photos"]}
    try:
        told = TrainingConfig.model_validate(recipe).model_dump(mode="json", exclude=_PLACES)
    except ValueError:
        return []
    if {**recorded["settings"], "recipe": told} != settings:
        return []
    return TypeAdapter(list[Trained]).validate_python(recorded["trained"])


def main(
    images: Annotated[str, typer.Option(help="Photos to train on.")],
    heldout: Annotated[str, typer.Option(help="Photos to measure on.")],
    names: Annotated[list[str] | None, typer.Argument(help="Variants; default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 2,
    part: Annotated[int, typer.Option(help="Which part of the trainings, from 0 on.")] = 0,
    of: Annotated[int, typer.Option(help="How many parts there are.")] = 1,
    teacher: Annotated[
        Path | None, typer.Option(help="Folder of the tiny autoencoder that teaches; without it, no such variants.")
    ] = None,
    mean_tokens: Annotated[float, typer.Option(help="Mean count that DTF is calibrated to.")] = 30.0,
    num_photos: Annotated[int, typer.Option(help="Held-out photos.")] = 1000,
    recipe: Annotated[Path, typer.Option(help="The whole recipe.")] = RECIPE,
    grid_cell: Annotated[
        int | None, typer.Option(help="Pixels of the side of a coarse grid's cell; default: a patch's.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder of trainings and single results.")] = Path("runs/ablations"),
    results: Annotated[Path, typer.Option("--json", help="File of all figures.")] = Path("docs/results/ablations.json"),
    page: Annotated[Path, typer.Option("--document", help="The page.")] = Path("docs/results/ablations.md"),
    mark: Annotated[str, typer.Option(help="Where on the page.")] = MARK,
) -> None:
    """Train and measure what is missing; write the figures, and the tables of the page."""
    whole = load_training_config(recipe)
    variants = (*VARIANTS, *rivals(whole, mean_tokens, grid_cell))
    settings = {
        "recipe": whole.model_dump(mode="json", exclude=_PLACES),
        "images": images,
        "heldout": heldout,
        "mean_tokens": mean_tokens,
        "num_photos": num_photos,
    }
    same_settings(work / "settings.json", settings)
    for each in on_record(results, settings):
        once(work / f"{each.variant}-{each.seed}.json", Trained, partial(replace, each))
    wanted = trainings(variants, range(seeds), names or (), has_teacher=teacher is not None)
    setting = (
        None
        if teacher is None
        else AutoencoderSetting(autoencoder=_TEACHER, autoencoder_options={"path": str(teacher)})
    )
    for variant, seed in wanted[part::of]:
        place = work / f"{variant.name}-{seed}"

        def made(variant: Variant = variant, seed: int = seed, place: Path = place) -> Trained:
            config = configured(
                variant, seed, photos=images, heldout=heldout, output=place, recipe=recipe, teacher=setting
            )
            return train_and_measure(variant, seed, config, mean_tokens=mean_tokens, num_photos=num_photos)

        once(place.with_suffix(".json"), Trained, made)
    adapter = TypeAdapter(Trained)
    files = [work / f"{variant.name}-{seed}.json" for variant, seed in trainings(variants, range(seeds))]
    found = [adapter.validate_json(file.read_bytes()) for file in files if file.exists()]
    about = {"machine": {"processor": processor(), **versions(("torch", "torchmetrics"))}, "settings": settings}
    trained = [adapter.dump_python(each, mode="json") for each in found]
    results.write_text(json.dumps({**about, "trained": trained}, indent=1) + "\n", encoding="utf-8")
    page.write_text(put_between(page.read_text(encoding="utf-8"), mark, tables(found, variants)), encoding="utf-8")
    print(f"{len(found)} of {len(files)} trainings; figures: {results}; tables: {page}")


if __name__ == "__main__":
    typer.run(main)
