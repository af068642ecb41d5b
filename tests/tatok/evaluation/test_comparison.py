"""Scores of policies on a tiny tokenizer: figures against their definitions, and figures left out, not made up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.comparison import PolicyScore, evaluate
from tatok.evaluation.complexity import png_bytes
from tatok.evaluation.distances import ImageFeatures
from tatok.evaluation.policies import Policy, standard_policies
from tatok.model.dtf import DTFSettings
from tatok.schemas.errors import ConfigError
from tests.support.tiny_checkpoint import NUM_POSITIONS, tiny_images, tiny_tokenizer

NUM_IMAGES = 60
SHIPPED = DTFSettings(criterion="distance", threshold_kind="distortion")


class Quadrants(nn.Module):
    """Twelve features: the means of the colours of each quarter of an image."""

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels_B3HW.float() / 255, 2).flatten(1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> EncodedPhotos:
    return EncodedPhotos(tiny_tokenizer(tmp_path_factory.mktemp("tiny")), tiny_images(NUM_IMAGES))


@pytest.fixture(scope="module")
def policies() -> list[Policy]:
    return standard_policies(SHIPPED, 4, 24, patterns=["full rate", "DTF distance", "random", "globals only"])


@pytest.fixture(scope="module")
def scores(photos: EncodedPhotos, policies: list[Policy]) -> dict[str, PolicyScore]:
    features = ImageFeatures(Quadrants(), photos.pixels)
    return {score.name: score for score in evaluate(photos, policies, features=features)}


def test_figures_of_pixels_are_as_defined(photos: EncodedPhotos, scores: dict[str, PolicyScore]) -> None:
    pixels = torch.cat(photos.pixels)
    everything = [torch.ones_like(full.codes.patch_BN, dtype=torch.bool) for full in photos.full]
    rebuilt = torch.cat([photos.tokenizer.rebuild(f, k) for f, k in zip(photos.full, everything, strict=True)])
    errors = ((rebuilt.double() - pixels.double()) / 255).square().mean((1, 2, 3))
    score = scores["full rate"]
    assert score.num_images == NUM_IMAGES
    assert score.psnr_db == pytest.approx(float(-10 * errors.log10().mean()))
    assert score.psnr_of_mean_db == pytest.approx(float(-10 * errors.mean().log10()))
    ssim = structural_similarity_index_measure(rebuilt.float(), pixels.float(), data_range=255.0)
    assert score.ssim == pytest.approx(float(ssim), abs=1e-4)
    assert 0 < score.ssim < 1


def test_bits_with_and_without_positions(scores: dict[str, PolicyScore]) -> None:
    assert scores["full rate"].bits == scores["full rate"].bits_with_positions == (4 + NUM_POSITIONS) * 6
    assert scores["globals only"].bits_with_positions == 4 * 6
    assert scores["random"].bits == 24 * 6
    assert scores["random"].bits_with_positions == pytest.approx(24 * 6 + math.log2(math.comb(64, 20)))


def test_more_tokens_are_better_in_every_figure(scores: dict[str, PolicyScore]) -> None:
    few, some, all_ = (scores[name] for name in ("globals only", "DTF distance", "full rate"))
    assert few.psnr_db < some.psnr_db < all_.psnr_db
    assert few.ssim is not None
    assert all_.ssim is not None
    assert few.ssim < all_.ssim
    assert few.perceptual_milli > all_.perceptual_milli > 0
    assert few.frechet is not None
    assert all_.frechet is not None
    assert few.frechet > all_.frechet > 0
    assert few.kernel_std is not None
    assert few.kernel_std > 0


def test_counts_and_quality_by_complexity(photos: EncodedPhotos, scores: dict[str, PolicyScore]) -> None:
    sizes = torch.tensor(png_bytes(image for pixels in photos.pixels for image in pixels))
    ranks = sizes.argsort(stable=True).argsort(stable=True)

    def by_size(_: EncodedPhotos) -> list[Tensor]:
        return [torch.arange(NUM_POSITIONS) < ranks[:, None]]  # 0 patches of the smallest PNG, 59 of the largest

    (score,) = evaluate(photos, [Policy(name="by size", choose=by_size, needs_positions=True)])
    assert score.count_correlation == pytest.approx(1, abs=1e-3)  # but for equal sizes
    assert [quartile.mean_tokens for quartile in score.quartiles] == [4 + 7, 4 + 22, 4 + 37, 4 + 52]
    ascending = sizes.double().sort().values.view(4, 15).mean(1)
    assert [quartile.mean_png_bytes for quartile in score.quartiles] == pytest.approx(ascending.tolist())
    assert scores["random"].count_correlation is None
    for score in scores.values():
        assert sum(quartile.mean_psnr_db for quartile in score.quartiles) / 4 == pytest.approx(score.psnr_db)
        assert sum(quartile.mean_tokens for quartile in score.quartiles) / 4 == pytest.approx(score.mean_tokens)


def test_what_cannot_be_known_is_left_out(photos: EncodedPhotos, policies: list[Policy], tmp_path: Path) -> None:
    (without,) = evaluate(photos, policies[:1])
    assert (without.kernel, without.kernel_std, without.frechet) == (None, None, None)
    few = EncodedPhotos(photos.tokenizer, tiny_images(49))
    (score,) = evaluate(few, policies[:1], features=ImageFeatures(Quadrants(), few.pixels))
    assert (score.kernel, score.kernel_std, score.frechet) == (None, None, None)
    wide = ImageFeatures(nn.Flatten(), (pixels.float() / 255 for pixels in photos.pixels))
    wide.extract = lambda pixels: pixels.float().flatten(1) / 255  # type: ignore[method-assign]
    (score,) = evaluate(photos, policies[:1], features=wide)
    assert score.kernel is not None
    assert score.frechet is None  # 3,072 features of 60 images
    small = EncodedPhotos(photos.tokenizer, tiny_images(3, side=8))
    (score,) = evaluate(small, policies[:1])
    assert score.ssim is None
    assert score.quartiles == ()


def test_features_of_other_photos_are_refused(photos: EncodedPhotos, policies: list[Policy]) -> None:
    with pytest.raises(ConfigError, match="features are of 10 images, but there are 60 photos"):
        evaluate(photos, policies, features=ImageFeatures(Quadrants(), [tiny_images(10)]))
    shuffled = ImageFeatures(Quadrants(), [torch.cat(photos.pixels).flip(0)])
    with pytest.raises(ConfigError, match="of other images than the photos, or in another order"):
        evaluate(photos, policies, features=shuffled)


def test_missing_torchmetrics_is_explained(
    photos: EncodedPhotos, policies: list[Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.functional.image", None)
    with pytest.raises(ConfigError, match=r"pip install 'tatok\[eval\]'"):
        evaluate(photos, policies[:1])
