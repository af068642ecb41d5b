"""What the choice of distances between latents is worth: models before training, by bases and codebooks alone.

    python -m benchmarks.latents.distances --autoencoder FOLDER --photos PHOTOS --heldout HELDOUT --json FILE

A model starts as a linear autoencoder of latents (PCA) with k-means codebooks. Both take "near" from the canvas, so
they show what its distances are good for before any training hides it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.latents.run import RECIPE, over_tiny_autoencoder
from benchmarks.machine import processor, python_and_cores
from tatok.evaluation.features import MobileNetFeatures, perceptual_distance
from tatok.model.autoencoder import TaTok
from tatok.model.pixels import to_float
from tatok.training.canvases import latent_memory
from tatok.training.config import TrainingConfig
from tatok.training.photos import centre_crops, expand_sources
from tatok.training.trainer import Trainer
from tatok.watching.terminal import display

__all__ = ["KINDS", "rebuilding", "started"]

KINDS = ("channels", "picture")


def started(config: TrainingConfig) -> Trainer:
    """A trainer whose bases and codebooks have been started from kept latents."""
    trainer = Trainer(config, torch.device("cpu"))
    assert trainer.autoencoder is not None
    photos = expand_sources(config.photos)
    with display() as shown:
        memory = latent_memory(
            config,
            trainer.autoencoder,
            photos,
            trainer.folder,
            found=None,
            encode=trainer.latents,
            counting=shown.counting,
            check=lambda: None,
        )
    crops: Iterator[Tensor] = memory.batches(16, config.stages[0].image_size, config.seed)
    trainer.initialise(crops)
    return trainer


@torch.inference_mode()
def rebuilding(model: TaTok, photos: Sequence[Tensor]) -> dict[str, float]:
    """PSNR in dB and perceptual distance (times 1000) at full rate, the means over photos."""
    network = MobileNetFeatures()
    psnr, perceptual = [], []
    for photo in photos:
        images = to_float(photo[None])
        encoded = model.encode(model.canvas.working(images))
        everything = torch.ones_like(encoded.patches_BNC.codes, dtype=torch.bool)
        vectors = encoded.globals_BMC.vectors, encoded.patches_BNC.vectors
        decoded = model.decode(*vectors, everything, encoded.base_BNP, model.grid_of_pixels(images))
        rebuilt = model.canvas.images(decoded).clamp(-1, 1)
        psnr.append(float(-10 * ((rebuilt - images).square().mean() / 4).log10()))
        perceptual.append(1000 * float(perceptual_distance(network(rebuilt), network(images))))
    return {"psnr_db": fmean(psnr), "perceptual": fmean(perceptual)}


def main() -> None:
    """Start a model by each kind, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of its two safetensors files")
    parser.add_argument("--photos", required=True, help="photos to start from")
    parser.add_argument("--heldout", required=True, help="photos to measure on")
    parser.add_argument(
        "--output", default="runs/adapt-latents", help="folder whose kept latents are used, and added to"
    )
    parser.add_argument("--crops", type=int, default=512)
    parser.add_argument("--num-photos", type=int, default=24)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    config = over_tiny_autoencoder(
        RECIPE,
        folder=options.autoencoder,
        output=options.output,
        photos=options.photos,
        heldout=options.heldout,
        crops=options.crops,
    ).model_copy(update={"num_start_crops": 2 * options.crops})
    photos = list(islice(centre_crops(expand_sources([options.heldout]), 256), options.num_photos))
    assert config.latents is not None
    figures = {}
    for kind in KINDS:
        of_kind = config.model_copy(update={"latents": config.latents.model_copy(update={"distances": kind})})
        figures[kind] = rebuilding(started(of_kind).model.eval(), photos)
        print(kind, figures[kind], flush=True)
    about = {"photos": len(photos), "crops": options.crops, "processor": processor(), **python_and_cores()}
    options.json.write_text(json.dumps({"about": about, "figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
