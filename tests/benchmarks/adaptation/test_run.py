"""The adaptation bench at a tiny size: all of it runs, resumes, and its tables say what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.adaptation.cases import CASES, Case
from benchmarks.adaptation.compare import CONSTANT, DTF, FILLS, KEPT_SETS
from benchmarks.adaptation.report import tables
from benchmarks.adaptation.run import measure_case
from tatok.schemas.errors import ConfigError


@pytest.fixture
def tiny(photo_shards: Callable[..., str]) -> Case:
    photos = photo_shards(num_shards=1, photos_per_shard=12)
    return replace(
        CASES["cifar10"],
        images=photos,
        heldout=photos,
        num_heldout=12,
        batch_size=4,
        frozen_steps=4,
        decoder_steps=2,
        globals_steps=4,
        prior_steps=4,
        seeds=(0, 1),
        codebook_size=32,
        width=32,
        num_heads=2,
        num_start_crops=8,
        shares=(0.5,),
    )


def test_a_case_is_trained_measured_and_not_done_again(tiny: Case, tmp_path: Path) -> None:
    found = measure_case(tiny, tmp_path)
    assert [each.seed for each in found.adapted] == [0, 1]
    scores = {score.name: score for score in found.adapted[0].at_shares[0].scores}
    assert len(scores) == len(KEPT_SETS) + len(FILLS) + 1
    assert all(score.mean_tokens == pytest.approx(32, abs=1.5) for score in scores.values())
    assert scores[DTF].bits == scores[CONSTANT].bits  # the same sets
    assert scores[DTF].psnr_db > scores[CONSTANT].psnr_db
    assert found.adapted[0].full_rate.psnr_db > max(score.psnr_db for score in scores.values())
    assert len(found.cost.filter_ratios) > 1

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert measure_case(tiny, tmp_path) == found
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(ConfigError, match="other settings"):
        measure_case(replace(tiny, prior_steps=5), tmp_path)

    text = tables([found])
    assert "seeds of the adaptation: 0, 1" in text
    assert text.count("| 50% |") == len(scores)
