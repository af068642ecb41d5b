"""A checkpoint of tiny size for 32x32 images, untrained but for its pixel bases and codebooks, and images to suit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok.model.autoencoder import TaTok, TaTokConfig
from tatok.model.checkpoint import save_checkpoint
from tatok.model.dtf import DTFSettings
from tatok.model.pixels import to_float
from tatok.model.prior import Prior
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.config import TrainingConfig, load_training_config

SIDE, PATCH, NUM_POSITIONS, VOCABULARY = 32, 4, 64, 64
TINY = TaTokConfig(
    patch_size=PATCH,
    num_global=4,
    codebook_size=VOCABULARY,
    code_dim=6,
    width=32,
    num_heads=2,
    num_trunk_layers=1,
    num_base_layers=1,
    num_refiner_layers=1,
    num_decoder_layers=1,
    num_prior_layers=1,
)


def tiny_images(num_images: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """uint8 [B, 3, side, side]: smooth colours under noise that grows from left to right, and from image to image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_images, 3, 4, 4, generator=generator) * 255
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    strength = torch.linspace(0, 60, num_images)[:, None, None, None] * torch.linspace(0, 1, side)
    return (smooth + strength * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).byte()


def tiny_checkpoint(folder: Path, num_global: int = TINY.num_global, dtf: DTFSettings | None = None) -> Path:
    """Write the checkpoint; returns `folder`."""
    torch.manual_seed(0)
    config = replace(TINY, num_global=num_global)
    model, prior = TaTok(config), Prior(config)
    images = to_float(tiny_images(32, seed=9))
    patches = model.patches(images).flatten(0, 1)
    torch.nn.init.normal_(prior.head.weight, std=0.5)  # opinions that differ from place to place
    with torch.no_grad():
        if num_global:
            model.cell_basis.initialise(model.cells(images).flatten(0, 1))
            cells = model.cell_basis.encode(model.cells(images).flatten(0, 1))
            model.global_quantizer.codebook_KC.copy_(cells[torch.arange(VOCABULARY) * len(cells) // VOCABULARY])
        model.residual_basis.initialise(patches - patches.mean(1, keepdim=True))
        vectors = model.residual_basis.encode(patches)
        model.patch_quantizer.codebook_KC.copy_(vectors[torch.arange(VOCABULARY) * len(vectors) // VOCABULARY])
    save_checkpoint(folder, model, prior, dtf or DTFSettings(criterion="distance", threshold_kind="distortion"))
    return folder


def tiny_tokenizer(folder: Path, num_global: int = TINY.num_global) -> Tokenizer:
    return Tokenizer.load(tiny_checkpoint(folder, num_global), device="cpu")


TINY_RECIPE = {"patch_size": 8, "num_global": 4, "codebook_size": 32, "code_dim": 6, "width": 32, "num_heads": 2,
               "num_trunk_layers": 1, "num_base_layers": 1, "num_refiner_layers": 1, "num_decoder_layers": 1,
               "num_prior_layers": 1}  # fmt: skip
"""The model of a training recipe, as a recipe writes it."""


def tiny_training(source: str, folder: Path) -> TrainingConfig:
    """A training file with every kind of stage: trains on the photos of `source` in `folder`, and holds some out."""
    document = {
        "output": str(folder / "run"),
        "photos": [source],
        "heldout": [source],
        "num_heldout": 4,
        "num_loader_workers": 0,
        "num_start_crops": 32,
        "log_every_steps": 3,
        "save_every_steps": 3,
        "model": TINY_RECIPE,
        "stages": [
            {"name": "tokenizer", "train": ["tokenizer"], "perceptual_weight": 0.01, "perceptual_size": 32},
            {"name": "prior", "train": ["prior"]},
            {"name": "decoder", "train": ["decoder"], "kept": {"dtf": 1.0}},
            {"name": "joint", "train": ["tokenizer", "prior"], "kept": {"dtf": 0.5}},
        ],
    }
    for stage in document["stages"]:
        stage |= {"steps": 6, "batch_size": 4, "image_size": 32, "warmup_steps": 2}
    path = folder / "train.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return load_training_config(path)


TINY_AUTOENCODER = '''
import torch
import torch.nn.functional as F


class Linear(torch.nn.Module):
    """Squares of 4x4 pixels <-> 8 numbers, by orthonormal directions of which three are the mean colours."""

    channels, factor = 8, 4

    def __init__(self, seed):
        super().__init__()
        means = torch.eye(3).repeat_interleave(16, dim=0)
        random = torch.randn(48, 5, generator=torch.Generator().manual_seed(seed))
        self.directions = torch.nn.Parameter(torch.linalg.qr(torch.cat([means, random], dim=1))[0])

    def encode(self, images):
        return torch.einsum("pc,bphw->bchw", self.directions, F.pixel_unshuffle(images, 4))

    def decode(self, latents):
        return F.pixel_shuffle(torch.einsum("pc,bchw->bphw", self.directions, latents), 4)


def load(device, *, seed=0):
    return Linear(seed).to(device)
'''
"""A frozen autoencoder of a few lines, as a user's file."""


def tiny_autoencoder(folder: Path) -> str:
    """Write the file; returns how a training file names its function."""
    (folder / "my_autoencoder.py").write_text(TINY_AUTOENCODER)
    return f"{folder / 'my_autoencoder.py'}:load"


def tiny_training_over_latents(source: str, folder: Path, *, num_cached_crops: int = 12) -> TrainingConfig:
    """A training file over that autoencoder; its stages end with decoder and prior under DTF's kept sets."""
    document = {
        "output": str(folder / "run"),
        "photos": [source],
        "heldout": [source],
        "num_heldout": 4,
        "num_loader_workers": 0,
        "num_start_crops": 16,
        "precision": "float32",
        "log_every_steps": 2,
        "save_every_steps": 2,
        "latents": {"autoencoder": tiny_autoencoder(folder), "num_cached_crops": num_cached_crops},
        "model": TINY_RECIPE,
        "dtf": {"criterion": "distance", "threshold_kind": "distortion", "threshold": 1.0, "temporal": False},
        "stages": [
            {"name": "tokenizer", "train": ["tokenizer", "prior"], "drawn_weight": 0.5, "perceptual_size": 32},
            {"name": "decoder", "train": ["decoder", "prior"], "kept": {"dtf": 1.0}},
        ],
    }
    for stage in document["stages"]:
        stage |= {"steps": 4, "batch_size": 4, "image_size": 32, "warmup_steps": 2}
    return TrainingConfig.model_validate(document)
