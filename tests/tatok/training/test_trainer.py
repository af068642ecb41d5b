"""The trainer: what a step moves, what the average holds, what it starts from and what it restores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tatok.model.autoencoder import TaTokConfig
from tatok.model.checkpoint import load_checkpoint
from tatok.model.pixels import to_float
from tatok.schemas.errors import ConfigError
from tatok.training.config import KeptMixture, Stage, TrainingConfig
from tatok.training.photos import RandomCrops, expand_sources
from tatok.training.run import train
from tatok.training.trainer import Trainer


def test_stages_move_only_the_parts_that_they_train(config: TrainingConfig) -> None:
    trainer = Trainer(config, torch.device("cpu"))
    stream = iter(torch.utils.data.DataLoader(RandomCrops(expand_sources(config.photos), 32, 0), batch_size=4))
    trainer.initialise(stream)
    pixels = next(stream)
    for index, moving in enumerate([{"tatok"}, {"prior"}, {"tatok.decoder"}]):
        trainer.stage_index, trainer.step, trainer.optimizer = index, 3, None
        before = {name: value.clone() for name, value in trainer.modules.state_dict().items()}
        trainer.train_step(pixels)
        moved = {n for n, v in trainer.modules.state_dict().items() if not torch.equal(v, before[n])}
        assert moved
        assert all(any(name.startswith(prefix) for prefix in moving) for name in moved), moved


def test_the_average_of_a_part_that_starts_late_does_not_hold_on_to_its_random_start(config: TrainingConfig) -> None:
    trainer = Trainer(config, torch.device("cpu"))
    stream = iter(torch.utils.data.DataLoader(RandomCrops(expand_sources(config.photos), 32, 0), batch_size=4))
    trainer.initialise(stream)
    trainer.stage_index = 1  # the prior's
    start = trainer.prior.head.bias.detach().clone()
    for pixels, _ in zip(stream, range(40), strict=False):
        trainer.train_step(pixels)
    moved = (trainer.prior.head.bias.detach() - start).norm()
    lag = (trainer.averaged()[1].head.bias - trainer.prior.head.bias).detach().norm()
    assert float(moved) > 0
    assert float(lag) < 0.3 * float(moved)


def test_training_learns(config: TrainingConfig) -> None:
    torch.manual_seed(0)
    stage = Stage(name="s", train=("tokenizer",), steps=60, batch_size=4, image_size=32, warmup_steps=5,
                  learning_rate=3e-3, kept=KeptMixture(none=0, full=1, random=0, energy=0))  # fmt: skip
    trainer = Trainer(config.model_copy(update={"stages": (stage,), "precision": "float32"}), torch.device("cpu"))
    stream = iter(torch.utils.data.DataLoader(RandomCrops(expand_sources(config.photos), 32, 0), batch_size=4))
    trainer.initialise(stream)
    pixels = next(stream)
    losses = [trainer.train_step(pixels)["pixel"] for _ in range(60)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_start_from_another_checkpoint(config: TrainingConfig, tmp_path: Path) -> None:
    folder = train(config.model_copy(update={"stages": config.stages[:1]}), torch.device("cpu"))
    fresh = config.model_copy(update={"output": str(tmp_path / "second")})
    started = Trainer(fresh, torch.device("cpu"), str(folder))
    assert started.is_initialised
    with pytest.raises(ConfigError, match="but the training file"):
        Trainer(fresh.model_copy(update={"model": TaTokConfig()}), torch.device("cpu"), str(folder))


def test_another_prior_starts_anew_on_the_same_codes(config: TrainingConfig, tmp_path: Path) -> None:
    folder = train(config.model_copy(update={"stages": config.stages[:1]}), torch.device("cpu"))
    other = replace(config.model, num_prior_layers=2, prior_rank=3)
    update = {"model": other, "output": str(tmp_path / "second")}
    with pytest.raises(ConfigError, match="the first stage must train it"):
        Trainer(config.model_copy(update=update | {"stages": config.stages[:1]}), torch.device("cpu"), str(folder))
    stage = config.stages[0].model_copy(update={"train": ("prior",), "steps": 2})
    trained = train(
        config.model_copy(update=update | {"stages": (stage,)}), torch.device("cpu"), start_from=str(folder)
    )
    before, after = load_checkpoint(folder), load_checkpoint(trained)
    assert after.model.config == other
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), f"{name} is the tokenizer's"


def test_codes_that_nobody_sees_draw_nothing(config: TrainingConfig) -> None:
    """A coarse grid's encoder owes nothing to patch codes that no decoder is shown."""

    def moved_by(kept: KeptMixture) -> bool:
        stage = config.stages[0].model_copy(update={"kept": kept, "perceptual_weight": 0.0})
        trainer = Trainer(config.model_copy(update={"stages": (stage,)}), torch.device("cpu"))
        pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        trainer.losses(to_float(pixels), stage)["commitment"].backward()
        gradient = trainer.model.encoder.patch_head.weight.grad
        return gradient is not None and bool(gradient.any())

    assert moved_by(KeptMixture())
    assert not moved_by(KeptMixture(none=1, full=0, random=0, energy=0))


def test_the_rate_reaches_the_encoder_and_the_prior(config: TrainingConfig) -> None:
    joint = Stage(name="joint", train=("tokenizer", "prior"), steps=2, batch_size=4, image_size=32, rate_weight=1.0)
    trainer = Trainer(config.model_copy(update={"stages": (joint,)}), torch.device("cpu"))
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    trainer.initialise(iter([pixels] * 8))
    trainer.train_step(pixels)  # sets up what learns
    trainer.optimizer.zero_grad()
    terms = trainer.losses(pixels.float() / 127.5 - 1, joint)
    assert 0 < float(terms["rate"].detach()) < 20 / 192  # bits over the 192 values of a patch
    terms["rate"].backward()
    for weight in (
        trainer.model.encoder.patch_head.weight,
        trainer.model.encoder.queries_MD,
        trainer.prior.head.weight,
    ):
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_a_state_of_another_version_is_named(config: TrainingConfig) -> None:
    config = config.model_copy(update={"stages": (config.stages[3],)})
    trainer = Trainer(config, torch.device("cpu"))
    trainer.initialise(iter([torch.randint(0, 255, (32, 3, 32, 32), dtype=torch.uint8)]))
    trainer.train_step(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))
    trainer.save()
    path = Path(config.output) / "state.pt"
    state = torch.load(path, weights_only=True)
    state["optimizer"]["param_groups"] = state["optimizer"]["param_groups"][:2]
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"state\.pt was saved in the middle of a stage by another version"):
        Trainer(config, torch.device("cpu")).restore()
