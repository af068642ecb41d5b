"""The bundled recipes run as they are, but for a model and steps of tiny size, on the demo's photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tatok.examples import demo_photos, recipe_names, recipe_path
from tatok.jobs.cli import app
from tests.support.tiny_checkpoint import tiny_autoencoder

TINY_MODEL = {"width": 24, "num_heads": 2, "codebook_size": 32, "prior_width": 12}
TINY_STAGE = {"steps": 1, "batch_size": 2, "image_size": 64, "perceptual_size": 32}


def of_recipe(name: str) -> list[dict[str, Any]]:
    """Its first stage and its last."""
    stages: list[dict[str, Any]] = yaml.safe_load(recipe_path(name).read_text())["stages"]
    return [stages[0], stages[-1]]


def command(name: str, folder: Path) -> list[str]:
    """`tatok train NAME`, with all that makes it small."""
    document: dict[str, Any] = yaml.safe_load(recipe_path(name).read_text())
    model = TINY_MODEL | ({"decoder_width": 24} if "decoder_width" in document["model"] else {})
    model |= {each: 1 for each in document["model"] if each.endswith("_layers")}
    model |= {"pixel_width": 8} if "pixel_width" in document["model"] else {}
    small: dict[str, Any] = {"num_heldout": 2, "num_start_crops": 4, "num_loader_workers": 0}
    small |= {f"model.{each}": value for each, value in model.items()}
    small["stages"] = [stage | TINY_STAGE for stage in of_recipe(name)]
    small |= {"compiled": False} if document.get("compiled") else {}  # takes a minute
    if "latents" in document:
        small |= {"latents.autoencoder": tiny_autoencoder(folder), "latents.autoencoder_options": {}}
        small["latents.num_cached_crops"] = 4
    photos, (_, _, heldout) = demo_photos(), sorted(Path(demo_photos()).parent.glob("*.tar"))
    settings = [
        f"{each}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}" for each, value in small.items()
    ]
    return [
        *("train", name, "--images", photos, "--heldout", str(heldout), "--output", str(folder / "run")),
        *("--device", "cpu", *[each for setting in settings for each in ("--set", setting)]),
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_a_bundled_recipe_runs_on_the_demos_photos(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, command(name, tmp_path))
    assert result.exit_code == 0, result.output
    stages = of_recipe(name)
    for number, stage in enumerate(stages):
        assert f"stage {stage['name']} step 1 " in result.output
        assert (tmp_path / "run" / "samples" / f"{number}-{stage['name']}-000001.png").exists()
    assert f"finished: {len(stages)} steps in" in result.output
    assert f"tatok tokenize SOURCE OUTPUT --checkpoint {tmp_path}/run/checkpoint" in result.output
    assert (tmp_path / "run" / "curves.svg").read_text().startswith("<svg")


def test_a_recipe_is_checked_without_a_step(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*command("train-photos-256", tmp_path), "--check"])
    assert result.exit_code == 0, result.output
    assert "nothing stands in the way: 9 photos can be decoded" in result.output
    assert list((tmp_path / "run").iterdir()) == []


def test_without_photos_a_recipe_says_which_it_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--check"]):
        result = CliRunner().invoke(app, ["train", "train-photos-256", "--device", "nonsense", *more])
        assert result.exit_code == 1
        assert result.output.startswith("error: 3 things stand in the way of this training")
        for words in ("device nonsense cannot be used", "photos does not exist", "heldout does not exist"):
            assert words in result.output
