"""The bench of temporal TaTok, on two clips that a test can wait for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from benchmarks.temporal import clips as temporal
from benchmarks.temporal.report import ClipResult, Point, document
from tests.support.tiny_checkpoint import tiny_images, tiny_tokenizer


def still(num_frames: int) -> Tensor:
    noise = torch.randn(num_frames, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return (tiny_images(4, seed=1)[3].float() + 2 * noise).clamp(0, 255).byte()


def pan(num_frames: int) -> Tensor:
    wide = tiny_images(1, seed=2, side=64)[0]
    return torch.stack([wide[:, 4 * t : 4 * t + 32, 4 * t : 4 * t + 32] for t in range(num_frames)])


def test_still_clips_cost_at_most_half_and_moving_ones_never_more(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path).with_dtf(threshold=2.0)
    results = [temporal.measure(tokenizer, name, clip, 4.0) for name, clip in (("still", still(8)), ("pan", pan(8)))]
    of_still, of_pan = (result.ratio(result.temporal[0]) or float("nan") for result in results)
    assert of_still <= 0.5
    assert of_pan <= 1
    for result in results:
        assert temporal.result_of(json.loads(json.dumps(asdict(result)))) == result
    rows = document(results, {"side": 32}).splitlines()[-4:-2]
    assert [row.split(" | ")[0] for row in rows] == ["| pan", "| still"]
    tokens = results[0].temporal[0].tokens
    assert f"| {tokens / 2:,.0f} | {results[0].temporal[0].psnr_db:.2f} |" in rows[1]


def test_ratios_are_read_at_equal_psnr() -> None:
    points = [Point(threshold=t, tokens=n, psnr_db=p) for t, n, p in ((1, 400, 30.0), (2, 200, 20.0))]
    result = ClipResult(name="c", num_frames=1, fps=1.0, temporal=[], frame_by_frame=points, encode_frames_per_s=1.0)

    def ratio(tokens: int, psnr_db: float) -> float | None:
        return result.ratio(Point(threshold=1, tokens=tokens, psnr_db=psnr_db))

    assert ratio(150, 25.0) == pytest.approx(0.5)
    assert ratio(100, 35.0) == pytest.approx(0.25)
    assert ratio(100, 19.0) is None


def test_clips_are_read_at_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for grey in range(0, 200, 10):
            image = torch.full((64, 96, 3), grey, dtype=torch.uint8).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    clip = temporal.read_clip(path, 5.0, 6)
    assert clip.shape == (6, 3, 256, 256)
    greys = clip.float().mean((1, 2, 3))
    assert greys.tolist() == pytest.approx([0, 20, 40, 60, 80, 100], abs=4)
