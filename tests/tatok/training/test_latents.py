"""Training over a frozen autoencoder's latents, and the checkpoint that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tatok.autoencoders.canvas import LatentCanvas
from tatok.model.checkpoint import load_checkpoint, write_dtf
from tatok.model.pixels import to_float, to_pixels
from tatok.schemas.errors import ConfigError
from tatok.stopping import Interrupted
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.config import TrainingConfig, load_training_config
from tatok.training.run import train
from tatok.training.trainer import Trainer
from tests.support.places import ROOT
from tests.support.tiny_checkpoint import tiny_autoencoder, tiny_images, tiny_training_over_latents

CPU = torch.device("cpu")


@pytest.fixture
def source(photo_shards: Callable[..., str]) -> str:
    return photo_shards(num_shards=2, photos_per_shard=8)


@pytest.fixture
def config(source: str, tmp_path: Path) -> TrainingConfig:
    return tiny_training_over_latents(source, tmp_path)


def weights(output: str) -> dict[str, torch.Tensor]:
    return load_file(Path(output) / "checkpoint" / "model.safetensors")


def test_a_run_ends_with_a_tokenizer_over_the_autoencoder(config: TrainingConfig, tmp_path: Path) -> None:
    folder = Path(train(config, CPU, say=lambda line: None))
    document = json.loads((folder / "config.json").read_text())
    assert document["over"] == {"autoencoder": f"{tmp_path / 'my_autoencoder.py'}:load", "options": {}}
    assert document["model"]["latents"]["channels"] == 8
    assert "tatok.canvas.mean_A" in weights(config.output)
    assert not [name for name in weights(config.output) if "autoencoder" in name]
    records = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["drawn"] > 0
    assert records[-1]["psnr_full_db"] > 5

    tokenizer = Tokenizer.load(folder, device="cpu")
    assert (tokenizer.patch_size, tokenizer.num_global) == (8, 4)
    pixels = tiny_images(5, seed=3)
    sequences = tokenizer.encode(pixels)
    assert {tuple(sequence.grid) for sequence in sequences} == {(1, 4, 4)}
    rebuilt = tokenizer.decode(sequences)
    assert rebuilt.shape == pixels.shape
    for number in range(5):  # an image alone, and in a batch
        (alone,) = tokenizer.encode(pixels[number : number + 1])
        assert alone.codes.tolist() == sequences[number].codes.tolist()
        assert alone.positions.tolist() == sequences[number].positions.tolist()
    assert any(sequence.num_tokens < 4 + 16 for sequence in tokenizer.with_dtf(threshold=4.0).encode(pixels))
    with pytest.raises(ValueError, match="positive multiples of 8"):
        tokenizer.encode(pixels[..., :30])

    # At full rate it draws what its codes say of the latents; the autoencoder itself is the most it can reach.
    canvas = load_checkpoint(folder).model.canvas
    assert isinstance(canvas, LatentCanvas)
    assert canvas.to_AA.abs().sum() > 0
    images = to_float(pixels)
    errors = [
        float((shown.float() - pixels.float()).square().mean())
        for shown in (
            to_pixels(canvas.images(canvas.working(images))),
            tokenizer.decode(tokenizer.with_dtf(threshold=0.0).encode(pixels)),
        )
    ]
    assert errors[0] < errors[1] < float((pixels.float() - 128).square().mean())


def test_residuals_and_distances_are_those_of_latents(config: TrainingConfig) -> None:
    tokenizer = Tokenizer.load(train(config, CPU, say=lambda line: None), device="cpu")
    pixels = tiny_images(3, seed=4)
    full = tokenizer.full_rate(pixels)
    model = tokenizer._model
    working = model.canvas.working(to_float(pixels))
    assert working.shape == (3, 8, 8, 8)
    wanted = (model.patches(working) - full.base_BNP).square().sum(-1)
    assert torch.allclose(full.residual_BN, wanted, atol=1e-5)
    by_residual = tokenizer.with_dtf(replace(tokenizer.dtf, criterion="residual", threshold=1e-4))
    assert all(sequence.num_tokens == 4 + 16 for sequence in by_residual.encode(pixels))
    with pytest.raises(ConfigError, match=r"dtf\.texture_bits are of pixels"):
        by_residual.with_dtf(texture_bits=0.5)


def test_a_stopped_run_resumes_to_the_bit_without_encoding_again(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_training_over_latents(source, tmp_path)
    train(whole, CPU, say=lambda line: None)
    stopped = whole.model_copy(update={"output": str(tmp_path / "stopped")})
    steps: list[int] = []
    step = Trainer.train_step

    def stop_at_the_fifth(trainer: Trainer, pixels: torch.Tensor) -> dict[str, float]:
        if len(steps) == 5:
            raise Interrupted(15, "stopped")
        steps.append(trainer.step)
        return step(trainer, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop_at_the_fifth)
        with pytest.raises(Interrupted):
            train(stopped, CPU, say=lambda line: None)

    def refuse(trainer: Trainer, pixels: torch.Tensor) -> torch.Tensor:
        raise AssertionError("latents are made again")

    monkeypatch.setattr(Trainer, "latents", refuse)
    train(stopped, CPU, say=lambda line: None)
    first, second = weights(whole.output), weights(stopped.output)
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_without_kept_latents_every_step_encodes_its_own(source: str, tmp_path: Path) -> None:
    config = tiny_training_over_latents(source, tmp_path, num_cached_crops=0)
    config = config.model_copy(update={"stages": config.stages[:1]})
    Tokenizer.load(train(config, CPU, say=lambda line: None), device="cpu")
    assert not (Path(config.output) / "latents").exists()


def test_another_autoencoder_is_refused_where_it_is_changed(config: TrainingConfig, tmp_path: Path) -> None:
    folder = Path(train(config, CPU, say=lambda line: None))
    trained = load_checkpoint(folder)
    assert isinstance(trained.model.canvas, LatentCanvas)
    path = folder / "config.json"
    document = json.loads(path.read_text())
    before = Tokenizer.load(folder, device="cpu").fingerprint

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path.write_text(json.dumps({**document, "over": {"autoencoder": tiny_autoencoder(moved)}}))
    assert Tokenizer.load(folder, device="cpu").fingerprint == before  # the same weights in another place

    path.write_text(json.dumps({**document, "over": {**document["over"], "options": {"seed": 1}}}))
    with pytest.raises(ConfigError, match=trained.model.canvas.space.sha256[:16]):
        Tokenizer.load(folder, device="cpu")
    path.write_text(json.dumps({key: value for key, value in document.items() if key != "over"}))
    with pytest.raises(ConfigError, match="names no autoencoder"):
        Tokenizer.load(folder, device="cpu")
    path.write_text(json.dumps(document))
    write_dtf(folder, trained.dtf.with_threshold(7.0))
    assert json.loads(path.read_text())["over"] == document["over"]
    assert load_checkpoint(folder).dtf.threshold == 7.0


def test_clips_are_coded_frame_by_frame(config: TrainingConfig) -> None:
    tokenizer = Tokenizer.load(train(config, CPU, say=lambda line: None), device="cpu")
    clips = tiny_images(6, seed=5).unflatten(0, (2, 3))
    sequences = tokenizer.encode_clips(clips)
    assert tokenizer.decode_clips(sequences).shape == clips.shape
    frames = tokenizer.encode(clips[0])
    assert sequences[0].num_tokens == sum(frame.num_tokens for frame in frames)
    with pytest.raises(ConfigError, match="frame by frame"):
        tokenizer.with_dtf(replace(tokenizer.dtf, temporal=True)).encode_clips(clips)


def test_the_bundled_recipe_is_valid(tmp_path: Path) -> None:
    recipe = load_training_config(ROOT / "examples" / "train-latents-256.yaml")
    assert recipe.latents is not None
    own = recipe.latents.model_copy(update={"autoencoder": tiny_autoencoder(tmp_path), "autoencoder_options": {}})
    trainer = Trainer(recipe.model_copy(update={"latents": own, "output": str(tmp_path)}), CPU)
    assert trainer.model.config.patch_pixels == 8 * 4 * 4


def test_the_bundled_checkpoint_knows_nothing_of_latents() -> None:
    checkpoint = load_checkpoint()
    assert not [name for name in checkpoint.model.state_dict() if name.startswith("canvas")]
    assert "latents" not in checkpoint.model.config.document()


def changed(config: TrainingConfig, **changes: Any) -> dict[str, Any]:
    document = config.model_dump(exclude_unset=True)
    for key, value in changes.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    return document


def stage(**values: Any) -> list[dict[str, Any]]:
    return [{"name": "one", "train": ["tokenizer"], "steps": 1, "image_size": 32, **values}]


WRONG = {
    "temporal": ({"dtf": {"temporal": True}}, "temporal: false"),
    "texture": ({"dtf": {"texture_bits": 0.5}}, "texture_bits are of pixels"),
    "clips": ({"stages": stage(num_frames=3)}, "train on images"),
    "crops by the stage": ({"stages": stage(smallest_crop=0.5)}, "latents.smallest_crop"),
    "pixels in memory": ({"photos_in_memory": True}, "num_cached_crops"),
    "drawn without latents": ({"latents": None, "stages": stage(drawn_weight=1.0)}, "for models of latents"),
}


@pytest.mark.parametrize("name", WRONG)
def test_recipes_that_contradict_themselves_are_refused(name: str, config: TrainingConfig) -> None:
    changes, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        TrainingConfig.model_validate(changed(config, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": stage(image_size=30)}, "image_size is 30.*4 pixels of a latent"),
        ({"model": {"patch_size": 6}}, "patch_size is 6.*4 pixels of a latent"),
        ({"model": {"has_stem": True}}, "power of two from 4 latents of 4 pixels"),
    ],
)
def test_sizes_are_whole_latents(changes: dict[str, Any], said: str, config: TrainingConfig) -> None:
    wrong = TrainingConfig.model_validate(changed(config, **changes))
    with pytest.raises(ConfigError, match=said):
        Trainer(wrong, CPU)


def test_convolutions_work_on_latents_too(config: TrainingConfig) -> None:
    model = {**changed(config)["model"], "patch_size": 16, "has_stem": True, "pixel_width": 8, "num_global": 4}
    whole = TrainingConfig.model_validate(changed(config, model=model))
    tokenizer = Tokenizer.load(train(whole, CPU, say=lambda line: None), device="cpu")
    pixels = tiny_images(2)
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


def test_an_autoencoder_that_is_another_by_now_cannot_resume(config: TrainingConfig, tmp_path: Path) -> None:
    train(config.model_copy(update={"stages": config.stages[:1]}), CPU, say=lambda line: None)
    assert config.latents is not None
    other = config.latents.model_copy(update={"autoencoder_options": {"seed": 1}})
    with pytest.raises(ConfigError, match="another autoencoder"):
        train(config.model_copy(update={"latents": other}), CPU, say=lambda line: None)
