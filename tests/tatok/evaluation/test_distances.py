"""Distances between sets of images: known values, what they must not depend on, networks of the user's, refusals."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import poly_kernel

from tatok.evaluation.distances import SMALLEST_SET, ImageFeatures, image_distances, load_features
from tatok.model.pixels import in_batches
from tatok.schemas.errors import ConfigError
from tests.support.tiny_checkpoint import tiny_images


def features_of(rows_NF: Tensor) -> ImageFeatures:
    """Features that are given, not computed."""
    return ImageFeatures(nn.Identity(), rows_NF.split(256))


def normal(num: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_of_known_gaussians() -> None:
    shift = torch.tensor([3.0, 0, 0, 0, 0, 0])
    found = features_of(normal(3000)).distances(2 * normal(3000, seed=1) + shift)
    assert found.frechet == pytest.approx(9 + 6 * (2 - 1) ** 2, rel=0.06)  # |mean|^2 + sum of (difference of stds)^2
    assert (found.num_references, found.num_images, found.num_features) == (3000, 3000, 6)


def test_two_draws_of_one_distribution_are_near_and_a_shifted_one_is_far() -> None:
    reference = features_of(normal(300))
    same = reference.distances(normal(300, seed=1))
    near, far = (reference.distances(normal(300, seed=1) + shift) for shift in (0.3, 0.6))
    assert abs(same.kernel) < same.kernel_std < near.kernel < far.kernel
    assert same.frechet is not None
    assert near.frechet is not None
    assert same.frechet < near.frechet / 3


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    x, y = normal(300), normal(260, seed=1) * 1.3
    k_xx, k_yy, k_xy = poly_kernel(x, x), poly_kernel(y, y), poly_kernel(x, y)
    off_diagonal = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (k_xx, k_yy)]
    exact = float(off_diagonal[0] + off_diagonal[1] - 2 * k_xy.mean())
    found = features_of(x).distances(y)
    assert found.kernel == pytest.approx(exact, abs=4 * found.kernel_std / 10)  # 100 subsets
    assert found.kernel_std > 0


def test_a_photo_is_not_compared_with_its_own_rebuild() -> None:
    """Unpaired, photos against themselves come out nearer than other photos of the same kind: below zero."""
    rows = normal(60, dim=20)
    unpaired, paired = features_of(rows).distances(rows), features_of(rows).distances(rows, paired=True)
    others = [features_of(normal(60, 20, seed=s)).distances(normal(60, 20, seed=-s - 1)).kernel for s in range(6)]
    typical = torch.tensor(others)
    assert unpaired.kernel < paired.kernel
    assert abs(paired.kernel - float(typical.mean())) < 3 * float(typical.std())
    with pytest.raises(ValueError, match="70 images cannot be pairs of 60"):
        features_of(rows).distances(normal(70, dim=20), paired=True)


def test_a_distance_repeats_and_leaves_other_random_numbers_alone() -> None:
    reference, images = features_of(normal(100)), normal(100, seed=1)
    before = torch.get_rng_state()
    assert reference.distances(images) == reference.distances(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert reference.distances(images).kernel != reference.distances(images, seed=1).kernel


def test_no_frechet_distance_without_more_images_than_features() -> None:
    assert features_of(normal(100, dim=100)).distances(normal(101, dim=100)).frechet is None
    assert features_of(normal(101, dim=100)).distances(normal(101, dim=100)).frechet is not None


def test_small_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match="a set of 49 images is too small for a distance; give 50 or more"):
        features_of(normal(SMALLEST_SET)).distances(normal(SMALLEST_SET - 1))
    with pytest.raises(ConfigError, match="there is no image"):
        image_distances([], [tiny_images(2)], nn.Identity())
    with pytest.raises(ConfigError, match="device is 'nowhere'"):
        image_distances([], [], nn.Identity(), device="nowhere")


def test_missing_torchmetrics_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.kid", None)
    with pytest.raises(ConfigError, match=r"pip install 'tatok\[eval\]'"):
        features_of(normal(60)).distances(normal(60))


# --- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet", "efficientnet"])
def test_pooled_features_of_an_installed_network(name: str) -> None:
    network = load_features(name)
    images = tiny_images(6)
    with torch.inference_mode():
        features = network(images)
        alone = torch.cat([network(image[None]) for image in images])
        large = network(tiny_images(1, side=80))
    assert features.shape == (6, network.num_features)
    assert large.shape == (1, network.num_features)
    assert features.dtype == torch.float32
    assert torch.allclose(features, alone, atol=1e-4)
    assert float((features[0] - features[1]).abs().max()) > 0.01


def test_damage_is_seen_by_a_network() -> None:
    images = tiny_images(120)
    kind, darker = images[1::2], (images[1::2].float() * 0.6).byte()
    reference = ImageFeatures(load_features("mobilenet"), in_batches(images[::2], 32))
    good, bad = (reference.distances(reference.extract(i)) for i in (kind, darker))
    assert good.kernel < bad.kernel


class Means(nn.Module):
    """A stand-in for the published Inception, whose probabilities come by default and features when asked for."""

    def forward(self, img: Tensor, use_fp16: bool = False, return_features: bool = False) -> Tensor:
        features = img.float().flatten(2).mean(2)
        return features if return_features else torch.softmax(features, dim=1)


@pytest.fixture
def torch_script(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; published weights still come in it
        torch.jit.script(Means()).save(tmp_path / "means.pt")
        torch.jit.trace(nn.Flatten(2), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).save(tmp_path / "flat.pt")
    return tmp_path / "means.pt"


def test_a_torch_script_file_gives_its_features(torch_script: Path) -> None:
    network = load_features(str(torch_script))
    images = tiny_images(60)
    assert network.num_features == 3
    assert torch.allclose(network(images), images.float().mean((2, 3)))
    found = image_distances(in_batches(images, 32), in_batches(images.flip(3), 16), network)
    assert found.frechet == pytest.approx(0, abs=1e-3)  # a mirror image has the same means
    other = load_features(str(torch_script.with_name("flat.pt")))  # its forward has no option
    assert other(images[:1]).shape == (1, 3 * 32 * 32)


def test_a_file_that_is_no_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"junk.pt is not a TorchScript network"):
        load_features(str(tmp_path / "junk.pt"))
    with pytest.raises(ConfigError, match="give mobilenet, efficientnet or the path"):
        load_features(str(tmp_path / "absent.pt"))
