"""calibrate, and eval with every policy, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.model.checkpoint import default_checkpoint
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.config import TrainingConfig
from tatok.training.photos import centre_crops, expand_sources
from tatok.training.run import train
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_training


@pytest.fixture
def config(photo_shards: Callable[..., str], tmp_path: Path) -> TrainingConfig:
    return tiny_training(photo_shards(num_shards=2, photos_per_shard=8), tmp_path)


def test_calibrate_and_eval_from_the_command_line(config: TrainingConfig) -> None:
    folder = train(config.model_copy(update={"stages": config.stages[:2]}), torch.device("cpu"))
    photos = list(config.photos)
    options = ["--checkpoint", str(folder), "--image-size", "32"]
    runner = CliRunner()
    for criterion in ("entropy", "surprisal", "content", "distance"):
        found = runner.invoke(
            app, ["calibrate", *photos, "--tokens", "10", "--criterion", criterion, "--write", *options]
        )
        assert found.exit_code == 0, found.output
        tokenizer = Tokenizer.load(folder, device="cpu")
        assert tokenizer.dtf.criterion == criterion
        pixels = torch.stack(list(centre_crops(expand_sources(photos), 32)))
        counts = [s.num_tokens for s in tokenizer.encode(pixels)]
        assert sum(counts) / len(counts) == pytest.approx(10, abs=0.2)
    result = runner.invoke(app, ["eval", *photos, "--all", "--tokens", "10", "--json", "--no-distances", *options])
    assert result.exit_code == 0, result.output
    scores = {s["name"]: s for s in json.loads(result.stdout)["scores"]}
    assert scores["full rate"]["mean_tokens"] == 20
    assert scores["globals only"]["mean_tokens"] == 4
    compared = [s for name, s in scores.items() if name not in ("full rate", "globals only", "uniform grid")]
    assert all(s["mean_tokens"] == pytest.approx(10, abs=0.2) for s in compared)
    assert scores["random"]["bits_with_positions"] > scores["random"]["bits"]
    impossible = runner.invoke(app, ["calibrate", *photos, "--tokens", "3", *options])
    assert impossible.exit_code == 1
    assert "every image has 4 global tokens" in impossible.output


def test_the_bundled_checkpoint_is_not_written_to() -> None:
    before = (default_checkpoint() / "config.json").read_bytes()
    refused = CliRunner().invoke(app, ["calibrate", "no-photos.tar", "--tokens", "56", "--write"])
    assert refused.exit_code == 1
    assert "a part of the installation" in " ".join(refused.output.split())
    assert f"remedy: copy {default_checkpoint()} to a folder of your own" in " ".join(refused.output.split())
    assert (default_checkpoint() / "config.json").read_bytes() == before


def test_a_url_cannot_be_rewritten() -> None:
    result = CliRunner().invoke(
        app, ["calibrate", "photos.tar", "--tokens", "56", "--write", "--checkpoint", "s3://bucket/checkpoint"]
    )
    assert result.exit_code == 1
    assert "s3://bucket/checkpoint is a URL" in result.output


def test_a_checkpoint_that_cannot_be_written_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoint")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write whatever it likes
    result = CliRunner().invoke(
        app, ["calibrate", "no-photos.tar", "--tokens", "9", "--write", "--checkpoint", str(folder)]
    )
    assert result.exit_code == 1
    assert f"--write changes {folder}/config.json, which you may not write" in " ".join(result.output.split())
