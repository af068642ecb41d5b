"""What decided, in words, for every way that DTF decides."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tatok.model.dtf import Criterion, DTFSettings
from tatok.report.deciding import decision_words

BY_DISTORTION = ("content", "distance", "residual")


def words(**settings: Any) -> str:
    return decision_words(DTFSettings(**settings).document(), noun="image")


@pytest.mark.parametrize("criterion", get_args(Criterion))
def test_every_criterion_is_named_and_explained(criterion: Criterion) -> None:
    kind = "distortion" if criterion in BY_DISTORTION else "residual_bits"
    said = words(criterion=criterion, threshold_kind=kind, threshold=1234.5)
    assert f"ranked the patches of each image by {criterion}: " in said
    assert ("above 1,234 (squared error" if kind == "distortion" else "at most 1,234 bits of an image") in said
    assert "rounds" not in said
    assert "An image has" not in said  # no bounds


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"threshold_kind": "fraction", "threshold": 0.9}, "until they held 0.9 of an image's bits"),
        ({"threshold_kind": "fraction", "threshold": 1.0}, "threshold, 1, keeps every patch"),
        ({"criterion": "distance", "threshold_kind": "distortion"}, "threshold, 0, keeps every patch"),
        (
            {"criterion": "distance", "threshold_kind": "distortion", "threshold": 9.0, "texture_bits": 0.75},
            "It kept those, too, in which the global tokens leave over 0.75 bits of texture a pixel value.",
        ),
        ({"threshold": 9.0, "rounds": 3}, "in 3 rounds"),
        ({"threshold": 9.0, "max_tokens": 2000}, "An image has at most 2,000 tokens."),
        ({"threshold": 9.0, "min_tokens": 8, "max_tokens": 64}, "An image has at least 8 and at most 64 tokens."),
    ],
)
def test_thresholds_rounds_and_bounds(settings: dict[str, Any], expected: str) -> None:
    assert expected in words(**settings)


def test_clips() -> None:
    settings = DTFSettings(criterion="distance", threshold_kind="distortion", threshold=90.0, max_tokens=64)
    said = decision_words(settings.document(), noun="clip")
    assert "the patches of each clip" in said
    assert "Each frame of a clip has at most 64 tokens." in said
    assert "its frame before" in said
    each_as_an_image = DTFSettings(criterion="distance", threshold_kind="distortion", threshold=90.0, temporal=False)
    assert "frame before" not in decision_words(each_as_an_image.document(), noun="clip")


def test_other_tokenizers_and_what_is_not_known() -> None:
    assert "my.py:load decided" in decision_words({}, noun="image", tokenizer="my.py:load")
    assert "not recorded" in decision_words({}, noun="clip")
    later = decision_words({"criterion": "beauty", "threshold_kind": "stars", "threshold": "5"}, noun="image")
    assert "by beauty at the threshold 5 (stars)" in later
    assert "by distance at the threshold None" in decision_words({"criterion": "distance"}, noun="image")
    assert "by ['entropy']" in decision_words({"criterion": ["entropy"], "threshold": 1}, noun="image")
