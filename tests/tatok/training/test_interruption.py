"""Trainings that signals and deaths stop anywhere: none of their work is lost, and none of it is done twice.

Signals are real, and sent at a place drawn at random among all where a run writes, steps, looks or changes its stage.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tatok.schemas.errors import TatokError
from tatok.stopping import Interrupted
from tatok.training import run as run_module
from tatok.training.config import TrainingConfig
from tatok.training.run import train
from tatok.training.run_folder import RunFolder
from tatok.training.trainer import Trainer
from tests.support.synthetic_videos import video_bytes
from tests.support.tiny_checkpoint import TINY_RECIPE

CPU = torch.device("cpu")
OF_TIME = {"images_per_s", "hours"}
HOOKS = [
    (Trainer, "initialise"),
    (Trainer, "train_step"),
    (Trainer, "validate"),
    (Trainer, "save"),
    (Trainer, "next_stage"),
    (RunFolder, "write"),
    (RunFolder, "add_record"),
    (RunFolder, "write_checkpoint"),
    (run_module, "centre_crops"),
]


class Killed(BaseException):
    """As of SIGKILL, nothing is done about it."""


@contextmanager
def stopped_at(place: int, stop: Callable[[], None]) -> Iterator[list[str]]:
    """Call `stop` before or after the call of one of HOOKS: at the `place`th such moment; yields those that were."""
    seen: list[str] = []

    def moment(name: str) -> None:
        seen.append(name)
        if len(seen) == place:
            stop()

    def hooked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def with_moments(*args: Any, **kwargs: Any) -> Any:
            moment(f"before {name}")
            result = call(*args, **kwargs)
            moment(f"after {name}")
            return result

        return with_moments

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in HOOKS:
            patch.setattr(owner, name, hooked(name, getattr(owner, name)))
        yield seen


def kill() -> None:
    raise Killed


STOPS: dict[str, Callable[[], None]] = {
    "SIGINT": lambda: signal.raise_signal(signal.SIGINT),
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGKILL": kill,
}


def recipe(kind: str, source: str, folder: Path) -> TrainingConfig:
    """Stages with and without an adversary, or on clips; records every second step, and states every third."""
    shape = {"steps": 4, "batch_size": 4, "image_size": 32, "warmup_steps": 2, "perceptual_size": 32}
    images = [
        {"name": "tokenizer", "train": ["tokenizer"], "adversarial_weight": 0.1},
        {"name": "prior", "train": ["prior"]},
        {"name": "decoder", "train": ["decoder"], "adversarial_weight": 0.1, "kept": {"dtf": 1.0}},
    ]
    clips = [
        {"name": "images", "train": ["tokenizer", "prior"]},
        {"name": "clips", "train": ["decoder", "prior"], "num_frames": 3},
    ]
    memory = [{"name": "joint", "train": ["tokenizer", "prior"], "native_share": 0.5, "steps": 8}]
    (folder / "clip.mp4").write_bytes(video_bytes(40))
    document = {
        "output": str(folder / "run"),
        "photos": [source],
        "videos": [str(folder / "clip.mp4")],
        "heldout": [source],
        "num_heldout": 4,
        "num_loader_workers": 0,
        "num_start_crops": 32,
        "precision": "float32",
        "photos_in_memory": kind == "memory",
        "log_every_steps": 2,
        "save_every_steps": 3,
        "model": TINY_RECIPE,
        "stages": [shape | stage for stage in {"images": images, "clips": clips, "memory": memory}[kind]],
    }
    return TrainingConfig.model_validate(document)


def records(config: TrainingConfig) -> list[dict[str, Any]]:
    metrics = Path(config.output) / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []  # it comes with the first record
    return [{k: v for k, v in json.loads(line).items() if k not in OF_TIME} for line in lines]


def weights(config: TrainingConfig) -> dict[str, torch.Tensor]:
    state = torch.load(Path(config.output) / "state.pt", weights_only=True)
    return {f"{part}.{name}": value for part in ("modules", "average") for name, value in state[part].items()}


def differing(config: TrainingConfig, whole: TrainingConfig) -> list[str]:
    found = weights(config)
    return [name for name, value in weights(whole).items() if not torch.equal(value, found[name])]


@pytest.mark.parametrize("kind", ["images", "clips", "memory"])
def test_a_run_that_is_stopped_anywhere_ends_as_one_that_is_not(
    kind: str, photo_shards: Callable[..., str], tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    stopped = recipe(kind, photo_shards(num_shards=2, photos_per_shard=8), tmp_path)
    whole = stopped.model_copy(update={"output": str(tmp_path / "whole")})
    with stopped_at(0, lambda: None) as moments:
        train(whole, CPU)
    for name in (*rng.sample(list(STOPS), 3), "SIGINT"):
        place = rng.randint(1, len(moments) // 3)
        interrupt: BaseException | None = None
        with stopped_at(place, STOPS[name]) as seen:
            try:
                train(stopped, CPU)
            except (Interrupted, Killed) as raised:
                interrupt = raised
        print(name, "at", seen[place - 1 : place] or "no time: it was done", interrupt)
        state = Path(stopped.output) / "state.pt"
        if isinstance(interrupt, Interrupted) and state.exists():
            assert "with the same command" in interrupt.said
            if "before the run began" in interrupt.said:
                continue  # what a kill before it has left is put in order when a run begins
            saved = torch.load(state, weights_only=True)
            assert saved["num_records"] == len(records(stopped)), "what is written is saved"
    train(stopped, CPU)
    assert records(stopped) == records(whole)
    assert differing(stopped, whole) == []


def test_the_steps_since_the_last_state_are_saved_and_said(
    photo_shards: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = recipe("images", photo_shards(num_shards=1, photos_per_shard=8), tmp_path)
    whole = config.model_copy(update={"output": str(tmp_path / "whole")})
    train(whole, CPU)
    step = Trainer.train_step

    def signalled(trainer: Trainer, pixels: torch.Tensor) -> dict[str, float]:
        if (trainer.stage_index, trainer.step) == (1, 1):
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", signalled)
        with pytest.raises(Interrupted) as raised:
            train(config, CPU)
    assert raised.value.signal_number == signal.SIGTERM
    wanted = f"interrupted: saved at step 2 of stage prior (2 of 3) in {config.output}; resume with the same command"
    assert raised.value.said == wanted
    assert "stopping when this step is done and saved" in capfd.readouterr().err
    lines: list[str] = []
    train(config, CPU, say=lines.append)
    assert lines[0] == f"resuming in {config.output}: stage 2, step 2"
    assert lines[1].startswith("stage prior step 2 "), "the record that was due"
    assert records(config) == records(whole)
    assert differing(config, whole) == []  # the adversary is made anew in the next stage


def test_before_the_first_step_there_is_nothing_to_save(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    config = recipe("clips", photo_shards(num_shards=1, photos_per_shard=8), tmp_path)
    with stopped_at(1, STOPS["SIGINT"]) as seen, pytest.raises(Interrupted) as raised:
        train(config, CPU)
    assert seen == ["before initialise"]
    wanted = f"before the first step: nothing is saved in {config.output}; start again with the same command"
    assert wanted in raised.value.said
    assert not list(Path(config.output).glob("*"))


def test_a_second_signal_ends_the_saving_and_leaves_the_last_state_whole(
    photo_shards: Callable[..., str], tmp_path: Path
) -> None:
    config = recipe("clips", photo_shards(num_shards=1, photos_per_shard=8), tmp_path)
    step, replace = Trainer.train_step, os.replace
    place: list[str] = []

    def signalled(trainer: Trainer, pixels: torch.Tensor) -> dict[str, float]:
        if (trainer.stage_index, trainer.step) == (1, 1):
            place.append("step")
            signal.raise_signal(signal.SIGINT)
        return step(trainer, pixels)

    def impatient(source: str, target: str) -> None:
        if place == ["step"]:  # the state is written beside its place, and not yet there
            place.append(target)
            signal.raise_signal(signal.SIGINT)
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tatok.stopping._SAME_PRESS_S", 0.0)
        patch.setattr(Trainer, "train_step", signalled)
        patch.setattr(os, "replace", impatient)
        with pytest.raises(Interrupted, match="SIGINT"):
            train(config, CPU)
    assert place == ["step", str(Path(config.output) / "state.pt")]
    assert not list(Path(config.output).glob("*.tmp"))
    lines: list[str] = []
    train(config, CPU, say=lines.append)
    assert lines[0] == f"resuming in {config.output}: stage 1, step 4"  # the end of the first stage
    assert [(r["stage"], r["step"]) for r in records(config)] == [(s, n) for s in ("images", "clips") for n in (2, 4)]


def test_steps_of_a_run_that_died_before_its_first_state_are_not_in_the_figures_twice(
    photo_shards: Callable[..., str], tmp_path: Path
) -> None:
    config = recipe("clips", photo_shards(num_shards=1, photos_per_shard=8), tmp_path)
    often = config.model_copy(update={"log_every_steps": 1})
    with stopped_at(9, kill) as seen, pytest.raises(Killed):
        train(often, CPU)
    assert not (Path(config.output) / "state.pt").exists(), seen
    died = len(records(often))
    assert died
    lines: list[str] = []
    train(often, CPU, say=lines.append)
    assert lines[0].startswith(f"metrics.jsonl in {config.output} had {died} lines of a run that saved no state")
    assert [(r["stage"], r["step"]) for r in records(often)] == [
        (s, n) for s in ("images", "clips") for n in range(1, 5)
    ]


def test_another_number_of_loaders_resumes_with_other_crops(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    config = recipe("images", photo_shards(num_shards=1, photos_per_shard=8), tmp_path)
    with stopped_at(8, STOPS["SIGINT"]), pytest.raises(Interrupted):
        train(config, CPU)
    train(config.model_copy(update={"num_loader_workers": 2}), CPU)
    assert [(r["stage"], r["step"]) for r in records(config)] == [
        (s, n) for s in ("tokenizer", "prior", "decoder") for n in (2, 4)
    ]


def test_other_errors_save_nothing(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    """What a step that failed has left of the weights is not to be resumed."""
    config = recipe("clips", photo_shards(num_shards=1, photos_per_shard=8), tmp_path)

    def fail() -> None:
        raise TatokError("the loss is nan")

    with stopped_at(7, fail), pytest.raises(TatokError, match="the loss is nan"):
        train(config, CPU)
    assert not (Path(config.output) / "state.pt").exists()
