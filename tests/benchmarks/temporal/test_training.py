"""The bench of training on clips: what it says of two checkpoints, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.temporal.report import TRAINING_HEADING, split_document
from benchmarks.temporal.training import Coded, Comparison, code_clip, code_photos, section
from tests.support.tiny_checkpoint import tiny_images, tiny_tokenizer


def test_clips_and_photos_are_coded_and_priced(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path).with_dtf(threshold=2.0)
    photos = list(tiny_images(3, seed=1))
    of_photos = code_photos(tokenizer, photos)
    assert of_photos.tokens == sum(sequence.num_tokens for sequence in tokenizer.encode(torch.stack(photos)))
    assert 0 < of_photos.surprisal_bits < 64
    again = code_clip(tokenizer, torch.stack(photos[:1] * 4))
    anew = code_clip(tokenizer, torch.stack(tiny_images(4, seed=2).unbind()))
    assert again.tokens < anew.tokens
    assert again.cost < anew.cost
    dearer = code_clip(tokenizer.with_dtf(threshold=4.0), torch.stack(photos[:1] * 4))
    squares = 10 ** (-dearer.psnr_db / 10) * 255**2 * photos[0].numel() * 4
    assert dearer.cost == pytest.approx(squares + dearer.tokens * 4.0 * 127.5**2, rel=1e-6)


def test_the_section_stands_behind_the_rest_and_is_kept_apart(tmp_path: Path) -> None:
    coded = [Coded(tokens=n, psnr_db=20.0 + n, cost=100.0 * n, surprisal_bits=n / 8) for n in (4, 3)]
    comparison = Comparison(name="c", num_frames=24, before=coded[0], after=coded[1])
    text = section([comparison], comparison, fps=8.0, steps="3 steps")
    assert "| c | 24 | 4 | 3 | 24.00 | 23.00 | 0.50 | 0.38 | 0.750 |" in text
    path = tmp_path / "doc.md"
    path.write_text("# Title\n\n" + text)
    assert split_document(path) == ("# Title\n\n", text)
    assert text.startswith(TRAINING_HEADING)
    assert split_document(tmp_path / "none.md") == ("", "")
