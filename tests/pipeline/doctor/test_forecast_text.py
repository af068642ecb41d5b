"""The forecast where others use the machine: nothing is said of stages."""

from __future__ import annotations

import pytest

from tatok.jobs.commands.doctor import _say_what_is_wrong, _text
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.doctor.dry_run import DryRun, forecast
from tatok.pipeline.doctor.examine import Check

SIZES = Sizes(
    num_tokenizers=2,
    num_decoders=8,
    shards_per_tokenizer=4,
    gpus_per_tokenizer=1.0,
    cpus_per_actor=1.0,
    torch_threads=1,
    device="cuda",
    batch_size=256,
)
WHY = "others kept 90% of this machine's 2 cores busy"


def text(doubt: str | None, price: float | None = None) -> str:
    counts = {"num_samples": 10, "num_rows": 10, "num_tokens": 100, "sample_bytes": 1000, "part_bytes": 500}
    found = DryRun(rejects={}, decode_s=1.0, encode_s=0.1, doubt=doubt, **counts)
    return _text(forecast(found, SIZES, source_bytes=1_000_000, num_cpus=8), price)


def test_a_busy_machine_gives_no_bottleneck() -> None:
    busy = text(WHY, price=2.5)
    assert f"but {WHY} when the samples were tried: it is quicker than this" in busy
    assert "times as fast" not in busy
    assert "reading and decoding" not in busy
    assert "the bottleneck is reading and decoding, the other stage is " in text(None)


def test_quiet_prints_what_is_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    for verdict in ("ok", "warning", "failed"):
        _say_what_is_wrong(Check(name=f"of {verdict}", verdict=verdict, message="m", remedy="r"))  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "of ok" not in printed
    assert "of warning" in printed
    assert "of failed" in printed
