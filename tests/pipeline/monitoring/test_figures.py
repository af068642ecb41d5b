"""One source of figures: the display, the JSON lines and Ray's metrics say the same of the same run."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.monitoring.events import (
    Event,
    Load,
    Notice,
    ShardCommitted,
    ShardFailed,
    ShardRetried,
    ShardsPlanned,
    Throughput,
)
from tatok.pipeline.monitoring.figures import RunFigures
from tatok.pipeline.monitoring.progress import ProgressDisplay
from tatok.pipeline.monitoring.run_log import RunLog
from tests.support.fake_tokenizer import load_fake
from tests.support.parts import report, shard
from tests.support.places import ROOT
from tests.support.runs import job, run

DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"


def test_figures_of_events() -> None:
    clock = [100.0]
    figures = RunFigures(clock=lambda: clock[0])
    for event in (
        ShardsPlanned(num_shards=5, num_committed=1, pending_bytes=40, run="r"),
        Throughput(num_rows=10, num_tokens=200, num_rejects=2),
        Load(num_waiting=2, num_at_work=1, num_tokenizers=2, encode_s=6.0, wait_s=1.0, tokenizer_s=8.0),
        ShardRetried(shard=shard("a"), reason="x", attempt=1),
        ShardFailed(shard=shard("b"), reason="y", attempt=4),
    ):
        figures.take(event)
    clock[0] += 10
    now = figures.now()
    assert (figures.run, now.num_shards, now.num_committed, now.num_retried, now.num_failed) == ("r", 5, 1, 1, 1)
    assert (now.rows_per_s, now.tokens_per_s, now.gpu_idle_share) == (1.0, 20.0, 0.25)


def test_lines_name_run_shard_and_attempt() -> None:
    stream = io.StringIO()
    log = RunLog(stream)
    done = report(Attempt(shard=shard("a"), number=2, guarded=False))
    for event in (
        ShardsPlanned(num_shards=2, num_committed=0, pending_bytes=4, run="run-1"),
        ShardRetried(shard=done.shard, reason="lost", attempt=1),
        ShardCommitted(report=done, attempt=2),
        Notice(message="hello\nthere"),
    ):
        log(event)
    log.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["planned", "retried", "committed", "notice", "figures"]
    assert {line["run"] for line in lines} == {"run-1"}
    assert [(line["shard"], line["attempt"]) for line in lines[1:3]] == [("a", 1), ("a", 2)]
    assert (lines[-1]["num_committed"], lines[-1]["num_retried"]) == (1, 1)


def test_the_same_numbers_everywhere(
    photo_shards: Callable[..., str], tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue("local_ray")
    from ray.util.metrics import Gauge

    exported: dict[tuple[str, str], float] = {}
    really_set = Gauge.set

    def remember(gauge: Gauge, value: float, tags: dict[str, str] | None = None) -> None:
        exported[gauge.info["name"], (tags or {}).get("reason", "")] = value
        really_set(gauge, value, tags)

    monkeypatch.setattr(Gauge, "set", remember)
    source = photo_shards(2, 10)
    (tmp_path / "source" / "photos-0001.tar").write_bytes(b"no archive at all" * 100)
    lines, shown, plain = io.StringIO(), io.StringIO(), RunFigures()
    log, display = RunLog(lines, interval_s=0), ProgressDisplay(shown, interval_s=0)

    def tell(event: Event) -> None:
        for take in (log, display, plain.take):
            take(event)

    # Tokenizers are asked for their seconds once a second, so the run must last for some.
    slow = functools.partial(load_fake, delay_s=1.0)
    summary = run(job(source, tmp_path / "out"), on_event=tell, load_tokenizer=slow)
    log.close()
    assert (summary.num_rows, summary.num_rejects) == (10, 1)
    last = json.loads(lines.getvalue().splitlines()[-1])
    assert (last["num_rows"], last["num_tokens"], last["num_committed"]) == (10, summary.num_tokens, 2)
    assert last["reject_reasons"] == {"not_an_archive": 1}
    assert last["num_bytes"] == sum(report.shard.num_bytes for report in summary.reports)
    assert last["encode_s"] > 0
    assert 0 < last["gpu_idle_share"] < 1
    for name in ("num_rows", "num_tokens", "num_rejects", "num_committed", "num_bytes", "encode_s", "gpu_idle_share"):
        assert exported[f"tatok_{name}", ""] == pytest.approx(last[name]), name
    assert exported["tatok_rejects_by_reason", "not_an_archive"] == 1
    assert "shards 2/2  images 10" in shown.getvalue().splitlines()[-1]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    from tatok.pipeline.cluster.metrics import METRICS

    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for text in expressions for name in re.findall(r"ray_tatok_(\w+)", text)}
    assert named == {*METRICS, "rejects_by_reason"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
