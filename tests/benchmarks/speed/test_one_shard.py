"""The one-shard bench's tiny twin: a tar by the fake tokenizer, alone and shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed.one_shard import Pair, Source, SourceResult, is_same_by_one_thread, measure, sources, table
from tatok.pipeline.cluster import sizes
from tests.support.fake_tokenizer import load_fake
from tests.support.photos import photo_members, tar_bytes


@pytest.mark.long  # test_loans.py compares the parts
@pytest.mark.usefixtures("local_ray")
def test_a_pair_of_runs_gives_the_same_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_PIECE_BYTES", 1 << 10)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "photos.tar").write_bytes(tar_bytes(photo_members(0, 24)))
    settings = {"preprocessing": {"image_size": 64}, "resources": {"batch_size": 4}}
    source = Source(name="a tar of 24 photos", source=str(tmp_path / "source"), settings=settings)
    told: list[str] = []
    result = measure(source, tmp_path, num_pairs=1, load_tokenizer=load_fake, tell=told.append)
    assert (result.num_rows, result.same_bytes, len(result.pairs)) == (24, None, 1)
    assert is_same_by_one_thread(source, tmp_path, num_pairs=1, load_tokenizer=load_fake)
    assert len(told) == 2
    assert min(result.ratios[0], result.job_ratios[0], result.pairs[0].alone_s) > 0


def test_the_table_says_medians_spread_and_parts_that_differ() -> None:
    pairs = (
        Pair(alone_s=10.0, shared_s=5.0, alone_job_s=20.0, shared_job_s=16.0),
        Pair(alone_s=12.0, shared_s=7.2, alone_job_s=20.0, shared_job_s=18.0),
    )
    result = SourceResult(
        name="a tar",
        num_rows=1500,
        same_bytes=False,
        pairs=pairs,
        ratios=(0.5, 0.6),
        job_ratios=(0.8, 0.9),
        load_average=1.0,
    )
    text = table([result], "two cores")
    assert "| a tar | 1,500 | 11.0 s | 6.1 s | **0.55 (0.50 to 0.60)** | 0.85 (0.80 to 0.90) | **differ** |" in text


@pytest.mark.corpus
def test_each_source_of_the_corpus_is_one_shard(corpus: Path, tmp_path: Path) -> None:
    from tatok.pipeline.planning.plan import plan_shards

    for source in sources(corpus, tmp_path, num_photos=7, num_rows=5, num_times=2):
        (shard,) = plan_shards((source.source,))
        assert sizes.count_pieces([shard]) >= 1
