"""TaTok over a frozen autoencoder of 2.7 million weights: trains it, or resumes; measures it beside the bundled one.

    make bench-adapt-latents

The recipe is `examples/train-latents-256.yaml` over the autoencoder of `tiny_autoencoder.py`: about an hour of two idle
cores. Where it is stopped it resumes, and `--only measure` measures what there is; how many steps and how much of a
core's time went into it is in the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.document import put_between
from benchmarks.latents.figures import Figures, measured, measured_autoencoder, table
from benchmarks.latents.pictures import rebuilt_columns, write_picture
from benchmarks.machine import processor, python_and_cores
from tatok import Tokenizer
from tatok.evaluation.distances import ImageFeatures, load_features
from tatok.examples import demo_photos
from tatok.training.config import TrainingConfig, load_training_config
from tatok.training.photos import centre_crops, expand_sources
from tatok.training.run import train
from tatok.training.trainer import STATE

__all__ = ["main", "over_tiny_autoencoder", "section", "steps_of"]

RECIPE = ROOT / "examples" / "train-latents-256.yaml"
LOAD = f"{ROOT / 'benchmarks' / 'latents' / 'tiny_autoencoder.py'}:load"
COUNTS = (56.0, 128.0)
NUM_SHOWN = 6  # of the demo's photos: held-out ones may not be passed on
MARK = "latents"


def over_tiny_autoencoder(
    recipe: Path,
    *,
    folder: Path,
    output: str,
    photos: str,
    heldout: str,
    crops: int | None = None,
) -> TrainingConfig:
    """The recipe over the autoencoder in `folder`."""
    config = load_training_config(recipe)
    assert config.latents is not None
    over: dict[str, Any] = {"autoencoder": LOAD, "autoencoder_options": {"path": str(folder)}}
    if crops is not None:
        over["num_cached_crops"] = crops
    latents = config.latents.model_copy(update=over)
    changes = {"output": output, "photos": (photos,), "heldout": (heldout,), "latents": latents}
    return config.model_copy(update=changes)


def steps_of(state: Path, config: TrainingConfig) -> dict[str, int]:
    """Steps that a run has had of each stage, from its saved state."""
    saved = torch.load(state, weights_only=True, map_location="cpu")
    index, step = saved["stage_index"], saved["step"]
    return {
        stage.name: stage.steps if number < index else step if number == index else 0
        for number, stage in enumerate(config.stages)
    }


def section(about: dict[str, Any], rows: list[Figures]) -> str:
    """The part of docs/results/adapt.md that this writes."""
    whole: dict[str, int] = about["whole_steps"]
    steps = ", ".join(f"{about['steps'].get(name, 0):,} of {count:,} ({name})" for name, count in whole.items())
    is_done = all(about["steps"].get(name, 0) == count for name, count in whole.items())
    state = "The training is done" if is_done else "**The training is not done**"
    text = (
        f"`make bench-adapt-latents`, {about['photos']} held-out photos. {state}: it had {about['cpu_minutes']:.0f} "
        f"minutes of one core; steps: {steps}. Lower is better but for PSNR; thresholds are calibrated on these photos."
    )
    shown = " and ".join(f"{count:.0f}" for count in COUNTS)
    picture = (
        f"*The demo's photos. From the left: original; the bundled checkpoint at a mean of {shown} tokens over them, "
        "and at full rate; the same over latents.*"
    )
    parts = [fill(text, 120), table(rows), "![Photos, rebuilt](../adapt-latents.jpg)", fill(picture, 120)]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or resume, or find it done; then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of its two safetensors files")
    parser.add_argument("--photos", required=True, help="photos to train on")
    parser.add_argument("--heldout", required=True, help="photos to measure on")
    parser.add_argument("--output", default="runs/adapt-latents", help="folder of the training run")
    parser.add_argument("--crops", type=int, help="whose latents are made once; default: the recipe's")
    parser.add_argument("--num-photos", type=int, default=200)
    parser.add_argument("--only", choices=("train", "measure"), help="one of the two")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--document", type=Path, help="page whose section is written anew")
    parser.add_argument("--picture", type=Path, help="JPEG of some of the demo's photos")
    options = parser.parse_args(arguments)
    config = over_tiny_autoencoder(
        RECIPE,
        folder=options.autoencoder,
        output=options.output,
        photos=options.photos,
        heldout=options.heldout,
        crops=options.crops,
    )
    spent = Path(options.output) / "cpu-seconds.json"  # of every start of the training
    if options.only != "measure":
        started = time.process_time()
        try:
            train(config, torch.device("cpu"))
        finally:
            before = json.loads(spent.read_text()) if spent.exists() else []
            spent.parent.mkdir(parents=True, exist_ok=True)
            spent.write_text(json.dumps([*before, time.process_time() - started]))
    if options.only == "train":
        return
    checkpoint = str(Path(options.output) / "checkpoint")
    side = max(stage.image_size for stage in config.stages)
    photos = list(centre_crops(expand_sources([options.heldout]), side, options.num_photos))
    features = ImageFeatures(load_features("mobilenet"), [photo[None] for photo in photos])
    tokenizers = {"bundled": Tokenizer.load(device="cpu"), "over latents": Tokenizer.load(checkpoint, device="cpu")}
    rows = [measured_autoencoder(checkpoint, photos, features)]
    for name, tokenizer in tokenizers.items():
        rows += measured(name, tokenizer, photos, COUNTS, features)
        print(table(rows), flush=True)
    about = {
        "photos": len(photos),
        "whole_steps": {stage.name: stage.steps for stage in config.stages},
        "cpu_minutes": sum(json.loads(spent.read_text())) / 60,
        "steps": steps_of(Path(options.output) / STATE, config),
        "processor": processor(),
        **python_and_cores(),
        "weights_sha256": {name: each.identity["weights_sha256"] for name, each in tokenizers.items()},
    }
    document = {"about": about, "rows": [asdict(row) for row in rows]}
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.document:
        text = put_between(options.document.read_text(encoding="utf-8"), MARK, section(about, rows))
        options.document.write_text(text, encoding="utf-8")
    if options.picture:
        shown = list(islice(centre_crops(expand_sources([demo_photos()]), side), NUM_SHOWN))
        columns = [torch.stack(shown)]
        for tokenizer in tokenizers.values():
            columns += rebuilt_columns(tokenizer, shown, COUNTS)
        write_picture(options.picture, columns)


if __name__ == "__main__":
    main()
