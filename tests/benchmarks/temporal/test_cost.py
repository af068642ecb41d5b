"""The bench of what a frame of a clip costs, on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.temporal.cost import clip_costs
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import tiny_checkpoint


def test_frames_and_images_are_timed_and_a_still_frame_is_not_decoded(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_checkpoint(tmp_path / "tiny"), "cpu")
    generator = torch.Generator().manual_seed(0)
    still = torch.randint(0, 256, (1, 1, 3, 32, 32), dtype=torch.uint8, generator=generator).expand(2, 4, -1, -1, -1)
    told = clip_costs(tokenizer, still.contiguous(), turns=3)
    median, least, most = told["frame_over_image"]
    assert 0 < least <= median <= most
    assert told["frame_ms"] > 0 < told["image_ms"]
    steps = {"see", "full_rate_seen", "full_rate_after", "filter", "rebuild", "rebuild_after"}
    assert set(told["step_ms_a_frame"]) == steps
    dear = clip_costs(tokenizer.with_dtf(threshold=1e9), still.contiguous(), turns=1)
    assert dear["decodings_a_frame"] == 0.25, "the first of four frames, and then nothing is worth a token"
