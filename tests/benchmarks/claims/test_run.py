"""The claims bench at its tiny setting, all of it: models, generators, tables, figure; structure, not luck."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks.claims.images import as_tars
from benchmarks.claims.models import SETTINGS, training_config, variants
from benchmarks.claims.report.document import MARK, headline_scores, tables
from benchmarks.claims.results import Results, read_results, read_speed
from benchmarks.claims.steps import Step, read_result, run_steps, same_settings
from benchmarks.document import put_between
from tatok.schemas.errors import ConfigError
from tests.support.photos import encoded
from tests.support.places import ROOT

pytestmark = pytest.mark.timeout(900)  # the fixture runs the bench: a minute on two free cores


def folder_of_images(folder: Path, num: int, first: int = 0) -> str:
    """PNGs of 32x32 in a subfolder a class: smooth ones, and ones with a patch of noise, so that counts can differ."""
    rng = np.random.default_rng(first)
    for number in range(first, first + num):
        smooth = Image.open(io.BytesIO(encoded(number, 32, 32, "PNG")))
        pixels = np.array(smooth)
        if number % 2:
            pixels[8:20, 4:16] = rng.integers(0, 256, (12, 12, 3))
        path = folder / f"class-{number % 3}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return str(folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing by a second thread, and lose much where other programs want the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, local_ray: None, one_thread: None) -> tuple[Results, Path]:
    """What `make claims` writes, at the tiny setting."""
    from benchmarks.claims.run import claims

    folder = tmp_path_factory.mktemp("claims")
    claims(
        setting_name="tiny",
        images=folder_of_images(folder / "train", 72),
        # Of models this small many patches are worth the same; of these images every wanted count can be met.
        heldout=folder_of_images(folder / "heldout", 64, first=2000),
        work=folder / "work",
        results=folder / "claims.json",
        processes=0,
        device="cpu",
    )
    return read_results(folder / "claims.json"), folder


def test_every_model_is_measured_at_the_count_it_should_have(results: tuple[Results, Path]) -> None:
    measured, _ = results
    setting = measured.setting
    assert {each.variant for each in measured.reconstructions} == {v.name for v in variants(setting)}
    for variant in variants(setting):
        (one,) = [each for each in measured.reconstructions if each.variant == variant.name]
        if variant.fixed_tokens is not None:
            (score,) = one.points[0].scores
            assert score.mean_tokens == variant.fixed_tokens
            assert score.bits_with_positions == score.bits == variant.fixed_tokens * math.log2(32)
            continue
        assert [point.wanted_tokens for point in one.points] == sorted({setting.headline, *setting.curve})
        for point in one.points:
            for score in point.scores:
                if score.name.startswith(("DTF distance", "fixed k", "random")):
                    assert score.mean_tokens == pytest.approx(point.wanted_tokens, abs=0.5)
    distance = headline_scores(measured, "tatok", "DTF distance")[0]
    assert distance.bits_with_positions > distance.bits
    content = headline_scores(measured, "tatok", "DTF content")[0]
    assert content.bits_with_positions == content.bits


def test_models_differ_in_nothing_but_what_they_are_compared_for() -> None:
    setting = SETTINGS["small"]
    for variant in variants(setting):
        config = training_config(variant, setting, 0, output="x", photos=("p",), heldout=("h",))
        steps = {part: sum(s.steps for s in config.stages if part in s.train) for part in ("tokenizer", "decoder")}
        assert steps == {"tokenizer": setting.recipe.tokenizer_steps, "decoder": setting.recipe.decoder_steps}
        same = ("width", "num_heads", "codebook_size", "code_dim", "num_trunk_layers", "num_decoder_layers")
        for name in same:
            assert getattr(variant.model, name) == getattr(setting.backbone, name)


def test_generators_have_equal_tokens_and_then_equal_time(results: tuple[Results, Path]) -> None:
    measured, _ = results
    by_name = {(each.variant, each.budget): each for each in measured.generations}
    keys = [("full-rate", "tokens"), ("tatok", "tokens"), ("tatok", "time"), ("grid-30", "tokens")]
    assert list(by_name) == keys
    full, equal_tokens, equal_time, grid = (by_name[key] for key in keys)
    budget = measured.setting.generator_tokens
    for each in (full, equal_tokens, grid):
        assert budget - 64 <= each.spent.tokens <= budget
    assert equal_time.spent.seconds >= full.spent.seconds
    assert equal_tokens.spent.images > full.spent.images
    counts = {each.variant: each.mean_tokens for each in measured.tokenizations}
    assert (counts["full-rate"], counts["grid-30"]) == (64, 30)
    assert 16 <= counts["tatok"] < 64


def test_samples_are_measured_beside_real_and_beside_rebuilt_images(results: tuple[Results, Path]) -> None:
    measured, _ = results
    generators = [(each.variant, each.budget) for each in measured.generations]
    assert [(each.variant, each.budget) for each in measured.samplings] == generators
    for each in measured.samplings:
        assert [guided.guidance for guided in each.samples] == [1, 1.5]
        for guided in each.samples:
            for distances in (guided.to_real, guided.to_rebuilt, each.rebuilt_to_real):
                assert distances.num_images == distances.num_references == measured.setting.num_samples
                assert math.isfinite(distances.kernel)
            assert guided.to_real.kernel != guided.to_rebuilt.kernel
    fixed = {each.variant: each.samples[0].mean_tokens for each in measured.samplings}
    assert (fixed["full-rate"], fixed["grid-30"]) == (64, 30)
    of_tokens, of_time = (each for each in measured.samplings if each.variant == "tatok")
    assert of_tokens.rebuilt_to_real == of_time.rebuilt_to_real


def test_speed_is_measured_with_the_lengths_of_the_tokens(results: tuple[Results, Path]) -> None:
    measured, _ = results
    assert [each.setting for each in measured.speed.comparisons] == [
        "equal batch",
        "equal batch",
        "equal memory",
        "one at a time",
    ]
    assert measured.speed.baseline_tokens == 64
    assert measured.speed.num_rows == measured.setting.num_heldout
    for each in measured.speed.comparisons:
        assert each.median_ratio > 0


def test_entropies_are_those_of_two_priors(results: tuple[Results, Path]) -> None:
    measured, _ = results
    assert [each.visible_share for each in measured.entropies] == [0, 0.25, 0.5, 0.75]
    for each in measured.entropies:
        assert 0 < each.given_globals_bits < 10
        assert each.given_globals_bits != each.without_globals_bits


def test_the_report_has_every_model_and_the_figure_every_curve(results: tuple[Results, Path]) -> None:
    from benchmarks.claims.report.document import write_report

    measured, folder = results
    document, figure = folder / "RESULTS.md", folder / "curve.svg"
    document.write_text(f"before\n<!-- {MARK} -->\nold\n<!-- end of {MARK} -->\nafter\n")
    write_report(results=folder / "claims.json", document=document, figure=figure)
    text = document.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    for variant in variants(measured.setting):
        assert variant.title in text
    rows = [line for line in text.splitlines() if line.startswith("| **TaTok")]
    psnr = headline_scores(measured, "tatok", "DTF distance")[0].psnr_db
    assert f"| {psnr:.2f} |" in rows[0]
    assert "nan" not in text
    ElementTree.parse(figure)
    first = figure.read_bytes()
    write_report(results=folder / "claims.json", document=document, figure=figure)
    assert figure.read_bytes() == first


def test_a_second_run_does_nothing_again(results: tuple[Results, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.claims.run import claims

    _, folder = results
    before = {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*.json")}
    capsys.readouterr()
    claims("tiny", str(folder / "train"), str(folder / "heldout"), folder / "work", folder / "again.json", 0, "cpu")
    assert {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*.json")} | before == before
    assert not re.search(r"\d+/\d+ model", capsys.readouterr().out)
    assert (folder / "again.json").read_bytes() == (folder / "claims.json").read_bytes()


def test_the_published_report_is_that_of_the_published_figures() -> None:
    docs = ROOT / "docs"
    path = docs / "results" / "claims.json"
    if not path.exists():
        pytest.skip("the bench has not been run at its small setting yet")
    document = (docs / "results" / "claims.md").read_text()
    speed = docs / "results" / "speed.json"
    larger = read_speed(speed) if speed.exists() else None
    assert put_between(document, MARK, tables(read_results(path), larger)) == document


def test_images_come_from_parquet_folders_and_tars(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": encoded(i, 32, 32, "PNG"), "path": None}, "label": i % 2} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    tars = as_tars(str(tmp_path / "images.parquet"), tmp_path / "tars", limit=4)
    assert [Path(path).name for path in tars] == ["00000.tar"]
    assert as_tars(tars[0], tmp_path / "unused") == tars
    with pytest.raises(ConfigError, match="tars are used whole"):
        as_tars(tars[0], tmp_path / "unused", limit=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no image"):
        as_tars(str(tmp_path / "empty"), tmp_path / "nothing")


def fails(value: int) -> int:
    if value < 0:
        raise ValueError(f"{value} is negative")
    return value


def test_steps_keep_what_ended_and_tell_what_failed(tmp_path: Path) -> None:
    steps = [Step(name=f"step-{value}", call=partial(fails, value)) for value in (1, -2, 3)]
    said: list[str] = []
    with pytest.raises(RuntimeError, match="1 steps failed: step--2"):
        run_steps(steps, tmp_path, num_processes=2, num_threads=1, on_end=said.append)
    assert [read_result(tmp_path, step.name, int) for step in steps] == [1, None, 3]
    assert len(said) == 3
    same_settings(tmp_path, {"a": 1})
    same_settings(tmp_path, {"a": 1})
    with pytest.raises(ConfigError, match="other settings"):
        same_settings(tmp_path, {"a": 2})


def test_settings_of_the_bench_are_whole() -> None:
    for name, setting in SETTINGS.items():
        assert setting.name == name
        assert len({variant.name for variant in variants(setting)}) == len(variants(setting))
        assert replace(setting.backbone) == setting.backbone
