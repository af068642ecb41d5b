"""The ablation bench at a tiny size: trained, measured, gone on with; its tables say what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from benchmarks import ROOT
from benchmarks.ablations.report import tables
from benchmarks.ablations.run import OTHER_SETS, main, trainings
from benchmarks.ablations.variants import RECIPE, VARIANTS, WHOLE, configured
from tatok.evaluation.policies import FULL_RATE, GLOBALS_ONLY
from tatok.schemas.errors import ConfigError
from tatok.training.config import AutoencoderSetting, TrainingConfig

BY_NAME = {variant.name: variant for variant in VARIANTS}


def of(name: str, seed: int = 0) -> TrainingConfig:
    places: dict[str, Any] = {"photos": "a.tar", "heldout": "b.tar", "output": Path("out")}
    return configured(BY_NAME[name], seed, **places, teacher=AutoencoderSetting(autoencoder="a.py:load"))


def test_each_variant_changes_what_it_says_and_nothing_else() -> None:
    whole = of("whole")
    assert len(BY_NAME) == len(VARIANTS)
    for variant in VARIANTS:
        config = of(variant.name)
        assert (config == whole) == (variant == WHOLE), variant.name
        changed = set(variant.model) | set(variant.losses) | set(variant.factors)
        for part, of_whole in ((config.model, whole.model), *zip(config.stages, whole.stages, strict=True)):
            fields = part.document() if part is config.model else part.model_dump()
            before = of_whole.document() if part is config.model else of_whole.model_dump()
            assert {name for name in fields | before if fields.get(name) != before.get(name)} <= changed, variant.name
    assert [stage.perceptual_weight for stage in of("features-x3").stages] == pytest.approx([0.6, 0.6])
    assert [stage.rate_weight > 0 for stage in of("rate-distortion").stages] == [True, False]
    assert of("whole", seed=3).seed == 3


def test_a_teacher_is_asked_only_where_there_is_one() -> None:
    taught = {name for name, variant in BY_NAME.items() if variant.has_teacher}
    assert taught == {"teacher", "teacher-alone"}
    assert taught.isdisjoint(variant.name for variant, _ in trainings([0], has_teacher=False))
    assert of("teacher").teacher is not None
    assert of("whole").teacher is None
    with pytest.raises(ConfigError, match="teacher needs a teacher"):
        configured(BY_NAME["teacher"], 0, photos="a.tar", heldout="b.tar", output=Path("out"))


def test_parts_share_all_trainings() -> None:
    wanted = trainings(range(2))
    assert len(wanted) == 2 * len(VARIANTS)
    assert sorted(map(str, [*wanted[0::2], *wanted[1::2]])) == sorted(map(str, wanted))
    assert {seed for _, seed in wanted[: len(VARIANTS)]} == {0}, "every variant once before any a second time"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The recipe with fewer and smaller of everything."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["num_start_crops"], recipe["num_heldout"] = 64, 2
    recipe["model"] |= {"num_global": 4, "codebook_size": 32, "code_dim": 6, "learned_dim": 2, "width": 32}
    recipe["model"] |= {"num_heads": 2, "decoder_width": 48, "num_refiner_layers": 1, "num_decoder_layers": 1}
    recipe["model"] |= {"pixel_width": 8, "prior_width": 32}
    for stage in recipe["stages"]:
        stage |= {"steps": 2, "batch_size": 4, "warmup_steps": 1, "adversarial_ramp": 1}
    recipe["stages"][0]["adversarial_start"] = 1
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_two_trainings_are_measured_and_not_done_again(
    tiny: Path, photo_shards: Callable[..., str], tmp_path: Path
) -> None:
    photos = photo_shards(num_shards=1, photos_per_shard=6)
    page = tmp_path / "ablations.md"
    page.write_text((ROOT / "docs" / "results" / "ablations.md").read_text())
    options = [
        "--images",
        photos,
        "--heldout",
        photos,
        "--recipe",
        tiny,
        "--work",
        tmp_path / "work",
        "--num-photos",
        6,
    ]
    options += ["--json", tmp_path / "ablations.json", "--document", page, "--seeds", 1]
    app = typer.Typer()
    app.command()(main)

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [*map(str, words), *map(str, options)])
        assert result.exit_code == 0, result.output
        return result.output

    assert f"2 of {len(VARIANTS)} trainings" in run("whole", "squared-error")
    text = page.read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    titles = [row[0].removeprefix("| ") for row in rows]
    assert WHOLE.title in titles
    assert BY_NAME["squared-error"].title in titles
    assert set(OTHER_SETS) | {GLOBALS_ONLY} <= set(titles)
    assert FULL_RATE not in titles
    assert "Not trained: linear-pixels, " in text
    assert "nan" in text, "six photos are too few for a kernel distance"

    for path in (tmp_path / "work").rglob("*"):
        if path.is_file():
            path.unlink()
    run("whole")  # by what is on record
    assert not list((tmp_path / "work").rglob("state.pt")), "it was trained again"
    assert page.read_text() == text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*-0.json")}
    assert len(before) == 2
    run("whole", "squared-error")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    refused = CliRunner().invoke(app, ["whole", *map(str, options), "--num-photos", "5"])
    assert "other settings" in str(refused.exception)


def test_no_training_no_table() -> None:
    assert tables([]) == "Nothing is trained yet."
