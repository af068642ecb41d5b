"""What would end a generator's training later is said before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tatok.generator.recipe import GeneratorRecipe
from tatok.generator.requirements import check_generator
from tatok.generator.training import train_generator
from tatok.schemas.errors import ConfigError, TatokError
from tests.support.synthetic_tokens import write_synthetic

RECIPE = GeneratorRecipe(steps=2, width=32, num_layers=1, num_heads=2, batch_tokens=512)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "data"
    write_synthetic(str(folder), 40)
    return folder


def check(data: Path | str, output: Path, **changes: Any) -> None:
    options = {"heldout": None, "log_every_steps": 50, "save_every_steps": 500}
    of_recipe = {name: value for name, value in changes.items() if name not in options}
    chosen = options | {name: value for name, value in changes.items() if name in options}
    check_generator(data, output / "run", replace(RECIPE, **of_recipe), **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 33}, "width 33 is no multiple of num_heads 2"),
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"log_every_steps": 0}, "log_every_steps is 0"),
        ({"save_every_steps": -1}, "save_every_steps is -1"),
        ({"heldout": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
    ids=str,
)
def test_settings_that_are_none(changes: dict[str, Any], words: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TatokError, match=words):
        check(data, tmp_path, **changes)


def test_all_of_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^3 things stand in the way of this training:") as raised:
        check(str(tmp_path / "gone"), tmp_path, num_heads=0, log_every_steps=0)
    assert "num_heads is 0" in str(raised.value)
    assert str(tmp_path / "gone") in str(raised.value)


def test_a_run_that_has_ended_is_not_begun_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cpu = tmp_path / "run", torch.device("cpu")
    first = train_generator(data, run, RECIPE, cpu, heldout=data)
    before = {path.name: path.stat().st_mtime_ns for path in (run / "checkpoint").iterdir()}
    capsys.readouterr()
    assert train_generator(data, run, RECIPE, cpu) == first  # with what was measured then
    assert "finished already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (run / "checkpoint").iterdir()} == before
