"""VQModel of `diffusers` itself, tiny and of random weights, saved by it and loaded by the adapter."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tatok.adapters.diffusers import load
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.fixed_rate import FixedRate
from tests.support.tiny_checkpoint import tiny_images

WEIGHTS = "diffusion_pytorch_model.safetensors"
SIZES = {"block_out_channels": (32, 32, 32), "latent_channels": 4, "num_vq_embeddings": 64, "vq_embed_dim": 4}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
MODELS = {"vq-diffusion": {}, "movq": {"norm_type": "spatial"}, "amused": {"lookup_from_codebook": True}}

Saved = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a VQModel, and the model."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            from diffusers import VQModel

            torch.manual_seed(0)
            up = {"up_block_types": ("AttnUpDecoderBlock2D",) * 3} if name == "movq" else {}
            model = VQModel(**{**SIZES, **BLOCKS, **MODELS[name], **up}).eval()
            with torch.inference_mode():
                vectors = model.encode(tiny_images(16, seed=3).float() / 127.5 - 1).latents.movedim(1, -1).flatten(0, 2)
                model.quantize.embedding.weight.copy_(vectors[torch.linspace(0, len(vectors) - 1, 64).long()])
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = folder, model
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_codes_and_pixels_are_those_of_the_library(name: str, saved: Saved) -> None:
    folder, model = saved(name)
    tokenizer = FixedRate(load("cpu", path=str(folder)))
    assert (tokenizer.vocab_size, tokenizer.patch_size) == (64, 4)
    pixels = tiny_images(2)[..., :16]
    batch = tokenizer.encode(pixels)
    low = 0.0 if name == "amused" else -1.0
    with torch.inference_mode():
        latents = model.encode(pixels.float() / 255 * (1 - low) + low).latents
        codes = model.quantize(latents)[2][2].view(2, 8, 4)
        if name == "amused":  # its pipeline decodes codes
            images = model.decode(codes, force_not_quantize=True, shape=(2, 8, 4, 4)).sample
        else:
            images = model.decode(latents).sample
    assert [each.codes.tolist() for each in batch] == codes.flatten(1).tolist()
    assert len(codes.unique()) > 8
    wanted = ((images - low) / (1 - low) * 255).clamp(0, 255)
    assert (tokenizer.decode(batch).float() - wanted).abs().max() <= 0.51


def test_embedded_codes_are_drawn_as_codes_are(saved: Saved) -> None:
    inner = load("cpu", path=str(saved("movq")[0]))
    codes = torch.randint(64, (2, 3, 2), generator=torch.Generator().manual_seed(1))
    drawn = inner.decode_embedded(inner.embed(codes))
    assert torch.equal(drawn, inner.decode(codes, 12, 8))
    assert drawn.shape == (2, 3, 12, 8)


def test_the_range_of_pixels_can_be_set_and_is_in_the_identity(saved: Saved) -> None:
    folder = str(saved("vq-diffusion")[0])
    usual, other = load("cpu", path=folder), load("cpu", path=folder, pixel_range="0..1")
    pixels = tiny_images(4)
    with torch.inference_mode():
        assert not torch.equal(usual.encode(pixels), other.encode(pixels))
    assert usual.identity == {**other.identity, "pixel_range": "-1..1"}
    with pytest.raises(ConfigError, match=r"pixel_range is '0\.\.255'; it is one of"):
        load("cpu", path=folder, pixel_range="0..255")


def test_codes_do_not_depend_on_the_batch(saved: Saved) -> None:
    inner = load("cpu", path=str(saved("vq-diffusion")[0]))
    pixels = tiny_images(5)
    with torch.inference_mode():
        assert torch.equal(inner.encode(pixels)[3:4], inner.encode(pixels[3:4]))


def test_names_of_older_versions_are_known(saved: Saved, tmp_path: Path) -> None:
    folder = saved("vq-diffusion")[0]
    shutil.copy(folder / "config.json", tmp_path)
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for new, former in old.items():
            name = name.replace(new, former)
        tensors[name] = tensor
    assert any("query" in name for name in tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    assert load("cpu", path=str(tmp_path)).identity == load("cpu", path=str(folder)).identity


def test_a_pickle_is_refused_unread(saved: Saved, tmp_path: Path) -> None:
    shutil.copy(saved("movq")[0] / "config.json", tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(
        ConfigError, match=r"in diffusion_pytorch_model\.bin, a pickle, which can run any code"
    ) as refused:
        load("cpu", path=str(tmp_path))
    assert "safetensors" in str(refused.value.remedy)


def test_what_is_no_vqmodel_is_refused(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is a whole pipeline; set tokenizer_options\.subfolder"):
        load("cpu", path=str(tmp_path))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ConfigError, match=r"is of a AutoencoderKL; this adapter takes a VQModel"):
        load("cpu", path=str(tmp_path), subfolder="vae")
    with pytest.raises(ConfigError, match=r"movq is not there, or empty; look at tokenizer_options\.subfolder"):
        load("cpu", path=str(tmp_path), subfolder="movq")


def test_weights_that_do_not_fit_are_named(saved: Saved, tmp_path: Path) -> None:
    folder = saved("vq-diffusion")[0]
    shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(folder / WEIGHTS)
    del tensors["quant_conv.bias"]
    save_file(tensors, tmp_path / "model" / WEIGHTS)
    with pytest.raises(ConfigError, match=r"do not fit config\.json: missing: quant_conv\.bias"):
        load("cpu", path=str(tmp_path / "model"))
    document = json.loads((folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**document, "num_vq_embeddings": 63}))
    shutil.copy(folder / WEIGHTS, tmp_path / "model")
    with pytest.raises(ConfigError, match=r"size mismatch for quantize\.embedding\.weight"):
        load("cpu", path=str(tmp_path / "model"))
    (tmp_path / "model" / WEIGHTS).write_bytes(b"no header")
    with pytest.raises(ConfigError, match="damaged"):
        load("cpu", path=str(tmp_path / "model"))


def test_a_library_that_is_missing_says_how_to_install_it(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(saved("movq")[0])
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match="needs diffusers, which cannot be loaded") as refused:
        load("cpu", path=folder)
    assert refused.value.remedy == "pip install 'tatok[diffusers]'"
