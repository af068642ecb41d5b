"""tatok bench: the bound that stages imply, and a small job measured by the command."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.jobs.commands.bench import _text, speed_document
from tatok.pipeline.bench import speed, stages
from tatok.pipeline.bench.model_rates import ModelRates
from tatok.pipeline.bench.own_processes import alone
from tatok.pipeline.bench.speed import PipelineRate, Speed, speed_of_light
from tatok.pipeline.bench.stages import StageRate
from tatok.pipeline.cluster import probe
from tatok.pipeline.cluster.sizes import Sizes, plan_sizes
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.job import JobConfig
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.fake_tokenizer import load_fake
from tests.support.photos import photo_members, tar_bytes
from tests.support.tiny_checkpoint import tiny_checkpoint

STAGES = (
    StageRate(name="read", items_per_s=1000.0, on="core"),
    StageRate(name="decode", items_per_s=100.0, on="core"),
    StageRate(name="encode", items_per_s=50.0, on="device"),
    StageRate(name="prior and DTF", items_per_s=200.0, on="device"),
    StageRate(name="write", items_per_s=500.0, on="core"),
)
ON_CORES_S = 0.001 + 0.01 + 0.002


def test_without_an_accelerator_every_second_is_the_cores() -> None:
    bound = speed_of_light([replace(stage, on="core") for stage in STAGES], cores=2, num_devices=0)
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


def measured(share: float, *, bounds: tuple[float, float] = (20.0, 20.0)) -> Speed:
    bound = speed_of_light([replace(stage, on="core") for stage in STAGES], cores=2, num_devices=0)
    rate = PipelineRate(
        items_per_s=share * bound.items_per_s, num_items=9, seconds=1.0, startup_s=0.5, is_whole=True, shards=()
    )
    return Speed(num_cores=2, device="cpu", num_tokenizers=2, stages=STAGES, bound=bound, pipeline=rate, bounds=bounds)


def test_a_share_of_more_than_all_means_nothing() -> None:
    text = _text(measured(8.97))
    assert "897%" not in text
    assert "9.0 times as fast as its own stages allow" in " ".join(text.split())
    assert "To go faster" not in text, "no advice from what means nothing"
    assert "bottleneck:" not in text


def test_stages_that_changed_meanwhile_give_no_share() -> None:
    text = " ".join(_text(measured(0.8, bounds=(10.0, 21.0))).split())
    assert "the stages allowed 10.0 items a second before the run and 21.0 after it" in text
    assert "80%" not in text
    assert "To go faster" not in text


def test_a_machine_that_was_busy_at_first_gives_no_share() -> None:
    text = " ".join(_text(replace(measured(0.47), busy="others kept 90% of this machine's 2 cores busy")).split())
    assert "no bottleneck to name: others kept 90% of this machine's 2 cores busy when the measurement began" in text
    assert "47%" not in text


def test_what_agrees_has_a_share_and_advice() -> None:
    for share, bounds in ((0.8, (20.0, 20.0)), (1.03, (16.0, 23.0))):
        text = _text(measured(share, bounds=bounds))
        assert f"{share:.0%}" in text
        assert "To go faster" in text
    assert speed_document(measured(0.8))["doubt"] is None


def job(folder: Path, **options: object) -> JobConfig:
    (folder / "photos.tar").write_bytes(tar_bytes(photo_members(0, 4)))
    preprocessing = {"image_size": 64}
    return JobConfig.model_validate(
        {"source": str(folder), "output": str(folder / "out"), "preprocessing": preprocessing, **options}
    )


def test_what_the_host_does_is_not_the_devices_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job(tmp_path)
    fake = load_fake("cpu")

    def measure_model(load: object, pixels: np.ndarray, sizes: Sizes, **options: object) -> ModelRates:
        assert (len(pixels), sizes.device) == (256, "cuda")
        rates = {"copy in": 1000.0, "encode": 100.0, "prior and DTF": 300.0, "copy out": 50.0}
        encoded = fake.encode_clips(torch.from_numpy(pixels))
        return ModelRates(items_per_s=rates, device="H", vocab_size=fake.vocab_size, has_entropy=True, encoded=encoded)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "measure_model", measure_model)
    shards = plan_shards(config.source)
    measured, device = stages.measure_stages(
        config,
        stages.read_for_stages(config, shards, seconds=0.1, num_samples=4),
        load_fake,  # type: ignore[arg-type]
        OutputStore.open(str(tmp_path / "store")).probe(),
        plan_sizes(config, num_shards=1, num_cpus=4, num_gpus=1),
        seconds=0.1,
        on_cluster=False,
    )
    assert device == "H"
    assert [stage.name for stage in measured if stage.on == "device"] == ["copy in", "encode", "prior and DTF"]
    assert [stage.name for stage in measured if stage.on == "core"] == ["read", "decode", "copy out", "write"]


class _Asked(Exception):
    """Ends a measurement once it is known what it would measure."""


def test_a_cluster_is_asked_for_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's are not the job's."""

    def measure_stages(
        config: object, found: object, load: object, store: object, sizes: Sizes, **options: object
    ) -> None:
        raise _Asked(sizes.num_tokenizers, sizes.gpus_per_tokenizer, options["on_cluster"])

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(speed, "measure_stages", measure_stages)
    monkeypatch.setattr(probe, "connected", nullcontext)
    config = job(tmp_path, resources={"num_tokenizers": 1})
    for address, num_gpus, expected in (("head:6379", 2, (1, 1.0, True)), ("head:6379", 0, (1, 0.0, True))):
        size = probe.ClusterSize(num_nodes=3, num_cpus=16.0, num_gpus=num_gpus)
        monkeypatch.setattr(probe, "cluster_size", lambda size=size: size)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(_Asked) as asked:
            speed.measure_speed(config, seconds=0.1, most_run_s=1)
        assert asked.value.args == expected
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(_Asked) as asked:
        speed.measure_speed(config, seconds=0.1, most_run_s=1)
    assert asked.value.args == (1, 1.0, False)


def test_work_by_itself_is_done_in_a_process_that_ends() -> None:
    pid = alone(os.getpid, on_cluster=False)
    assert pid != os.getpid()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(600)
def test_a_job_is_measured_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_nothing(*_: object, **__: object) -> None:
        raise AssertionError("the driver would hold a device")

    tiny_checkpoint(tmp_path / "tiny")
    monkeypatch.setattr(Tokenizer, "load", load_nothing)
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
