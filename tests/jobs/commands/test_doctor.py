"""`tatok doctor` on good and broken jobs: each cause is named, and what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import yaml
from typer.testing import CliRunner, Result

from tatok.jobs.cli import app
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.doctor.dry_run import DryRun, forecast
from tatok.pipeline.doctor.examine import Check, Diagnosis, examine
from tatok.pipeline.doctor.job_checks import check_source
from tatok.pipeline.doctor.notes import Notes
from tatok.pipeline.doctor.option_names import doubtful_options
from tatok.pipeline.doctor.recorded_rates import RECORDED, RecordedRate
from tatok.pipeline.run import run_job
from tatok.pipeline.storage.options import storage_options
from tatok.schemas.job import JobConfig
from tests.support.fake_tokenizer import load_fake
from tests.support.photos import jpeg, photo_members, tar_bytes
from tests.support.places import ROOT
from tests.support.services.real_services import Store, seaweedfs
from tests.support.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with seaweedfs(Path(tempfile.mkdtemp(prefix="tk-", dir=tmp_path_factory.mktemp("weed"))), secret="s3cret") as store:
        fs = fsspec.filesystem("s3", **store.options)
        for bucket in ("photos", "tokens"):
            fs.mkdir(bucket)
        for number in range(3):
            fs.pipe_file(f"photos/a-{number}.tar", tar_bytes(photo_members(40 * number, 40)))
        yield store


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def document(store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A good job."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("DOCTOR_KEY", store.key)
    monkeypatch.setenv("DOCTOR_SECRET", store.secret)
    credentials = {"key": {"env": "DOCTOR_KEY"}, "secret": {"env": "DOCTOR_SECRET"}}
    return {
        "source": "s3://photos/a-{0..2}.tar",
        "output": "s3://tokens/good",
        "checkpoint": str(checkpoint),
        "preprocessing": {"image_size": 32},
        "device": "cpu",
        "storage": {"s3": {"endpoint_url": store.endpoint_url, **credentials}},
    }


def doctor(document: dict, tmp_path: Path, *options: object) -> Result:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(document))
    return CliRunner().invoke(app, ["doctor", str(job), *map(str, options)])


def failures(diagnosis: Diagnosis) -> dict[str, Check]:
    return {check.name: check for check in diagnosis.checks if check.verdict == "failed"}


@pytest.fixture(autouse=True)
def machine_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tatok.pipeline.doctor.dry_run.why_busy", lambda: None)


def test_a_good_job(document: dict, store: Store, tmp_path: Path) -> None:
    result = doctor(document, tmp_path)
    assert result.exit_code == 0, result.output
    names = [line.split()[1].rstrip(":") for line in result.output.splitlines() if line.startswith(("ok ", "warning "))]
    assert names == ["source", "first", "output", "checkpoint", "recipe", "cluster", "GPUs", "dry"]
    assert "3 shards" in result.output
    assert "honours create-only writes" in result.output
    assert "40 samples" in result.output
    assert "forecast: 1" in result.output
    assert "the bottleneck is " in result.output
    assert not [name for name in fsspec.filesystem("s3", **store.options).find("tokens") if "good" in name], "no trace"


def test_what_a_source_holds_besides_is_said(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "notes.pdf", ".DS_Store"):
        (tmp_path / "photos" / name).write_bytes(jpeg(0))
    notes = Notes(lambda check: None, deadline_s=30)
    config = JobConfig(source=(str(tmp_path / "photos"),), output=str(tmp_path / "out"))
    assert len(check_source(config, notes)) == 1
    [check] = notes.checks
    assert check.message.endswith("; left out: 1 hidden, 1 .pdf (no image, video, tar or table)")


def test_the_forecast_is_in_the_json(document: dict, tmp_path: Path) -> None:
    result = doctor(document, tmp_path, "--json", "--samples", 10)
    found = json.loads(result.output)
    assert found["passed"]
    assert found["forecast"]["num_samples"] == pytest.approx(120, rel=0.25), "3 shards of 40, from 10 samples' bytes"
    assert found["forecast"]["output_bytes"] > 0


def test_forecast_arithmetic() -> None:
    found = DryRun(
        num_samples=10,
        num_rows=10,
        num_tokens=100,
        rejects={},
        sample_bytes=1000,
        part_bytes=500,
        decode_s=1.0,
        encode_s=0.1,
    )
    sizes = Sizes(
        num_tokenizers=2,
        num_decoders=8,
        shards_per_tokenizer=4,
        gpus_per_tokenizer=1.0,
        cpus_per_actor=1.0,
        torch_threads=1,
        device="cuda",
        batch_size=256,
    )
    got = forecast(found, sizes, source_bytes=1_000_000, num_cpus=8)
    # 8 decoders at 10 a second are slower than 2 tokenizers at 100.
    assert (got.num_samples, got.samples_per_s, got.seconds) == (10_000, 80.0, 125.0)
    assert (got.bottleneck, got.slack, got.output_bytes) == ("reading and decoding", 2.5, 500_000)
    assert got.gpu_hours == pytest.approx(2 * 125 / 3600)
    on_cpu = forecast(found, replace(sizes, gpus_per_tokenizer=0.0), source_bytes=1_000_000, num_cpus=8)
    assert (on_cpu.samples_per_s, on_cpu.gpu_hours) == (60.0, 0.0), "two of the CPUs tokenize"
    alone = replace(sizes, num_tokenizers=8, num_decoders=8, gpus_per_tokenizer=0.0, decodes_in_place=True)
    in_place = forecast(replace(found, torch_threads=2), alone, source_bytes=1_000_000, num_cpus=8)
    assert in_place.samples_per_s == pytest.approx(8 * 10 / (1.0 + 2 * 0.1)), "one after the other, by one thread"
    assert (in_place.bottleneck, in_place.slack) == ("reading and decoding", 5.0)
    on_gpus = replace(alone, gpus_per_tokenizer=1.0)
    in_place = forecast(replace(found, torch_threads=64), on_gpus, source_bytes=1_000_000, num_cpus=8)
    assert in_place.samples_per_s == pytest.approx(8 * 10 / (1.0 + 0.1)), "a GPU does not mind the CPU's threads"


def test_recorded_figures_are_those_of_the_results() -> None:
    path = ROOT / "docs" / "results" / "gpu-h100.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    measured = results["new"]["sections"]["speed"]["measurements"]["float32.batch_256"]["encode"]["images_per_s"]
    (recorded,) = RECORDED
    assert recorded.card in json.dumps(results["bundled in 0.1.0"]["sections"]["machine"])
    assert recorded.images_per_s == pytest.approx(measured, rel=1e-3)


def test_a_forecast_by_recorded_figures() -> None:
    found = DryRun(
        num_samples=10,
        num_rows=20,
        num_tokens=100,
        rejects={},
        sample_bytes=1000,
        part_bytes=500,
        decode_s=1.0,
        encode_s=0.1,
        num_frames=20,
        num_pixels=20 * 512 * 512,
    )
    sizes = Sizes(
        num_tokenizers=2,
        num_decoders=8,
        shards_per_tokenizer=4,
        gpus_per_tokenizer=0.0,
        cpus_per_actor=1.0,
        torch_threads=1,
        device="cpu",
        batch_size=16,
    )
    rate = RecordedRate(card="a card", precision="float32", image_side=256, images_per_s=4000.0)
    recorded = forecast(found, sizes, source_bytes=1_000_000, num_cpus=8, recorded=rate).recorded
    assert recorded is not None
    assert recorded.images_per_s == 1000.0, "four times the pixels"
    assert recorded.gpu_hours == pytest.approx(20_000 / 1000 / 3600), "two rows a sample"
    assert recorded.decoding_cores == pytest.approx(0.05 * 1000)
    clips = replace(found, num_frames=200)
    assert forecast(clips, sizes, source_bytes=1_000_000, num_cpus=8, recorded=rate).recorded is None
    on_gpus = replace(sizes, gpus_per_tokenizer=1.0)
    assert forecast(found, on_gpus, source_bytes=1_000_000, num_cpus=8, recorded=rate).recorded is None


def test_a_price_is_told_by_recorded_figures_where_there_is_no_gpu(document: dict, tmp_path: Path) -> None:
    unknown = doctor(document, tmp_path, "--samples", 4, "--price", 2.5)
    assert "on a GPU: there are no recorded figures for this checkpoint" in unknown.output
    bundled = {name: value for name, value in document.items() if name != "checkpoint"}
    result = doctor(bundled | {"output": str(tmp_path / "priced")}, tmp_path, "--samples", 4, "--price", 2.5)
    assert result.exit_code == 0, result.output
    recorded = "on a GPU (recorded figures of NVIDIA H100 80GB HBM3, not measured here; docs/results/gpu.md)"
    assert recorded in result.output
    assert "GPU-hours, 0.00 at 2.50 an hour" in result.output


BROKEN = {
    "wrong bucket": (
        {"source": "s3://fotos/a-{0..2}.tar"},
        ("source", "fotos", "check the spelling of the bucket"),
    ),
    "wrong path": (
        {"source": "s3://photos/b-*.tar"},
        ("source", "no file matches 'photos/b-*.tar'", "check the spelling of the bucket and path"),
    ),
    "no write permission": (
        {"storage.s3.key": {"env": "READER_KEY"}},
        ("output", "cannot write to s3://tokens/good", "the credentials in use may not write there"),
    ),
    "wrong secret": (
        {"storage.s3.secret": {"env": "WRONG_SECRET"}},
        ("source", "cannot list", "the credentials in use may not read there"),
    ),
    "a variable that is not set": (
        {"storage.s3.secret": {"env": "NOT_SET"}},
        ("storage", "storage.s3.secret refers to the environment variable NOT_SET", "set it here and on all nodes"),
    ),
    "no server": (
        {"storage.s3.endpoint_url": "http://127.0.0.1:9"},
        ("source", "cannot list", "check storage's endpoint_url"),
    ),
    "missing checkpoint": (
        {"checkpoint": "/nowhere/checkpoint"},
        ("checkpoint", "/nowhere/checkpoint", "name the folder that `tatok train` wrote"),
    ),
    "wrong image size": (
        {"preprocessing.image_size": 34},
        ("checkpoint", "it must be a multiple of the checkpoint's patch", "set preprocessing.image_size"),
    ),
    "wrong multiple of the sides": (
        {"preprocessing": {"mode": "resize", "image_size": 240, "side_multiple": 6}},
        ("checkpoint", "it must be a multiple of the checkpoint's patch", "set preprocessing.side_multiple"),
    ),
    "no GPU": (
        {"device": "cuda"},
        ("GPUs", "the job says device: cuda, but there is no GPU", "set device: cpu"),
    ),
    "wrong member": (
        {"image_field": "png"},
        ("first sample", "no .png member among .jpg", "image_field names the member"),
    ),
    "scheme without its package": (
        {"source": "abfs://container/a.tar"},
        ("source", "adlfs", "install the extra of the scheme"),
    ),
}


@pytest.mark.parametrize("cause", BROKEN)
def test_broken_jobs(document: dict, cause: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    if cause == "no GPU" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    if cause == "scheme without its package":
        monkeypatch.setitem(__import__("sys").modules, "adlfs", None)
    monkeypatch.setenv("READER_KEY", "reader-key")
    monkeypatch.setenv("WRONG_SECRET", "something-else")
    changes, (name, message, remedy) = BROKEN[cause]
    for place, value in changes.items():
        *sections, leaf = place.split(".")
        target = document
        for section in sections:
            target = target[section]
        target[leaf] = value
    found = failures(examine(JobConfig.model_validate(document), num_samples=5))
    assert name in found, found
    assert message in found[name].message
    assert remedy in found[name].remedy
    others = {"source", "storage", "output"} if cause in ("wrong secret", "no server") else {name}
    assert set(found) <= others, "what is not broken is not blamed"


@pytest.mark.parametrize(("num_gpus", "words"), [(0, "for which the job would ask"), (1, "tokenizers would wait for")])
def test_a_cluster_may_get_its_gpus_later(
    document: dict, monkeypatch: pytest.MonkeyPatch, num_gpus: int, words: str
) -> None:
    from tatok.pipeline.cluster import probe

    view = probe.ClusterView(num_cpus=8, num_gpus=num_gpus, versions={"node": probe.versions()})
    found = DryRun(
        num_samples=5, num_rows=5, num_tokens=9, rejects={}, sample_bytes=9, part_bytes=9, decode_s=1.0, encode_s=1.0
    )
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(probe, "connected", nullcontext)
    monkeypatch.setattr(probe, "view_cluster", lambda: view)
    monkeypatch.setattr(probe, "on_a_gpu", lambda work, timeout_s: found)
    config = JobConfig.model_validate(document | {"device": "cuda", "resources": {"num_tokenizers": 4}})
    diagnosis = examine(config, num_samples=5)
    assert diagnosis.passed, diagnosis
    (check,) = [check for check in diagnosis.checks if check.name == "GPUs"]
    assert (check.verdict, words in check.message) == ("warning", True)
    assert (diagnosis.forecast is not None) == (num_gpus > 0)


def test_another_vocabulary(document: dict, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("local_ray")
    here = {"source": str(tmp_path / "a.tar"), "output": str(tmp_path / "out"), "storage": {}}
    (tmp_path / "a.tar").write_bytes(tar_bytes(photo_members(0, 3)))
    config = JobConfig.model_validate(document | here)
    assert run_job(config, load_tokenizer=load_fake).status == "complete"
    found = failures(examine(config, num_samples=3))
    assert set(found) == {"recipe"}
    assert "vocab_size: 1024 -> 64" in found["recipe"].message
    assert "name another output, or the checkpoint" in found["recipe"].remedy


def test_a_bad_key(document: dict, tmp_path: Path) -> None:
    result = doctor(document | {"resources": {"bath_size": 4}}, tmp_path)
    assert result.exit_code == 3
    assert "FAILED   job file: " in result.output
    assert "resources.bath_size: no such setting; did you mean resources.batch_size?" in result.output


def test_an_unreachable_head(document: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    found = failures(examine(JobConfig.model_validate(document), num_samples=3))
    assert set(found) == {"cluster"}
    assert "nothing answers at 127.0.0.1:9, where Ray's head should be" in found["cluster"].message
    assert "check RAY_ADDRESS and that the head runs" in found["cluster"].remedy


def test_a_silent_store_is_given_up(document: dict, silent_url: str) -> None:
    document["storage"]["s3"]["endpoint_url"] = silent_url
    diagnosis = examine(JobConfig.model_validate(document), num_samples=3, deadline_s=0.5)
    assert diagnosis.is_stuck
    found = failures(diagnosis)
    assert set(found) == {"source", "output"}
    for check in found.values():
        assert "no answer within" in check.message
        assert "check storage's endpoint_url" in check.remedy


def test_the_command_ends_though_a_store_is_silent(document: dict, silent_url: str, tmp_path: Path) -> None:
    """Its source is a folder of Parquet files, whose footers threads of a pool wait for."""
    document |= {"source": f"{silent_url}/a.parquet", "output": str(tmp_path / "out")}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(document))
    impatient = (
        "import functools\n"
        "import tatok.pipeline.doctor.examine as doctor\n"
        "from tatok.jobs.cli import app\n"
        "doctor.examine = functools.partial(doctor.examine, deadline_s=2.0)\n"
        "app()"
    )
    command = [sys.executable, "-c", impatient, "doctor", str(job), "--samples", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    assert "no answer within 12 s" in " ".join(done.stdout.split())
    assert "FAILED   source: " in done.stdout
    assert "ok       checkpoint: " in done.stdout, "the other checks are made"


def test_a_web_server_that_cannot_be_reached(document: dict) -> None:
    found = failures(examine(JobConfig.model_validate(document | {"source": "http://127.0.0.1:9/a.tar"})))
    assert "cannot reach http://127.0.0.1:9/a.tar" in found["source"].message
    assert "does not answer" in found["source"].remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(document: dict, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    found = failures(examine(JobConfig.model_validate(document | {"output": str(tmp_path / "shut" / "out")})))
    assert "permissions of the folder" in found["output"].remedy


def test_storage_options_that_nobody_would_read(document: dict) -> None:
    document["storage"]["s3"]["endpoint_ulr"] = "x"
    document["storage"]["s4"] = {"anon": True}
    document["storage"]["gs"] = {"token": "anon", "project": "p", "use_listings_cache": False}
    doubts = list(doubtful_options(JobConfig.model_validate(document).storage))
    assert doubts == [
        "storage.s3.endpoint_ulr: S3FileSystem has no such option; did you mean endpoint_url?",
        "storage.s4: fsspec knows no such scheme; did you mean s3?",
    ]
    diagnosis = examine(JobConfig.model_validate(document | {"source": "/nowhere"}), num_samples=1)
    warned = [check for check in diagnosis.checks if check.name == "storage"]
    assert [check.verdict for check in warned] == ["warning", "warning"]


def test_secrets_stay_out_of_what_it_says(document: dict, store: Store, tmp_path: Path) -> None:
    assert store.secret not in doctor(document, tmp_path, "--samples", 3).output
    with storage_options(document["storage"]):
        assert fsspec.filesystem("s3").storage_options["secret"] == store.secret, "it is the one in use"
