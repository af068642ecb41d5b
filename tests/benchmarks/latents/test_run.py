"""The bench over a frozen autoencoder, with made-up weights: it trains, measures, draws, and writes its section."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.latents import run
from benchmarks.latents.tiny_autoencoder import FILES, TinyAutoencoder, load
from tatok.model.pixels import to_float, to_pixels
from tests.support.places import ROOT
from tests.support.real_data import demo_photos
from tests.support.tiny_checkpoint import TINY_RECIPE, tiny_checkpoint

WEIGHTS = ROOT.parent / "shared" / "corpus" / "taef2"


def made_up_weights(folder: Path) -> Path:
    torch.manual_seed(0)
    model = TinyAutoencoder()
    for part, name in zip((model.encoder, model.decoder), FILES, strict=True):
        save_file({key: value.half() for key, value in part.state_dict().items()}, folder / name)
    return folder


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"needs {WEIGHTS}")
def test_the_layers_are_those_of_the_weights() -> None:
    pixels = demo_photos(128)[:4]
    autoencoder = load("cpu", path=str(WEIGHTS))
    with torch.inference_mode():
        latents = autoencoder.encode(to_float(pixels))
        rebuilt = to_pixels(autoencoder.decode(latents))
    assert latents.shape == (4, 32, 16, 16)
    assert 0.4 < float(latents.std()) < 1.5
    errors = ((rebuilt.double() - pixels.double()) / 255).square().mean((1, 2, 3))
    assert float((-10 * errors.log10()).mean()) > 25


def test_the_bench_from_photos_to_its_section(
    photo_shards: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photo_shards(num_shards=1, photos_per_shard=6)
    stage = {"train": ["tokenizer", "prior"], "steps": 2, "batch_size": 2, "image_size": 32}
    recipe = {
        "output": "runs/none",
        "photos": ["none"],
        "num_loader_workers": 0,
        "num_start_crops": 8,
        "latents": {"autoencoder": "diffusers", "num_cached_crops": 4},
        "dtf": {"criterion": "distance", "threshold_kind": "distortion", "temporal": False},
        "model": TINY_RECIPE,
        "stages": [{"name": "one", **stage}, {"name": "two", **stage, "train": ["decoder", "prior"]}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    bundled = tiny_checkpoint(tmp_path / "bundled")
    monkeypatch.setattr(run, "RECIPE", tmp_path / "recipe.yaml")
    monkeypatch.setattr(run, "COUNTS", (8.0, 12.0))
    monkeypatch.setattr("tatok.model.checkpoint.default_checkpoint", lambda: bundled)
    page = tmp_path / "adapt.md"
    page.write_text("# Adapt\n\n<!-- latents -->\n<!-- end of latents -->\n\nthe rest\n")
    arguments = [
        *("--autoencoder", str(made_up_weights(tmp_path)), "--photos", source, "--heldout", source),
        *("--output", str(tmp_path / "run"), "--num-photos", "3", "--crops", "3"),
        *("--json", str(tmp_path / "figures.json"), "--document", str(page), "--picture", str(tmp_path / "shown.jpg")),
    ]
    run.main(arguments)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["about"]["steps"] == {"one": 2, "two": 2}
    assert figures["about"]["cpu_minutes"] > 0
    rows = [(row["model"], row["kept"]) for row in figures["rows"]]
    sets = ["all", "DTF", "DTF"]
    assert rows == [("autoencoder", "its latents")] + [(m, kept) for m in ("bundled", "over latents") for kept in sets]
    by_count = [row["tokens"] for row in figures["rows"] if row["model"] == "over latents"]
    assert by_count[0] == 4 + 16
    assert by_count[1] < by_count[2]
    text = page.read_text()
    assert "| over latents | all | 20 |" in text
    assert text.startswith("# Adapt\n")
    assert text.endswith("the rest\n")
    with Image.open(tmp_path / "shown.jpg") as picture:
        assert picture.size[0] > picture.size[1]  # an original, and two tokenizers at three rates, beside each other
    run.main([*arguments, "--only", "train"])  # which finds it done
    assert len(json.loads((tmp_path / "run" / "cpu-seconds.json").read_text())) == 2
