"""Adapting a small frozen tokenizer: what is trained, what is refused, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tatok.adaptation.losses import AdaptationLosses
from tatok.adaptation.run import adapt, training_config
from tatok.adaptation.settings import AdaptationConfig
from tatok.adaptation.trainer import AdaptationTrainer
from tatok.evaluation.calibration import EncodedPhotos, calibrate
from tatok.frozen.model import AdaptedTaTok
from tatok.model.pixels import to_float
from tatok.schemas.errors import ConfigError
from tatok.schemas.settings import validated
from tatok.stopping import Interrupted, Stop
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.run import train
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_images
from tests.support.tokenizers.mosaic import NAME, load, mosaic_models

CPU = torch.device("cpu")
STAGE = {"steps": 4, "batch_size": 4, "image_size": 32, "warmup_steps": 1, "learning_rate": 1e-3}


def settings(photos: str, output: Path, **changes: Any) -> AdaptationConfig:
    document = {
        "tokenizer": NAME,
        "output": str(output),
        "photos": [photos],
        "heldout": [photos],
        "num_heldout": 4,
        "num_loader_workers": 0,
        "num_start_crops": 8,
        "log_every_steps": 2,
        "save_every_steps": 2,
        "model": {"num_global": 4, "width": 32, "num_heads": 2, "num_trunk_layers": 1, "num_base_layers": 1,
                  "num_prior_layers": 1},
        "stages": [
            STAGE | {"name": "globals", "train": ["tokenizer"]},
            STAGE | {"name": "prior", "train": ["prior"]},
            STAGE | {"name": "both", "train": ["tokenizer", "prior"]},
        ],
    }  # fmt: skip
    return validated(AdaptationConfig, {**document, **changes}, origin="the test")


@pytest.fixture
def photos(photo_shards: Callable[..., str]) -> str:
    return photo_shards(num_shards=1, photos_per_shard=8)


def test_stages_write_figures_and_a_checkpoint_that_is_a_tokenizer(photos: str, tmp_path: Path) -> None:
    folder = adapt(settings(photos, tmp_path / "run"), CPU)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in records] == ["globals"] * 2 + ["prior"] * 2 + ["both"] * 2
    terms = [{"base", "commitment", "prior"} & record.keys() for record in records[::2]]
    assert terms == [{"base", "commitment"}, {"prior"}, {"base", "commitment", "prior"}]
    tokenizer, pixels = Tokenizer.load(folder, "cpu"), tiny_images(8)
    document = json.loads((Path(folder) / "config.json").read_text())
    assert document["model"]["over"]["identity"]["identity"] == "mosaic of May"
    encoded = EncodedPhotos(tokenizer, pixels)
    found = calibrate(encoded, 30, tokenizer.dtf)
    assert found.mean_tokens == pytest.approx(30, abs=0.5)
    sequences = tokenizer.with_dtf(found.dtf).encode(pixels)
    assert len({len(sequence.codes) for sequence in sequences}) > 1
    assert tokenizer.decode(sequences).shape == pixels.shape
    codes = load("cpu").encode(pixels).flatten(1)
    assert torch.equal(torch.cat([full.codes.patch_BN for full in encoded.full]), codes)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(photos: str, tmp_path: Path) -> None:
    whole = Path(adapt(settings(photos, tmp_path / "whole"), CPU))
    recipe = training_config(settings(photos, tmp_path / "stopped"))
    stop = Stop()

    def say(line: str) -> None:
        if line.startswith("stage prior step 2"):
            stop.request(2)

    with pytest.raises(Interrupted):
        train(recipe, CPU, say=say, stop=stop, trainer=AdaptationTrainer)
    resumed = Path(train(recipe, CPU, say=lambda line: None, trainer=AdaptationTrainer))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_another_run_starts_from_an_adapted_checkpoint_and_from_no_other(photos: str, tmp_path: Path) -> None:
    stages = [STAGE | {"name": "prior", "train": ["prior"], "steps": 2}]
    first = adapt(settings(photos, tmp_path / "first", stages=stages), CPU)
    before = Tokenizer.load(first, "cpu").full_rate(tiny_images(2))
    second = adapt(settings(photos, tmp_path / "second", stages=stages), CPU, start_from=first)
    after = Tokenizer.load(second, "cpu").full_rate(tiny_images(2))
    assert torch.equal(before.codes.global_BM, after.codes.global_BM)
    plain = str(tiny_checkpoint(tmp_path / "plain"))
    with pytest.raises(ConfigError, match="not over a frozen tokenizer"):
        adapt(settings(photos, tmp_path / "third", stages=stages), CPU, start_from=plain)


def test_a_vq_model_of_diffusers_is_adapted_by_its_short_name(photos: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "latent_channels": 4, "num_vq_embeddings": 32}
    diffusers.VQModel(**sizes, **blocks).save_pretrained(tmp_path / "vq")
    named = {"tokenizer": "diffusers", "tokenizer_options": {"path": str(tmp_path / "vq")}}
    stages = [STAGE | {"name": "both", "train": ["tokenizer", "prior"], "steps": 2}]
    folder = adapt(settings(photos, tmp_path / "run", stages=stages, **named), CPU)
    tokenizer, pixels = Tokenizer.load(folder, "cpu"), tiny_images(3)
    assert (tokenizer.patch_size, tokenizer.vocab_size, tokenizer.num_global) == (4, 32, 4)
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


def test_globals_learn_from_the_prior_only_where_both_are_trained() -> None:
    model, prior = mosaic_models()
    assert isinstance(model, AdaptedTaTok)
    losses = AdaptationLosses(model=model, prior=prior, dtf=settings("x.tar", Path("run")).dtf)
    codes = model.canvas.working(to_float(tiny_images(4)))
    for parts, learns in ((("prior",), False), (("tokenizer", "prior"), True)):
        stage = settings("x.tar", Path("run")).stages[1].model_copy(update={"train": parts})
        model.zero_grad()
        losses.of_images(codes, stage)["prior"].backward()
        assert (model.encoder.queries_MD.grad is not None) == learns
        assert prior.hidden_D.grad is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"patch_size": 8}}, "model.patch_size is the frozen tokenizer's"),
        ({"model": {"has_stem": True}}, "model.has_stem"),
        ({"dtf": {"criterion": "entropy"}}, "temporal: false"),
        (
            {"dtf": {"criterion": "distance", "threshold_kind": "distortion", "temporal": False, "texture_bits": 0.5}},
            "texture_bits are of pixels",
        ),
        ({"stages": [STAGE | {"name": "late", "train": ["decoder"]}]}, "stage late: the decoder is the frozen"),
        ({"stages": [STAGE | {"name": "c", "train": ["prior"], "num_frames": 2}]}, "clips are single frames"),
        ({"model": {"num_global": 0}, "stages": [STAGE | {"name": "g", "train": ["tokenizer"]}]}, "num_global is 0"),
        ({"latents": {"autoencoder": "mine:load"}}, "latents are of `tatok train`"),
        ({"tokeniser": NAME}, "did you mean tokenizer"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings("x.tar", Path("run"), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": [STAGE | {"name": "odd", "train": ["prior"], "image_size": 30}]}, "stage odd.*multiple of 4"),
        ({"tokenizer": "tests.support.tokenizers.own:load"}, "has no embed"),
        ({"tokenizer": "no_such_module:load"}, "no_such_module"),
        ({"tokenizer_options": {"colour": "red"}}, "colour"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_before_training(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        training_config(settings("x.tar", Path("run"), **changes))


def test_without_stages_there_are_the_usual_ones_of_the_size_asked_for() -> None:
    recipe = training_config(settings("x.tar", Path("run"), stages=[], image_size=64))
    assert [(stage.train, stage.image_size) for stage in recipe.stages] == [(("tokenizer",), 64), (("prior",), 64)]
    bare = training_config(settings("x.tar", Path("run"), stages=[], image_size=64, model={"num_global": 0}))
    assert [stage.train for stage in bare.stages] == [("prior",)]
