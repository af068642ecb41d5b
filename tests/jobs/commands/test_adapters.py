"""`tatok tokenize` by a model of another library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tatok.jobs.cli import app
from tests.support.runs import rows


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("local_ray")
def test_a_model_of_diffusers_from_photos_to_pictures(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    from diffusers import VQModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    model = VQModel(block_out_channels=(32, 32, 32), latent_channels=4, num_vq_embeddings=64, **blocks)
    model.save_pretrained(tmp_path / "vq")
    output = tmp_path / "out"
    done = invoke(
        "tokenize", photo_shards(1), output, "--image-size", 64, "--num-decoders", 1,
        "--tokenizer", "diffusers", "--tokenizer-option", f"path={tmp_path / 'vq'}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = rows(output)
    assert {(row["num_tokens"], row["grid_height"], row["grid_width"]) for row in found} == {(256, 16, 16)}
    assert {row["entropy_bits"] for row in found} == {None}
    key = str(found[0]["key"])
    drawn = invoke("decode", output, key, "-o", tmp_path / "pictures")
    assert drawn.exit_code == 0, drawn.output
    (picture,) = (tmp_path / "pictures").iterdir()
    assert np.asarray(Image.open(picture)).shape == (64, 64, 3)
    (tmp_path / "vq" / "diffusion_pytorch_model.safetensors").unlink()
    refused = invoke("decode", output, key, "-o", tmp_path / "again")
    assert refused.exit_code == 1
    assert "has no diffusion_pytorch_model.safetensors" in " ".join(refused.output.split())
