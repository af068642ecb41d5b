"""The search for a threshold: ends of the range, several rounds on few and on many photos, and its cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tatok.evaluation import calibration
from tatok.evaluation.calibration import EncodedPhotos, calibrate, calibrated_sets
from tatok.model.dtf import DTFSettings
from tatok.schemas.errors import ConfigError
from tests.support.tiny_checkpoint import NUM_POSITIONS, tiny_images, tiny_tokenizer

ALL_SETTINGS = [
    DTFSettings(criterion="entropy", threshold_kind="residual_bits"),
    DTFSettings(criterion="entropy", threshold_kind="fraction"),
    DTFSettings(criterion="surprisal", threshold_kind="residual_bits"),
    DTFSettings(criterion="content", threshold_kind="distortion"),
    DTFSettings(criterion="residual", threshold_kind="distortion"),
    DTFSettings(criterion="distance", threshold_kind="distortion"),
]
every_kind = pytest.mark.parametrize(
    "settings", ALL_SETTINGS, ids=lambda settings: f"{settings.criterion}-{settings.threshold_kind}"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> EncodedPhotos:
    return EncodedPhotos(tiny_tokenizer(tmp_path_factory.mktemp("tiny")), tiny_images(48))


def encode_in_batches_of(num_images: int, photos: EncodedPhotos, monkeypatch: pytest.MonkeyPatch) -> EncodedPhotos:
    monkeypatch.setattr(calibration, "POSITIONS_A_BATCH", num_images * NUM_POSITIONS)
    return EncodedPhotos(photos.tokenizer, torch.cat(photos.pixels))


@every_kind
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_mean_is_met_and_the_sets_are_the_settings_own(
    photos: EncodedPhotos, settings: DTFSettings, rounds: int
) -> None:
    found, kept = calibrated_sets(photos, 24, replace(settings, rounds=rounds))
    assert found.mean_tokens == pytest.approx(24, abs=0.06)
    again = photos.filter(found.dtf)
    assert all(torch.equal(ours, theirs.kept_BN) for ours, theirs in zip(kept, again, strict=True))
    counts = photos.counts(found.dtf)
    assert (found.min_tokens, found.max_tokens) == (int(counts.min()), int(counts.max()))
    assert found.num_images == len(counts) == 48


@every_kind
def test_the_ends_of_the_range(photos: EncodedPhotos, settings: DTFSettings) -> None:
    for wanted in (4, 4 + NUM_POSITIONS):
        for rounds in (1, 3):
            found = calibrate(photos, wanted, replace(settings, rounds=rounds))
            assert (found.min_tokens, found.max_tokens) == (wanted, wanted)
    with pytest.raises(ConfigError, match="69 tokens cannot be the mean"):
        calibrate(photos, 69, settings)


def test_a_sample_serves_the_search(photos: EncodedPhotos, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many batches, most trials of several rounds look at a few of them, and the mean over all is still met."""
    many = encode_in_batches_of(2, photos, monkeypatch)
    assert len(many.full) == 24
    num_passes = 0
    estimate = many.tokenizer.estimate

    def counted(*arguments):
        nonlocal num_passes
        num_passes += 1
        return estimate(*arguments)

    monkeypatch.setattr(many.tokenizer, "estimate", counted)
    settings = DTFSettings(criterion="distance", threshold_kind="distortion", rounds=4)
    found = calibrate(many, 24, settings)
    assert found.mean_tokens == pytest.approx(24, abs=0.06)
    assert num_passes < 24 * 3 * 8  # 48 halvings over all batches would take 24 * 3 * 48


def test_a_mean_out_of_the_bounds_reach_is_approached(photos: EncodedPhotos) -> None:
    bounded = DTFSettings(criterion="distance", threshold_kind="distortion", rounds=2, max_tokens=20)
    assert calibrate(photos, 40, bounded).mean_tokens == 20


def test_batches_do_not_matter(photos: EncodedPhotos, monkeypatch: pytest.MonkeyPatch) -> None:
    small = encode_in_batches_of(7, photos, monkeypatch)
    assert [len(pixels) for pixels in small.pixels] == [7] * 6 + [6]
    settings = DTFSettings(criterion="distance", threshold_kind="distortion")
    assert calibrate(small, 24, settings).mean_tokens == pytest.approx(calibrate(photos, 24, settings).mean_tokens)


def test_no_photo_is_an_error(photos: EncodedPhotos) -> None:
    with pytest.raises(ConfigError, match="there is no photo"):
        EncodedPhotos(photos.tokenizer, [])
