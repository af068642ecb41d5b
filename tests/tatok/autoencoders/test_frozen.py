"""Frozen autoencoders: named, loaded, hashed, tried, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tatok.autoencoders.frozen import AutoencoderChoice, FrozenAutoencoder, open_autoencoder
from tatok.schemas.errors import ConfigError
from tests.support.tiny_checkpoint import tiny_autoencoder

CPU = torch.device("cpu")


def opened(folder: Path, **options: Any) -> FrozenAutoencoder:
    return open_autoencoder(AutoencoderChoice(autoencoder=tiny_autoencoder(folder), options=options), CPU)


def test_a_users_file_is_loaded_and_frozen(tmp_path: Path) -> None:
    autoencoder = opened(tmp_path)
    assert (autoencoder.space.channels, autoencoder.space.factor) == (8, 4)
    images = torch.rand(3, 3, 16, 24) * 2 - 1
    latents = autoencoder.encode(images)
    assert latents.shape == (3, 8, 4, 6)
    assert not latents.requires_grad
    assert autoencoder.decode(latents).shape == images.shape
    for alone in range(3):  # an image's latents do not depend on its batch, to the bit
        assert torch.equal(autoencoder.encode(images[alone : alone + 1])[0], latents[alone])
    assert autoencoder.encode(images[:0]).shape == (0, 8, 4, 6)


def test_gradients_pass_through_the_decoder_and_reach_no_weight(tmp_path: Path) -> None:
    autoencoder = opened(tmp_path)
    latents = torch.zeros(2, 8, 2, 2, requires_grad=True)
    autoencoder.decode(latents).square().mean().backward()
    assert latents.grad is not None
    assert all(each.grad is None for each in autoencoder._network.parameters())


def test_the_identity_is_that_of_the_weights_whatever_their_type(tmp_path: Path) -> None:
    first, again, other = opened(tmp_path), opened(tmp_path), opened(tmp_path, seed=1)
    assert first.space == again.space
    assert first.space.sha256 != other.space.sha256
    choice = AutoencoderChoice(autoencoder="x")
    half, single = nn.Conv2d(3, 2, 4, stride=4), nn.Conv2d(3, 2, 4, stride=4)
    single.load_state_dict(half.half().state_dict())
    for network in (half, single):
        network.channels, network.factor = 2, 4
    assert FrozenAutoencoder(half, choice).space == FrozenAutoencoder(single, choice).space
    single.identity = "encodes twice as bright since May"  # which the weights do not say
    assert FrozenAutoencoder(half, choice).space != FrozenAutoencoder(single, choice).space


def without(**members: Any) -> Callable[..., Any]:
    whole = {
        "channels": 2,
        "factor": 4,
        "identity": "mine",
        "encode": lambda images: images[:, :2, ::4, ::4],
        "decode": lambda latents: latents.mean(1, keepdim=True).repeat(1, 3, 4, 4),
    }
    return lambda device: SimpleNamespace(**{name: value for name, value in (whole | members).items() if value})


BROKEN = {
    "no factor": (without(factor=None), "has no factor"),
    "no encode": (without(encode=None), "has no encode"),
    "no identity": (without(identity=None), "without `identity`"),
    "too few latents": (without(encode=lambda images: images[:, :2, ::8, ::8]), r"makes latents \[1, 2, 2, 2\]"),
    "other channels": (without(channels=5), "expected \\[1, 5, 4, 4\\]"),
    "an error": (without(encode=lambda images: images[:, 7]), "fails on an image of 16x16.*IndexError"),
    "small pictures": (without(decode=lambda latents: latents.repeat(1, 2, 1, 1)[:, :3]), "draws images"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load, said = BROKEN[name]
    monkeypatch.setitem(globals(), "broken", load)
    with pytest.raises(ConfigError, match=said):
        open_autoencoder(AutoencoderChoice(autoencoder=f"{__name__}:broken"), CPU)


def test_one_that_fits_without_being_a_module() -> None:
    globals()["fine"] = without()
    autoencoder = open_autoencoder(AutoencoderChoice(autoencoder=f"{__name__}:fine"), CPU)
    assert len(autoencoder.space.sha256) == 64


def test_errors_of_the_users_function_name_it_and_its_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"my_autoencoder.py:load with options \{'sede': 1\} cannot be loaded.*sede"):
        opened(tmp_path, sede=1)
    with pytest.raises(ConfigError, match="module:function"):
        open_autoencoder(AutoencoderChoice(autoencoder="nothing"), CPU)


def test_a_choice_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_autoencoder(tmp_path)
    monkeypatch.chdir(tmp_path)
    choice = AutoencoderChoice(autoencoder="my_autoencoder.py:load", options={"path": ".", "name": "of nothing"})
    placed = choice.from_anywhere()
    assert placed.autoencoder == f"{tmp_path}/my_autoencoder.py:load"
    assert placed.options == {"path": str(tmp_path), "name": "of nothing"}
    assert AutoencoderChoice(autoencoder="diffusers").from_anywhere() == AutoencoderChoice(autoencoder="diffusers")
