"""The peers bench's tiny twin: tatok and the script side by side on a few photos, and how rows are compared."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from benchmarks.peers.run import TATOK, Peer, Work, as_files, bench, difference, own_photos, repeated, tables
from benchmarks.peers.work import Row, Task, pixels_of
from tatok.pipeline.images.decode import decode_image
from tatok.schemas.job import Limits
from tatok.schemas.preprocessing import Preprocessing
from tests.support.photos import encoded, jpeg

# One has a single way, the other has two to choose from: those that start no Ray, which is dear.
ONE_WAY = replace(TATOK, variants=TATOK.variants[:1])
SCRIPT = Peer(name="script", module="benchmarks.peers.contenders.script", variants=("2 workers", "1 worker"))
ROW = Row("a", b"\1\0", b"\0\0", 1, (1.0,), b"")


def test_rows_are_the_same_work_but_for_a_near_tie() -> None:
    rows = [replace(ROW, key=f"{number:03}") for number in range(100)]
    assert difference(rows, rows) is None
    assert difference([replace(rows[0], codes=b"\2\0"), *rows[1:]], rows) is None
    others = difference([replace(row, codes=b"\2\0") for row in rows[:4]] + rows[4:], rows)
    assert others == "4 of its 100 rows have other tokens than tatok's"
    assert difference(rows[1:], rows) == "its 99 rows do not have the keys of tatok's 100"


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize(
    "payload", [jpeg(1, 80, 64), jpeg(2, 64, 64), encoded(3, 70, 90, "PNG")], ids=["jpeg", "square", "png"]
)
def test_peers_decode_as_tatok_does(decoder: Literal["pillow", "simplejpeg"], payload: bytes) -> None:
    task = Task(
        shards=(), folder="", output="", tokenizer="near-free", batch_size=1, image_size=64, num_cpus=1, decoder=decoder
    )
    preprocessing = Preprocessing(image_size=64, decoder=decoder, icc_profiles="ignore")
    [view] = decode_image(payload, preprocessing, Limits(), sample_id="")
    np.testing.assert_array_equal(pixels_of(payload, task), view.pixels[0])


@pytest.mark.timeout(600)
@pytest.mark.long  # starts every peer; what is compared, and how they decode, is above
def test_two_peers_do_the_same_work(tmp_path: Path) -> None:
    tars = repeated(own_photos(tmp_path / "own", 2, 6, 64), tmp_path / "tars", 3)
    work = Work(
        name="a few",
        tokenizer="near-free",
        num_shards=3,
        num_photos=as_files(tars, tmp_path / "files"),
        image_size=64,
        batch_size=4,
    )
    assert work.num_photos == 18
    measured, failures = bench(work, tars, tmp_path, peers=(ONE_WAY, SCRIPT), rounds=1, num_cpus=2, num_tried=2)
    assert failures == []
    [runs] = measured
    assert {run.peer for run in runs} == {"tatok", "script"}
    assert all(run.seconds > 0 and run.cpu_s > 0 for run in runs)
    each = {"work": asdict(work), "rounds": [[asdict(run) for run in runs]], "failures": []}
    text = tables({"works": [each], "machine": {"cores": "2"}, "versions": {"ray": "2"}})
    assert "**a few**: 18 photos in 3 tars, 1 rounds." in text
    # Whichever variant was the quicker one: that is the machine's affair.
    named = re.findall(r"\n\| (tatok|script) \| ([^|]+) \|", text)
    assert sorted(name for name, _ in named) == ["script", "tatok"]
    assert {variant for _, variant in named} <= {*ONE_WAY.variants, *SCRIPT.variants}
