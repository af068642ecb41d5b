"""Runs of training on a few synthetic photos: all stages, resumption and what stops them, with a model of tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tatok.model.autoencoder import TaTokConfig
from tatok.schemas.errors import ConfigError, TatokError
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.config import TrainingConfig
from tatok.training.photos import centre_crops, expand_sources
from tatok.training.run import _batches, train
from tatok.training.trainer import Trainer
from tatok.watching.terminal import display
from tests.support.tiny_checkpoint import TINY_RECIPE


def test_all_stages_write_figures_pictures_and_a_checkpoint_that_loads(config: TrainingConfig) -> None:
    folder = train(config, torch.device("cpu"))
    records = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in records] == ["tokenizer"] * 2 + ["prior"] * 2 + ["decoder"] * 2 + ["joint"] * 2
    assert {"pixel", "base", "perceptual", "commitment", "perplexity_patch", "psnr_few_db"} <= records[0].keys()
    assert all(r["psnr_full_db"] > 10 for r in records)
    assert len(list((Path(config.output) / "samples").glob("*.png"))) == 8
    tokenizer = Tokenizer.load(folder, device="cpu")
    pixels = torch.stack(list(centre_crops(expand_sources(config.heldout), 32, 4)))
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


@pytest.mark.parametrize(
    ("precision", "has_it", "told"),
    [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0), ("auto", False, 0)],
)
def test_slow_bfloat16_is_told(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, precision: str, has_it: bool, told: int
) -> None:
    monkeypatch.setattr("tatok.device._cpu_has_bfloat16", lambda: has_it)
    lines: list[str] = []
    stages = (config.stages[0].model_copy(update={"steps": 1, "perceptual_weight": 0.0}),)
    train(config.model_copy(update={"precision": precision, "stages": stages}), torch.device("cpu"), say=lines.append)
    assert sum("set `precision: auto`" in line for line in lines) == told


def test_training_goes_on_where_it_stopped(config: TrainingConfig) -> None:
    whole = config.model_copy(update={"stages": config.stages[:1]})
    half = whole.model_copy(update={"stages": (config.stages[0].model_copy(update={"steps": 3}),)})
    train(half, torch.device("cpu"))
    trainer = Trainer(whole, torch.device("cpu"))
    assert trainer.restore()
    assert trainer.stage_index == 1  # the half's only stage is done
    state = trainer.modules.state_dict()
    stored = torch.load(Path(config.output) / "state.pt", weights_only=True)["modules"]
    assert all(torch.equal(value, stored[name]) for name, value in state.items())
    train(config, torch.device("cpu"))  # the remaining stages
    stages = [json.loads(line)["stage"] for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["tokenizer"] + ["prior"] * 2 + ["decoder"] * 2 + ["joint"] * 2


def test_a_run_that_was_cut_off_leaves_each_step_once(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    often = config.model_copy(update={"stages": config.stages[1:3], "log_every_steps": 1})
    step = Trainer.train_step

    def cut_off(trainer: Trainer, pixels: torch.Tensor) -> dict[str, float]:
        if trainer.stage_index == 1 and trainer.step == 5:
            raise KeyboardInterrupt
        return step(trainer, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train(often, torch.device("cpu"))
    metrics = Path(config.output) / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 11  # two more than the last state knows of
    with metrics.open("a") as file:
        file.write('{"stage": "cut o')
    assert "stage decoder step 5" in capsys.readouterr().out
    lines: list[str] = []
    train(often, torch.device("cpu"), say=lines.append)
    assert lines[0] == f"resuming in {config.output}: stage 2, step 3"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in records] == [(s, n) for s in ("prior", "decoder") for n in range(1, 7)]
    assert capsys.readouterr().out == ""  # `say` speaks instead


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "losses", lambda self, images, stage: {"pixel": images.new_tensor(torch.nan) * next(
        self.model.decoder.parameters()).sum()})  # fmt: skip
    with pytest.raises(TatokError, match=r"the loss is nan at step 0 of stage tokenizer; lower its learning_rate"):
        train(config, torch.device("cpu"))


@pytest.mark.parametrize("kind", [{"num_global": 0}, {"anchored": False}, {"cell_size": 4}], ids=str)
def test_the_fixed_rate_kinds_train_too(config: TrainingConfig, kind: dict[str, int]) -> None:
    model = TaTokConfig(**{**TINY_RECIPE, **kind})
    lines: list[str] = []
    train(
        config.model_copy(update={"model": model, "stages": config.stages[3:]}), torch.device("cpu"), say=lines.append
    )
    record = json.loads((Path(config.output) / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("base" in record) == (kind == {"cell_size": 4})
    assert ("perplexity_global" in record) == (model.num_global > 0)
    if model.num_global:
        assert record["perplexity_global"] > 3  # of 32: the codebook was started from what there is
    assert record["psnr_full_db"] > 10


def test_a_run_of_another_model_is_refused(config: TrainingConfig) -> None:
    train(config.model_copy(update={"stages": config.stages[:1]}), torch.device("cpu"))
    other = config.model_copy(update={"model": TaTokConfig(**{**TINY_RECIPE, "width": 64})})
    with pytest.raises(ConfigError, match="another model; choose another output"):
        train(other, torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "output", "configured", "workers", "context", "is_pinned"),
    [
        ("cpu", None, None, 1, None, False),
        ("cpu", "memory://run", None, 1, "spawn", False),
        ("cuda", None, None, 3, "forkserver", True),  # a process that holds CUDA must not be forked
        ("cuda", "memory://run", None, 3, "spawn", True),
        ("cuda", None, 5, 5, "forkserver", True),
        ("cuda", None, 0, 0, None, True),
    ],
)
def test_loaders_start_as_the_device_asks(
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    output: str | None,
    configured: int | None,
    workers: int,
    context: str | None,
    is_pinned: bool,
) -> None:
    given: dict[str, object] = {}

    def loader(samples: object, **options: object) -> list[torch.Tensor]:
        given.update(options)
        return []

    monkeypatch.setattr("tatok.training.run.DataLoader", loader)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    trainer = Trainer(config, torch.device("cpu"))
    trainer.device = torch.device(device)
    trainer.config = config.model_copy(
        update={"num_loader_workers": configured} | ({} if output is None else {"output": output})
    )
    with display() as shown:
        _batches(trainer, expand_sources(config.photos), [], shown, lambda: None)
    assert given["num_workers"] == workers
    assert given["multiprocessing_context"] == context
    assert given["pin_memory"] is is_pinned
