"""A frozen autoencoder whose encoder compares rebuilt and real images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tatok.model.pixels import to_float
from tatok.schemas.errors import ConfigError
from tatok.stopping import Interrupted
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.config import TrainingConfig
from tatok.training.losses import Losses
from tatok.training.requirements import findings
from tatok.training.run import train
from tatok.training.trainer import Trainer
from tests.support.tiny_checkpoint import TINY_RECIPE, tiny_autoencoder, tiny_images

CPU = torch.device("cpu")
COARSE = """
import torch.nn.functional as F

class Coarse:
    channels, factor, identity = 3, 64, "coarse"

    def encode(self, images):
        return F.avg_pool2d(images, 64)

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=64)

def load(device):
    return Coarse()
"""


@pytest.fixture
def document(photo_shards: Callable[..., str], tmp_path: Path) -> dict[str, Any]:
    source = photo_shards(num_shards=2, photos_per_shard=8)
    stage = {"steps": 4, "batch_size": 4, "image_size": 32, "warmup_steps": 1}
    return {
        "output": str(tmp_path / "run"),
        "photos": [source],
        "heldout": [source],
        "num_heldout": 4,
        "num_start_crops": 32,
        "log_every_steps": 2,
        "save_every_steps": 2,
        "precision": "float32",
        "teacher": {"autoencoder": tiny_autoencoder(tmp_path)},
        "model": TINY_RECIPE,
        "stages": [
            {"name": "both", "train": ["tokenizer", "prior"], "teacher_weight": 0.5, **stage},
            {"name": "decoder", "train": ["decoder"], "teacher_weight": 0.5, **stage},
        ],
    }


def weights(config: TrainingConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(config.output) / "checkpoint" / "model.safetensors")


def test_a_run_with_a_teacher_leaves_nothing_of_it_in_the_checkpoint(document: dict[str, Any]) -> None:
    config = TrainingConfig.model_validate(document)
    folder = train(config, CPU)
    records = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    assert all(record["teacher"] > 0 for record in records)
    assert not [name for name in weights(config) if "teacher" in name]
    assert "teacher" not in (Path(folder) / "config.json").read_text()
    assert config.teacher is not None
    Path(config.teacher.autoencoder.rpartition(":")[0]).unlink()
    tokenizer = Tokenizer.load(folder, device="cpu")
    pixels = tiny_images(2)
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


def test_the_loss_is_the_squared_error_of_its_latents_and_reaches_what_is_rebuilt(document: dict[str, Any]) -> None:
    config = TrainingConfig.model_validate(document)
    trainer = Trainer(config, CPU)
    teacher, stage = trainer.teacher, config.stages[0]
    assert teacher is not None
    real, rebuilt = to_float(tiny_images(3)), to_float(tiny_images(3, seed=5)).requires_grad_()
    losses = Losses(model=trainer.model, prior=trainer.prior, dtf=config.dtf, teacher=teacher)
    terms = losses._of_rebuilt(rebuilt, real, stage)
    wanted = stage.teacher_weight * F.mse_loss(teacher.encode(rebuilt), teacher.encode(real))
    assert torch.allclose(terms["teacher"], wanted)
    (gradient,) = torch.autograd.grad(terms["teacher"], rebuilt)
    assert gradient.abs().sum() > 0
    terms = losses._of_rebuilt(real.clone(), real, stage)
    assert float(terms["teacher"]) == 0

    # A window whose sides are no whole latents is cut to whole ones.
    odd = stage.model_copy(update={"perceptual_size": 30, "image_size": 30})
    assert losses._compared(rebuilt[..., :30, :30], real[..., :30, :30], odd)[0]["teacher"] > 0


def test_a_stopped_run_resumes_to_the_same_weights_and_with_no_other_teacher(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TrainingConfig.model_validate(document)
    train(whole, CPU)
    stopped = whole.model_copy(update={"output": f"{whole.output}-stopped"})
    step, steps = Trainer.train_step, list[int]()

    def stop_at_the_third(trainer: Trainer, pixels: torch.Tensor) -> dict[str, float]:
        if len(steps) == 3:
            raise Interrupted(15, "stopped")
        steps.append(trainer.step)
        return step(trainer, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop_at_the_third)
        with pytest.raises(Interrupted):
            train(stopped, CPU)
    assert whole.teacher is not None
    other = whole.teacher.model_copy(update={"autoencoder_options": {"seed": 1}})
    with pytest.raises(ConfigError, match="another teacher"):
        train(stopped.model_copy(update={"teacher": other}), CPU)
    train(stopped, CPU)
    first, second = weights(whole), weights(stopped)
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_what_contradicts_itself_is_refused_or_noted(document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage both has a teacher_weight, but there is no teacher"):
        TrainingConfig.model_validate({key: value for key, value in document.items() if key != "teacher"})
    (tmp_path / "coarse.py").write_text(COARSE)
    coarse = document | {"teacher": {"autoencoder": f"{tmp_path / 'coarse.py'}:load"}}
    with pytest.raises(ConfigError, match="stage both: windows of 32 pixels are smaller than the 64 of a latent"):
        Trainer(TrainingConfig.model_validate(coarse), CPU)
    missing = document | {"teacher": {"autoencoder": f"{tmp_path / 'nowhere.py'}:load"}}
    with pytest.raises(ConfigError, match=r"nowhere\.py"):
        train(TrainingConfig.model_validate(missing), CPU)
    prior = {**document["stages"][1], "name": "prior", "train": ["prior"]}
    config = TrainingConfig.model_validate(document | {"stages": [*document["stages"], prior]})
    assert "stage prior: teacher_weight has no effect, for nothing is rebuilt" in findings(config).notes
    unheard = [{**stage, "teacher_weight": 0.0} for stage in document["stages"]]
    config = TrainingConfig.model_validate(document | {"stages": unheard})
    assert "the teacher has no effect: no stage has a teacher_weight" in findings(config).notes
    assert Trainer(config, CPU).teacher is None
