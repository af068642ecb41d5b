"""`tatok train RECIPE`: a path, or the name of a recipe that comes with tatok."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tatok.examples import demo_photos, recipe_names, recipe_path
from tatok.jobs.cli import app
from tatok.schemas.errors import ConfigError
from tatok.training.config import load_training_config
from tests.support.places import ROOT


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
