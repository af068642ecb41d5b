"""The bundled checkpoint on held-out photos: DTF beats random and uniform-grid kept sets at equal tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tatok import Tokenizer
from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.comparison import PolicyScore, evaluate
from tatok.evaluation.policies import standard_policies
from tatok.training.photos import centre_crops

NUM_PHOTOS = 16
MEAN_TOKENS = 56


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(device="cpu")


@pytest.fixture(scope="module")
def photos(corpus: Path, tokenizer: Tokenizer) -> EncodedPhotos:
    return EncodedPhotos(tokenizer, centre_crops([str(corpus / "photos-heldout-0000.tar")], 256, NUM_PHOTOS))


@pytest.fixture(scope="module")
def scores(tokenizer: Tokenizer, photos: EncodedPhotos) -> dict[str, PolicyScore]:
    patterns = ["full rate", "DTF as shipped*", "random", "uniform grid", "globals only"]
    policies = standard_policies(tokenizer.dtf, tokenizer.num_global, MEAN_TOKENS, patterns=patterns)
    return {score.name: score for score in evaluate(photos, policies)}


@pytest.mark.corpus
def test_dtf_beats_random_and_grid(scores: dict[str, PolicyScore]) -> None:
    (shipped,) = (score for name, score in scores.items() if name.startswith("DTF as shipped"))
    assert shipped.mean_tokens == pytest.approx(MEAN_TOKENS, abs=0.1)
    for rival in ("random", "uniform grid"):
        assert scores[rival].mean_tokens == pytest.approx(MEAN_TOKENS, abs=0.1)
        assert shipped.psnr_db > scores[rival].psnr_db + 0.3
        assert shipped.perceptual_milli < scores[rival].perceptual_milli


@pytest.mark.corpus
def test_more_tokens_are_better(scores: dict[str, PolicyScore]) -> None:
    (shipped,) = (score for name, score in scores.items() if name.startswith("DTF as shipped"))
    assert scores["globals only"].psnr_db < shipped.psnr_db < scores["full rate"].psnr_db


@pytest.mark.corpus
def test_the_worst_dropped_surprise_is_rare(tokenizer: Tokenizer, photos: EncodedPhotos) -> None:
    """A confidently wrong prediction that is dropped is what hurts most: few dropped codes may be far off."""
    for first, filtered in zip(photos.first, photos.filter(tokenizer.dtf), strict=True):
        dropped = first.distance[~filtered.kept_BN]
        kept = first.distance[filtered.kept_BN]
        assert float(dropped.median()) < float(kept.median())
        assert not torch.isnan(first.surprisal).any()
