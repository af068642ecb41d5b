"""tatok bench: the bound that stages imply, and a small job measured by the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import photo_members, tar_bytes
from tiny_checkpoint import tiny_checkpoint
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.bench import speed_of_light
from pipeline.stages import StageRate

STAGES = (
    StageRate(name="read", items_per_s=1000.0, on="core"),
    StageRate(name="decode", items_per_s=100.0, on="core"),
    StageRate(name="encode", items_per_s=50.0, on="device"),
    StageRate(name="prior and DTF", items_per_s=200.0, on="device"),
    StageRate(name="write", items_per_s=500.0, on="core"),
)
ON_CORES_S = 0.001 + 0.01 + 0.002


def test_without_an_accelerator_every_second_is_the_cores() -> None:
    stages = [replace(stage, on="core") for stage in STAGES]
    bound = speed_of_light(stages, cores=2, num_devices=0)
    assert bound.items_per_s == pytest.approx(2 / (ON_CORES_S + 0.02 + 0.005))
    assert (bound.resource, bound.bottleneck) == ("cores", "encode")
    assert bound.share_of_bottleneck == pytest.approx(0.01 * bound.items_per_s)


def test_with_accelerators_the_slower_side_bounds() -> None:
    few_cores = speed_of_light(STAGES, cores=1, num_devices=4)
    assert few_cores.items_per_s == pytest.approx(1 / ON_CORES_S)
    assert (few_cores.resource, few_cores.bottleneck) == ("cores", "decode")
    assert "num_decoders" in few_cores.remedy
    many_cores = speed_of_light(STAGES, cores=64, num_devices=1)
    assert many_cores.items_per_s == pytest.approx(1 / 0.025)
    assert (many_cores.resource, many_cores.bottleneck) == ("device", "encode")
    assert "GPUs" in many_cores.remedy


@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(600)
def test_a_job_is_measured_and_leaves_nothing(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "tiny")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(24):
        (source / f"photos-{number:02}.tar").write_bytes(tar_bytes(photo_members(40 * number, 40)))
    arguments = ["bench", str(source), "--output", str(tmp_path / "out"), "--seconds", "0.2", "--run-seconds", "2"]
    arguments += ["--set", f"checkpoint={tmp_path / 'tiny'}", "--set", "preprocessing.image_size=32"]
    arguments += ["--set", "device=cpu", "--set", "resources.batch_size=4", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--profile", str(tmp_path / "trace.json")])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    rates = {stage["name"]: stage["items_per_s"] for stage in told["stages"]}
    assert list(rates) == ["read", "decode", "encode", "prior and DTF", "copy out", "write"]
    assert min(rates.values()) > 0
    share = told["pipeline"]["items_per_s"] / told["speed_of_light"]["items_per_s"]
    assert told["share_of_speed_of_light"] == pytest.approx(share, rel=0.02)
    assert told["filtering_share_of_encoding"] == pytest.approx(rates["encode"] / rates["prior and DTF"], rel=0.02)
    assert 0 < told["pipeline"]["num_items"] <= 24 * 40
    assert told["pipeline"]["startup_s"] > 0
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event.get("cat") == "shard"]
    assert spans
    assert all(event["dur"] > 0 and event["args"]["rows"] == 40 for event in spans)
    assert any(event.get("name") == "batch 0" for event in events)


def test_what_is_missing_is_said() -> None:
    result = CliRunner().invoke(app, ["bench"])
    assert result.exit_code == 1
    assert "SOURCE" in result.output
