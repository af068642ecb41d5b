"""Autoencoders of `diffusers` itself, tiny and of random weights, saved by it and opened to lie beneath a model."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tatok.autoencoders.frozen import AutoencoderChoice, FrozenAutoencoder, open_autoencoder
from tatok.model.pixels import to_float
from tatok.schemas.errors import ConfigError
from tests.support.tiny_checkpoint import tiny_images

WEIGHTS = "diffusion_pytorch_model.safetensors"


def made(kind: str) -> Any:
    import diffusers

    torch.manual_seed(0)
    if kind == "AutoencoderTiny":
        return diffusers.AutoencoderTiny(
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=4,
            upsampling_scaling_factor=2,
        ).eval()
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
    ).eval()


def opened(path: Path, **options: Any) -> FrozenAutoencoder:
    choice = AutoencoderChoice(autoencoder="diffusers", options={"path": str(path), **options})
    return open_autoencoder(choice, torch.device("cpu"))


@pytest.mark.parametrize(("kind", "factor"), [("AutoencoderKL", 4), ("AutoencoderTiny", 2)])
def test_latents_and_pictures_are_those_of_the_library(kind: str, factor: int, tmp_path: Path) -> None:
    model = made(kind)
    model.save_pretrained(tmp_path / "vae")
    for autoencoder in (opened(tmp_path / "vae"), opened(tmp_path, subfolder="vae")):
        assert (autoencoder.space.channels, autoencoder.space.factor) == (4, factor)
        images = to_float(tiny_images(2))
        with torch.inference_mode():
            encoded = model.encode(images)
            wanted = encoded.latents if kind == "AutoencoderTiny" else encoded.latent_dist.mean
            latents = autoencoder.encode(images)
            assert torch.allclose(latents, wanted, atol=1e-4)
            assert torch.allclose(autoencoder.decode(latents), model.decode(wanted).sample, atol=1e-3)


def test_pickles_and_other_models_are_refused(tmp_path: Path) -> None:
    made("AutoencoderKL").save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was run",))

    (tmp_path / WEIGHTS).rename(tmp_path / "kept")
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ConfigError, match="a pickle, which can run any code"):
        opened(tmp_path)
    assert not (tmp_path / "was run").exists()
    (tmp_path / "kept").rename(tmp_path / WEIGHTS)

    (tmp_path / "config.json").write_text(json.dumps({**document, "_class_name": "VQModel"}))
    with pytest.raises(ConfigError, match=r"config\.json is of a VQModel; this loads AutoencoderKL"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**document, "latent_channels": 8}))
    with pytest.raises(ConfigError, match="do not fit"):
        opened(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "model_index.json")
    with pytest.raises(ConfigError, match="subfolder: vae"):
        opened(tmp_path)
