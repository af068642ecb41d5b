"""What `tatok tokenize` prints of its run: images, clips and frames are called what they are."""

from __future__ import annotations

import pytest

from tatok.jobs.text.run import print_summary
from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.run import RunSummary
from tests.support.parts import report, shard


@pytest.mark.parametrize(
    ("rows", "clips", "frames", "texts"),
    [
        (9, 0, 0, ["out: 2 parts, 9 images, 900 tokens (100.0 an image)", "this run: 1 shard, 1 image in 2.0 s"]),
        (9, 9, 72, ["out: 2 parts, 9 clips of 72 frames, 900 tokens (100.0 a clip)"]),
        (9, 4, 32, ["out: 2 parts, 5 images and 4 clips of 32 frames, 900 tokens (100.0 a row)"]),
        (0, 0, 0, ["out: 2 parts, 0 images, 900 tokens"]),
    ],
)
def test_images_clips_and_frames(
    rows: int, clips: int, frames: int, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    done = report(Attempt(shard=shard(), number=1, guarded=False))
    print_summary(
        RunSummary(
            status="complete",
            output="out",
            num_shards=2,
            reports=(done,),
            failed={},
            num_parts=2,
            num_rows=rows,
            num_clips=clips,
            num_frames=frames,
            num_tokens=900,
            rejects={},
            left_out={},
            seconds=2.0,
        )
    )
    printed = capsys.readouterr().out
    for text in texts:
        assert text in printed
