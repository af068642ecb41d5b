"""Codebook use, and the prior's calibration where the truth is known: codes drawn from the prior itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.diagnostics import TokenizerReport, tokenizer_report
from tatok.model.prior import CodeStatistics, code_statistics
from tatok.statistics.summary import codebook_use
from tests.support.tiny_checkpoint import NUM_POSITIONS, VOCABULARY, tiny_images, tiny_tokenizer


def test_codebook_use() -> None:
    evenly = codebook_use("patch", np.full(8, 15))
    assert (evenly.num_tokens, evenly.num_codes_used, evenly.share_used) == (120, 8, 1)
    assert evenly.perplexity == pytest.approx(8)
    one = codebook_use("global", np.array([0, 0, 0, 16, 0, 0, 0, 0]))
    assert (one.num_codes_used, one.perplexity) == (1, pytest.approx(1))


@dataclass
class DrawnPhotos:
    """Stands for EncodedPhotos: codes drawn from known distributions; the prior is `sharpness` times as sure."""

    sharpness: float
    num_images: int = 200
    tokenizer: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        spread = torch.linspace(0.1, 4, 32)[:, None]  # some positions are nearly certain, others nearly uniform
        logits = torch.randn(self.num_images, 32, 16, generator=generator) * spread
        codes = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(-1, 32)
        self.first = [code_statistics(logits * self.sharpness, codes, torch.zeros(16, 2))]
        self.full = [SimpleNamespace(codes=SimpleNamespace(global_BM=codes[:, :2], patch_BN=codes))]
        self.tokenizer = SimpleNamespace(vocab_size=16, estimate=self.estimate)

    def estimate(self, full: SimpleNamespace, visible_BN: Tensor) -> CodeStatistics:
        assert (visible_BN.sum(1) == 16).all()
        known = [torch.where(visible_BN, 99.0, values) for values in self.first[0]]  # none of it may be counted
        return CodeStatistics(*known)


def report_of(photos: DrawnPhotos) -> TokenizerReport:
    return tokenizer_report(photos)  # type: ignore[arg-type]


def test_a_prior_that_tells_the_truth_is_calibrated_in_every_band() -> None:
    report = report_of(DrawnPhotos(sharpness=1))
    for calibration, num in ((report.given_globals, 6400), (report.given_half, 3200)):
        assert calibration.num_positions == num
        assert calibration.surprisal_bits == pytest.approx(calibration.entropy_bits, abs=0.1)
        assert [band.num_positions for band in calibration.bands] == [num // 10] * 10
        entropies = [band.entropy_bits for band in calibration.bands]
        assert entropies == sorted(entropies)
        assert entropies[0] < 0.5
        assert entropies[-1] > 3.9
        for band in calibration.bands:
            assert band.surprisal_bits == pytest.approx(band.entropy_bits, abs=0.35)
    first = torch.stack([DrawnPhotos(sharpness=1).first[0].entropy.flatten()])
    assert report.given_globals.entropy_bits == pytest.approx(float(first.mean()), abs=1e-4)


def test_overconfidence_shows() -> None:
    calibration = report_of(DrawnPhotos(sharpness=2)).given_globals
    assert calibration.surprisal_bits > calibration.entropy_bits + 0.3


@pytest.mark.parametrize("num_global", [4, 0])
def test_a_tokenizer_with_and_without_globals(tmp_path: Path, num_global: int) -> None:
    photos = EncodedPhotos(tiny_tokenizer(tmp_path, num_global), tiny_images(20))
    report = tokenizer_report(photos)
    assert report.given_half == tokenizer_report(photos).given_half  # the halves repeat
    assert (report.global_codes is None) == (num_global == 0)
    assert report.patch_codes.num_tokens == 20 * NUM_POSITIONS
    assert 1 < report.patch_codes.perplexity <= report.patch_codes.num_codes_used <= VOCABULARY
    assert report.given_half.num_positions == 20 * NUM_POSITIONS // 2
    surprisal = torch.cat([first.surprisal for first in photos.first])
    assert report.given_globals.surprisal_bits == pytest.approx(float(surprisal.double().mean()))
