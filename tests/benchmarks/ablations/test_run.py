"""The ablation bench at a tiny size: trained, measured, gone on with; its tables say what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from benchmarks import ROOT
from benchmarks.ablations.report import tables
from benchmarks.ablations.rivals import bits_as_tokens, rivals
from benchmarks.ablations.rivals import main as write_rivals
from benchmarks.ablations.run import MARK, OTHER_SETS, main, trainings
from benchmarks.ablations.variants import RECIPE, VARIANTS, WHOLE, configured
from tatok.evaluation.policies import FULL_RATE, GLOBALS_ONLY
from tatok.schemas.errors import ConfigError
from tatok.training.config import AutoencoderSetting, TrainingConfig, load_training_config

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
    assert taught.isdisjoint(variant.name for variant, _ in trainings(VARIANTS, [0], has_teacher=False))
    assert of("teacher").teacher is not None
    assert of("whole").teacher is None
    with pytest.raises(ConfigError, match="teacher needs a teacher"):
        configured(BY_NAME["teacher"], 0, photos="a.tar", heldout="b.tar", output=Path("out"))


@pytest.mark.parametrize(
    ("recipe", "tokens", "counts"),
    [
        (RECIPE, 30.0, [30, 36, 64]),
        (RECIPE.with_name("recipe-64.yaml"), 56.0, [56, 72, 256]),
        (ROOT / "examples" / "train-photos-256-gpu.yaml", 56.0, [56, 72, 256]),
    ],
    ids=["32", "64", "256"],
)
def test_rivals_are_the_recipe_with_one_fixed_rate(
    recipe: Path, tokens: float, counts: list[int], tmp_path: Path
) -> None:
    whole = load_training_config(recipe)
    *grids, full = rivals(whole, tokens)
    assert [each.fixed_tokens for each in (*grids, full)] == counts
    num_patches, of_codes = counts[-1], whole.model.codebook_size
    bits = bits_as_tokens(tokens, whole.model.num_global, num_patches, of_codes)
    positions = math.log(math.comb(num_patches, int(tokens) - whole.model.num_global), of_codes)
    assert bits == pytest.approx(tokens + positions)
    assert tokens <= counts[0] < bits <= counts[1], "one grid of TaTok's tokens, one of at least its bits"
    app = typer.Typer()
    app.command()(write_rivals)
    result = CliRunner().invoke(app, [str(recipe), str(tmp_path), "--tokens", str(tokens)])
    assert result.exit_code == 0, result.output
    for variant in (*grids, full):
        config = load_training_config(tmp_path / f"{variant.name}.yaml")
        assert config == variant.of(whole).model_copy(update={"output": f"{whole.output}-{variant.name}"})
        assert config.model.num_global == (0 if variant is full else variant.fixed_tokens)
        assert [stage.kept.shows_patches for stage in config.stages] == [variant is full] * len(config.stages)
        assert not any("prior" in stage.train for stage in config.stages)
        for stage, of_whole in zip(config.stages, whole.stages, strict=True):
            assert stage.model_copy(update={"kept": of_whole.kept, "train": of_whole.train}) == of_whole


def test_rivals_of_any_mean_that_can_be() -> None:
    whole = load_training_config(RECIPE)  # 16 globals and 64 patches
    assert [[each.fixed_tokens for each in rivals(whole, tokens)] for tokens in (16, 72.5, 80)] == [
        [16, 64],
        [80, 64],
        [80, 64],
    ]
    for tokens in (15, 81):
        with pytest.raises(
            ConfigError, match=rf"{tokens} tokens cannot be the mean of 16 globals and up to 64 patches"
        ):
            rivals(whole, tokens)


def test_parts_share_all_trainings() -> None:
    wanted = trainings(VARIANTS, range(2))
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

    def written() -> str:
        return page.read_text().partition(f"<!-- {MARK} -->")[2].partition(f"<!-- end of {MARK} -->")[0]

    num_rivals = 3
    assert f"2 of {len(VARIANTS) + num_rivals} trainings" in run("whole", "squared-error")
    text = written()
    assert "Fixed rates" not in text
    run("patches", "grid-30-cell-4")
    text = written()
    fixed = text[text.index("Fixed rates, trained alike:") : text.index("Kept sets on")]
    assert "| TaTok, DTF as shipped | 1 | 30.0 |" in fixed
    assert "| coarse grid, cells of 4 pixels | 1 | 30.0 | 150 |" in fixed
    assert "| every patch, no globals | 1 | 64.0 | 320 |" in fixed
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
    assert written() == text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*-0.json")}
    assert len(before) == 4
    run("whole", "squared-error")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    refused = CliRunner().invoke(app, ["whole", *map(str, options), "--num-photos", "5"])
    assert "other settings" in str(refused.exception)


def test_no_training_no_table() -> None:
    assert tables([], VARIANTS) == "Nothing is trained yet."
