"""Training on several workers by Ray Train: real Ray, two CPU workers, a model of tiny size."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tatok.distributed import rank
from tatok.jobs.cli import app
from tatok.schemas.errors import ConfigError
from tatok.stopping import Interrupted, Stop
from tatok.training.config import TrainingConfig, load_training_config
from tatok.training.run import train
from tatok.training.trainer import Trainer
from tests.support.processes import heed_interrupts

STEPS = 6

# Ray Train makes Ray Data's context, which warns of defaults of its own.
pytestmark = [pytest.mark.filterwarnings(r"ignore:::ray\.data\.context"), pytest.mark.timeout(600)]


@pytest.fixture
def recipe(photo_shards: Callable[..., str], tmp_path: Path) -> Path:
    """A training file of two short stages."""
    source = photo_shards(num_shards=2, photos_per_shard=8)
    model = {"patch_size": 8, "num_global": 4, "codebook_size": 32, "code_dim": 6, "width": 32, "num_heads": 2}
    layers = {f"num_{part}_layers": 1 for part in ("trunk", "base", "refiner", "decoder", "prior")}
    stage = {"steps": STEPS, "batch_size": 4, "image_size": 32, "warmup_steps": 2}
    document = {
        "output": str(tmp_path / "run"),
        "photos": [source],
        "heldout": [source],
        "num_heldout": 4,
        "num_loader_workers": 0,
        "num_start_crops": 32,
        "log_every_steps": 1,
        "save_every_steps": 3,
        "model": model | layers,
        "stages": [{"name": "joint", "train": ["tokenizer", "prior"], **stage},
                   {"name": "prior", "train": ["prior"], **stage}],
    }  # fmt: skip
    path = tmp_path / "train.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


def steps_in(metrics: str) -> list[tuple[str, int]]:
    return [(record["stage"], record["step"]) for record in map(json.loads, metrics.splitlines())]


def train_and_die_once(marker: str, config: TrainingConfig, device: torch.device, **options: Any) -> str:
    """`train`, but the first time that worker 1 gets to step 4 its process is killed."""
    step = Trainer.train_step

    def deadly_step(trainer: Trainer, pixels: torch.Tensor) -> dict[str, float]:
        if trainer.step == 4 and rank() == 1 and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer, pixels)

    Trainer.train_step = deadly_step  # type: ignore[method-assign]  # in the worker's process
    return train(config, device, **options)


def test_a_worker_that_dies_costs_the_steps_since_the_state_in_the_bucket_and_another_number_of_workers_goes_on(
    recipe: Path, tmp_path: Path, s3_bucket: str, local_ray: None
) -> None:
    import fsspec

    from tatok.pipeline.cluster.training import run_training

    config = load_training_config(recipe).model_copy(update={"output": f"s3://{s3_bucket}/training"})
    first_leg = config.model_copy(update={"stages": config.stages[:1]})
    lines: list[str] = []
    deadly = functools.partial(train_and_die_once, str(tmp_path / "died"))
    folder = run_training(first_leg, num_workers=2, say=lines.append, train=deadly)
    assert (tmp_path / "died").exists()
    assert folder == f"s3://{s3_bucket}/training/checkpoint"
    text = "\n".join(lines)
    assert "starting bases and codebooks" in text
    assert "workers failed (" in text
    assert "stage 1, step 3" in text  # where it went on
    assert text.count("stage joint step 4 ") == 2  # done again, and said again
    assert lines[-1] == f"checkpoint: {folder}"

    assert train(config, torch.device("cpu")) == folder  # the second stage, in this process
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    metrics = fs.cat_file(f"{s3_bucket}/training/metrics.jsonl").decode()
    assert steps_in(metrics) == [(stage, step) for stage in ("joint", "prior") for step in range(1, STEPS + 1)]
    assert len(fs.glob(f"{s3_bucket}/training/samples/*.png")) == 4
    started = Trainer(config.model_copy(update={"output": str(tmp_path / "next")}), torch.device("cpu"), folder)
    state = torch.load(fs.open(f"{s3_bucket}/training/state.pt"), weights_only=True)
    assert torch.equal(started.model.patch_quantizer.codebook_KC, state["average"]["tatok.patch_quantizer.codebook_KC"])


def refuse_on_one(marker: str, config: TrainingConfig, device: torch.device, **options: Any) -> str:
    """Worker 1 refuses, while worker 0 waits for it."""
    if rank() == 1:
        with open(marker, "a") as file:
            file.write("x")
        raise ConfigError("this photo is too beautiful")
    return train(config, device, **options)


def test_an_error_that_would_come_again_ends_the_run_at_once(recipe: Path, tmp_path: Path, local_ray: None) -> None:
    from tatok.pipeline.cluster.training import run_training

    refusal = functools.partial(refuse_on_one, str(tmp_path / "refusals"))
    with pytest.raises(ConfigError, match="too beautiful"):
        run_training(load_training_config(recipe), num_workers=2, say=lambda line: None, train=refusal)
    assert (tmp_path / "refusals").read_text() == "x"  # not started again


def test_what_cannot_be_done_is_said_before_anything_starts(recipe: Path, local_ray: None) -> None:
    from tatok.pipeline.cluster.training import run_training

    result = CliRunner().invoke(app, ["train", str(recipe), "--num-workers", "3"])
    assert result.exit_code == 1
    assert "batch_size of 4 images a step cannot be shared equally by 3 workers" in result.output
    config = load_training_config(recipe)
    stages = tuple(stage.model_copy(update={"batch_size": 64}) for stage in config.stages)
    many = config.model_copy(update={"stages": stages})
    with pytest.raises(ConfigError, match=r"64 workers need 64 CPUs, and this Ray has 4"):
        run_training(many, num_workers=64, device="cpu")
    with pytest.raises(ConfigError, match=r"2 workers need 2 GPUs, and this Ray has 0; .*--device cpu"):
        run_training(config, num_workers=2, device="cuda")


@pytest.mark.long  # what `make test` stops and resumes is training on one machine, and a worker that dies
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_driver_has_the_workers_save_their_step_and_the_same_command_goes_on(
    recipe: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    document = json.loads(recipe.read_text())
    document["save_every_steps"] = 1_000_000
    document["stages"] = [document["stages"][0] | {"steps": 100_000}]
    recipe.write_text(json.dumps(document))
    command = [sys.executable, "-m", "tatok.jobs.cli", "train", str(recipe), "--num-workers", "2", "--device", "cpu"]
    environment = os.environ | {"RAY_ADDRESS": "local", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("stage joint step 4 "):
            break
    process.send_signal(number)
    rest, _ = process.communicate(timeout=240)
    assert process.returncode == exit_code, "".join(printed) + rest
    assert "Traceback" not in rest
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] >= 4
    assert f"interrupted: saved at step {state['step']} of stage joint" in rest
    assert f"tatok train {recipe} --num-workers 2" in rest
    steps = steps_in((tmp_path / "run" / "metrics.jsonl").read_text())
    assert steps == [("joint", step) for step in range(1, state["num_records"] + 1)]
    assert state["num_records"] == state["step"] - bool(state["run"]["pending"]["num_steps"]), "no step is lost"
    assert len(state["run"]["stream"]["ranks"]) == 2
    assert Trainer(load_training_config(recipe), torch.device("cpu")).restore()


def stop_at_eight(config: TrainingConfig, device: torch.device, *, stop: Stop, **options: Any) -> str:
    """`train`, with a stop wished for on rank 0 in its eighth step, once."""
    step = Trainer.train_step

    def wishful_step(trainer: Trainer, pixels: torch.Tensor) -> dict[str, float]:
        if trainer.step == 7 and not trainer.folder.read("state.pt") and not rank():
            stop.request(signal.SIGTERM)
        return step(trainer, pixels)

    Trainer.train_step = wishful_step  # type: ignore[method-assign]  # in the worker's process
    try:
        return train(config, device, stop=stop, **options)
    finally:
        Trainer.train_step = step  # type: ignore[method-assign]


@pytest.mark.long
def test_two_workers_that_were_stopped_end_with_the_same_weights(recipe: Path, tmp_path: Path, local_ray: None) -> None:
    from tatok.pipeline.cluster.training import run_training

    base = load_training_config(recipe)
    stage = base.stages[0].model_copy(update={"steps": 12})
    update = {"stages": (stage,), "precision": "float32", "save_every_steps": 100}
    stopped = base.model_copy(update=update)
    whole = stopped.model_copy(update={"output": str(tmp_path / "whole")})
    lines: list[str] = []
    run_training(whole, num_workers=2, say=lines.append)
    with pytest.raises(Interrupted, match=r"saved at step 8 of stage joint"):
        run_training(stopped, num_workers=2, say=lines.append, train=stop_at_eight)
    run_training(stopped, num_workers=2, say=lines.append)
    states = [torch.load(Path(each.output) / "state.pt", weights_only=True) for each in (whole, stopped)]
    for part in ("modules", "average"):
        assert [name for name, value in states[0][part].items() if not torch.equal(value, states[1][part][name])] == []
    assert steps_in((tmp_path / "run" / "metrics.jsonl").read_text()) == [("joint", step) for step in range(1, 13)]
