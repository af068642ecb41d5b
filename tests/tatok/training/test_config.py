"""Training files and what follows from one: stages, batches, precision, kept patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tatok.device import computes_in_bfloat16
from tatok.model.checkpoint import load_checkpoint
from tatok.schemas.errors import ConfigError
from tatok.training.config import KeptMixture, Stage, TrainingConfig, check_batch_sizes, load_training_config
from tatok.training.losses import choose_kept
from tests.support.places import ROOT


def test_auto_takes_bfloat16_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has_it in (True, False):
        monkeypatch.setattr("tatok.device._cpu_has_bfloat16", lambda has_it=has_it: has_it)
        assert computes_in_bfloat16("auto", cpu) == has_it
        assert computes_in_bfloat16("auto", cuda)
        assert computes_in_bfloat16("bfloat16", cpu)
        assert not computes_in_bfloat16("float32", cuda)


def test_batches_must_be_shared_equally(config: TrainingConfig) -> None:
    check_batch_sizes(config, 2)
    with pytest.raises(ConfigError, match=r"stage tokenizer: a batch_size of 4 .* by 3 workers; make it a multiple"):
        check_batch_sizes(config, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: x\nphotos: [a]\nstages: []", "stages"),
        ("output: x\nphotos: [a]\nluck: 1\nstages: [{name: a, train: [prior], steps: 1}]", "luck"),
        ("output: x\nphotos: [a]\nmodel: {luck: 1}\nstages: [{name: a, train: [prior], steps: 1}]", "model.luck"),
        ("{", "not valid YAML"),
    ],
)
def test_wrong_training_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_training_config(path)


@pytest.mark.parametrize("name", ["train-photos-256.yaml", "train-photos-256-gpu.yaml", "train-clips-256.yaml"])
def test_the_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_training_config(ROOT / "examples" / name)
    small = load_training_config(ROOT / "examples" / "train-photos-256.yaml")
    made = load_checkpoint().model.config if name == "train-photos-256-gpu.yaml" else small.model
    assert recipe.model == made, "the GPU's recipe is the bundled checkpoint's; clips go on from the small one"


def test_a_rate_without_both_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer and prior"):
        Stage(name="x", train=("tokenizer",), steps=1, rate_weight=0.1)


def test_kept_mixture() -> None:
    torch.manual_seed(0)
    scores = torch.rand(400, 16)
    assert choose_kept(scores, None, KeptMixture(none=0, full=1, random=0, energy=0)).all()
    assert not choose_kept(scores, None, KeptMixture(none=1, full=0, random=0, energy=0)).any()
    kept = choose_kept(scores, None, KeptMixture(none=0, full=0, random=0, energy=1))
    assert scores[kept].min() > scores[~kept].max()
