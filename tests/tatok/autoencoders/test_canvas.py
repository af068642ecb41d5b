"""The canvas: pixels as they are, or latents by distances that speak of the picture."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tatok.autoencoders.canvas import LatentCanvas, PixelCanvas
from tatok.autoencoders.distances import channel_metric, moments, picture_metric
from tatok.autoencoders.frozen import AutoencoderChoice, FrozenAutoencoder, open_autoencoder
from tatok.schemas.errors import ConfigError
from tests.support.tiny_checkpoint import tiny_autoencoder

CPU = torch.device("cpu")


@pytest.fixture
def autoencoder(tmp_path: Path) -> FrozenAutoencoder:
    return open_autoencoder(AutoencoderChoice(autoencoder=tiny_autoencoder(tmp_path)), CPU)


def canvas_over(autoencoder: FrozenAutoencoder) -> LatentCanvas:
    canvas = LatentCanvas(autoencoder.space)
    canvas.attach(autoencoder)
    return canvas


def test_pixels_are_left_as_they_are() -> None:
    canvas, images = PixelCanvas(), torch.rand(2, 3, 8, 8)
    assert canvas.working(images) is images
    assert canvas.images(images) is images
    assert canvas.document() is None
    assert not canvas.state_dict()


def test_squared_lengths_on_the_canvas_are_the_metrics(autoencoder: FrozenAutoencoder) -> None:
    canvas = canvas_over(autoencoder)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    latents = autoencoder.encode(images)
    root = torch.randn(8, 8)
    metric = root @ root.T + 0.1 * torch.eye(8)
    canvas.start(latents.mean((0, 2, 3)), metric)
    working = canvas.working(images)
    differences = (latents[1:] - latents[:-1]).movedim(1, -1)
    expected = torch.einsum("...i,ij,...j->...", differences, metric, differences)
    assert torch.allclose((working[1:] - working[:-1]).square().sum(1), expected, rtol=1e-3, atol=1e-3)
    assert working.mean((0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(canvas.images(working), autoencoder.decode(latents), atol=1e-4)
    assert torch.equal(canvas.of_latents(latents), working)


def test_the_pictures_metric_tells_what_the_decoder_draws(autoencoder: FrozenAutoencoder) -> None:
    torch.manual_seed(0)
    latents = torch.randn(64, 8, 8, 8)
    metric = picture_metric(autoencoder, latents)
    assert torch.allclose(metric, torch.eye(8), atol=0.1)  # orthonormal directions: a latent's length is the picture's
    with torch.no_grad():
        autoencoder._network.directions[:, 2] *= 3  # type: ignore[union-attr, operator]
    weighed = picture_metric(autoencoder, latents)
    assert weighed[2, 2] == pytest.approx(9, rel=0.1)
    assert weighed[1, 1] == pytest.approx(1, rel=0.1)
    # Of autoencoders with few latents an image, too, where there is no inner part.
    assert picture_metric(autoencoder, latents[..., :2, :3]).shape == (8, 8)


def test_a_direction_that_draws_nothing_keeps_some_weight(autoencoder: FrozenAutoencoder) -> None:
    with torch.no_grad():
        autoencoder._network.directions[:, 5] = 0  # type: ignore[union-attr, operator]
    metric = picture_metric(autoencoder, torch.randn(16, 8, 8, 8))
    canvas = canvas_over(autoencoder)
    canvas.start(torch.zeros(8), metric)
    assert torch.allclose(canvas.to_AA @ canvas.from_AA, torch.eye(8), atol=1e-4)


def test_the_channels_metric_scales_each_to_one() -> None:
    latents = torch.randn(50, 3, 6, 6) * torch.tensor([1.0, 5.0, 0.2])[:, None, None] + 2
    mean, covariance = moments(latents.split(10))
    assert torch.allclose(mean, torch.full((3,), 2.0), atol=0.5)
    load = {"channels": 3, "factor": 8, "identity": "x", "encode": lambda x: x[..., ::8, ::8]}
    network = SimpleNamespace(**load, decode=lambda latents: latents.repeat(1, 1, 8, 8))
    canvas = canvas_over(FrozenAutoencoder(network, AutoencoderChoice(autoencoder="x")))
    canvas.start(mean, channel_metric(covariance))
    assert torch.allclose(canvas.of_latents(latents).std((0, 2, 3)), torch.ones(3), atol=0.01)


def test_the_autoencoder_is_neither_saved_nor_copied(autoencoder: FrozenAutoencoder) -> None:
    canvas = canvas_over(autoencoder)
    assert set(canvas.state_dict()) == {"mean_A", "to_AA", "from_AA", "tried_latents_Ahw", "tried_picture_3HW"}
    assert not list(canvas.parameters())
    twin = copy.deepcopy(canvas)
    assert twin.autoencoder is autoencoder
    assert twin.mean_A is not canvas.mean_A
    assert canvas.document() == {"autoencoder": autoencoder.choice.autoencoder, "options": {}}


def test_another_autoencoder_is_refused_and_named(autoencoder: FrozenAutoencoder) -> None:
    other = open_autoencoder(AutoencoderChoice(autoencoder=autoencoder.choice.autoencoder, options={"seed": 1}), CPU)
    canvas = LatentCanvas(autoencoder.space)
    with pytest.raises(ConfigError) as refused:
        canvas.attach(other)
    assert other.space.sha256[:16] in str(refused.value)
    assert autoencoder.space.sha256[:16] in str(refused.value)
    assert "config.json" in str(refused.value)


def test_equal_weights_under_changed_code_are_refused(autoencoder: FrozenAutoencoder, tmp_path: Path) -> None:
    canvas = canvas_over(autoencoder)
    canvas.start(torch.zeros(8), torch.eye(8))
    file = tmp_path / "my_autoencoder.py"
    own = file.read_text()

    def again(text: str) -> LatentCanvas:
        file.write_text(text)
        opened = open_autoencoder(AutoencoderChoice(autoencoder=f"{file}:load"), CPU)
        assert opened.space == autoencoder.space
        resumed = LatentCanvas(autoencoder.space)
        resumed.load_state_dict(canvas.state_dict())
        resumed.attach(opened)
        return resumed

    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(again(own + "# a remark").working(images), canvas.working(images))
    for line, changed in (
        ("F.pixel_unshuffle(images, 4))", "F.pixel_unshuffle(images, 4)) * 1.1"),
        ("latents), 4)", "latents), 4).flip(1)"),
    ):
        assert line in own
        with pytest.raises(ConfigError, match="code, its options or its libraries have changed"):
            again(own.replace(line, changed))
