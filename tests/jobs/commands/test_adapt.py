"""`tatok adapt`, and what can be done with its checkpoint from another folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tests.support.tiny_checkpoint import TINY_RECIPE, tiny_autoencoder
from tests.support.tokenizers import mosaic

STAGE = {"steps": 2, "batch_size": 4, "image_size": 32, "warmup_steps": 1}
RECIPE = {
    "num_loader_workers": 0,
    "num_start_crops": 8,
    "log_every_steps": 2,
    "save_every_steps": 2,
    "model": {"num_global": 4, "width": 32, "num_heads": 2, "num_trunk_layers": 1, "num_base_layers": 1,
              "num_prior_layers": 1},
    "stages": [STAGE | {"name": "globals", "train": ["tokenizer"]}, STAGE | {"name": "prior", "train": ["prior"]}],
}  # fmt: skip


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result.output


def test_a_file_of_ones_own_is_adapted_calibrated_and_evaluated_and_refused_once_it_changes(
    tmp_path: Path, photo_shards: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, work = photo_shards(num_shards=1, photos_per_shard=8), tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "recipe.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML
    own = Path(mosaic.__file__).read_text()
    (work / "mine.py").write_text(own)
    adapt = ("adapt", "recipe.yaml", "--tokenizer", "mine.py:load", "--images", photos, "--output", "run")
    assert "checkpoint: run/checkpoint" in run(*adapt)
    assert "checkpoint: run/checkpoint" in run(*adapt)  # done: nothing is left to do
    weights = (work / "run" / "checkpoint" / "model.safetensors").read_bytes()

    monkeypatch.chdir(tmp_path)
    checkpoint = ("--checkpoint", str(work / "run" / "checkpoint"), "--image-size", "32", "--device", "cpu")
    assert "written to" in run("calibrate", photos, "--tokens", "30", *checkpoint, "--write")
    config = json.loads((work / "run" / "checkpoint" / "config.json").read_text())
    assert config["model"]["over"]["tokenizer"] == f"{work}/mine.py:load"
    assert (work / "run" / "checkpoint" / "model.safetensors").read_bytes() == weights
    names = ("DTF as shipped*", "uniform grid", "random", "fixed k by distance")
    policies = [argument for name in names for argument in ("--policy", name)]
    told = json.loads(run("eval", photos, "--tokens", "30", *checkpoint, *policies, "--no-distances", "--json"))
    shipped, *others = told["scores"]
    assert shipped["mean_tokens"] == pytest.approx(30, abs=1)
    assert len(others) == 3

    (work / "mine.py").write_text(own + "\n# changed\n")
    said = run("eval", photos, "--tokens", "30", *checkpoint, *policies, "--no-distances", exit_code=1)
    assert re.search(r"mine\.py:load is another tokenizer.*code 'mine\.py:load \(\w+\)', was 'mine\.py:load", said)


def test_over_an_autoencoder_of_ones_own(tmp_path: Path, photo_shards: Callable[..., str]) -> None:
    photos = photo_shards(num_shards=1, photos_per_shard=8)
    stage = STAGE | {"name": "both", "train": ["tokenizer", "prior"]}
    recipe = RECIPE | {
        "latents": {"autoencoder": "diffusers", "autoencoder_options": {"path": "of the recipe"}},
        "dtf": {"criterion": "distance", "threshold_kind": "distortion", "temporal": False},
        "model": TINY_RECIPE,
        "stages": [stage],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    own = ("--autoencoder", tiny_autoencoder(tmp_path), "--autoencoder-option", "seed=3")
    to = ("--images", photos, "--output", str(tmp_path / "run"), "--device", "cpu")
    run("adapt", str(tmp_path / "recipe.yaml"), *own, "--set", "latents.num_cached_crops=8", *to)
    config = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    assert "cannot read" in run("adapt", "--autoencoder", "gone.py:load", *to, exit_code=1)  # by the bundled recipe
    assert config["over"] == {"autoencoder": own[1], "options": {"seed": 3}}
    assert list((tmp_path / "run" / "latents").iterdir())
    checkpoint = ("--checkpoint", str(tmp_path / "run" / "checkpoint"), "--image-size", "32", "--device", "cpu")
    told = json.loads(run("eval", photos, "--tokens", "10", *checkpoint, "--no-distances", "--json"))
    assert [score["mean_tokens"] for score in told["scores"]] == pytest.approx([20, 10, 4], abs=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "tokenizer: Field required"),
        (("--autoencoder", "m:load", "--tokenizer", "m:load"), "neither --tokenizer nor"),
        (("--tokenizer", "gone.py:load", "--images", "x.tar", "--output", "run"), "gone.py"),
        (("--tokenizer", "m:load", "--images", "x", "--output", "r", "--set", "model.width=7"), "width 7"),
        (("--tokenizer", "m:load", "--images", "x", "--output", "r", "--tokenizer-option", "path"), "NAME=VALUE"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], said: str) -> None:
    assert said in run("adapt", *arguments, exit_code=1)
