"""What travels with a submitted job, and what is refused."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

import pytest

from tatok.jobs.submission.package import for_the_cluster, pack, pinned_requirements, refuse_credentials
from tatok.jobs.submission.ray_jobs import image_entrypoint
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig, load_job
from tests.support.tiny_checkpoint import tiny_checkpoint

SECRET = "planted-5d41402abc4b2a76b9719d911017c592"


def test_pack_takes_what_is_needed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / ".env").write_text(SECRET)
    tiny_checkpoint(tmp_path / "tiny")
    folder = tmp_path / "package"
    folder.mkdir()
    packed = pack(JobConfig(source="s3://a/b.tar", output="s3://c", checkpoint=str(tmp_path / "tiny")), folder)
    assert packed.checkpoint == "checkpoint"
    assert {path.name for path in folder.iterdir()} == {"checkpoint", "job.yaml", "tatok"}
    assert {path.name for path in (folder / "tatok").iterdir()} >= {"jobs", "pipeline", "schemas", "dataset"}
    assert not (folder / "tatok" / "examples").exists()
    assert load_job(folder / "job.yaml") == packed
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 4 << 20, "the bundled checkpoint stays here"


@pytest.mark.parametrize("name", ["source", "output"])
def test_relative_paths_stay_here(name: str) -> None:
    paths = {"source": "s3://a/b.tar", "output": "s3://c"} | {name: "data/x"}
    with pytest.raises(ConfigError, match=f"{name} 'data/x' is relative"):
        for_the_cluster(JobConfig.model_validate(paths), packs_checkpoint=True)


def test_a_credential_of_this_shell_cannot_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    with pytest.raises(ConfigError, match="MY_SECRET") as caught:
        pack(JobConfig(source=f"s3://a/{SECRET}.tar", output="s3://c"), tmp_path)
    assert SECRET not in str(caught.value)
    refuse_credentials("nothing here", os.environ)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a filter in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "my_filters.py").write_text("def keep(facts):\n    return True\n")
    monkeypatch.chdir(folder)
    return folder


def with_filter(path: str) -> JobConfig:
    return JobConfig(source="s3://a/b.tar", output="s3://c", filter=path)


def test_the_file_of_a_filter_travels(here: Path, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    pack(with_filter("my_filters:keep"), tmp_path / "package")
    assert (tmp_path / "package" / "my_filters.py").read_bytes() == (here / "my_filters.py").read_bytes()


@pytest.mark.parametrize("path", ["absent:keep", "package.my_filters:keep", "../my_filters:keep"])
def test_another_filter_is_refused_unless_the_cluster_has_it(path: str, here: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"there is no \S+\.py in the current folder.*one file here.*--image"):
        pack(with_filter(path), tmp_path / "first")
    pack(with_filter(path), tmp_path / "second", cluster_has_code=True)


def test_a_filter_of_tatok_travels_with_it(here: Path, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    pack(with_filter("tatok.pipeline.decode.filters:load_filter"), tmp_path / "package")


def test_a_filter_with_a_credential_stays(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    (here / "my_filters.py").write_text(f"KEY = {SECRET!r}\n")
    (tmp_path / "package").mkdir()
    with pytest.raises(ConfigError, match="MY_SECRET"):
        pack(with_filter("my_filters:keep"), tmp_path / "package")


def test_the_file_of_a_tokenizer_travels(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "mine.py").write_text("def load(device):\n    return None\n")
    (tmp_path / "package").mkdir()
    job = JobConfig(source="s3://a/b.tar", output="s3://c", tokenizer="sub/mine.py:load")
    packed = pack(job, tmp_path / "package")
    assert packed.tokenizer == "mine.py:load"
    assert (tmp_path / "package" / "mine.py").read_bytes() == (here / "sub" / "mine.py").read_bytes()
    command = image_entrypoint(job)
    (tmp_path / "there").mkdir()
    beside, _, rest = command.partition(" && ")
    subprocess.run(beside, shell=True, check=True, cwd=tmp_path / "there")
    assert (tmp_path / "there" / "mine.py").read_bytes() == (here / "sub" / "mine.py").read_bytes()
    assert "mine.py:load" in rest
    assert "sub/mine.py" not in rest
    monkeypatch.setenv("MY_SECRET", SECRET)
    (here / "sub" / "mine.py").write_text(f"KEY = {SECRET!r}\n")
    with pytest.raises(ConfigError, match="MY_SECRET"):
        image_entrypoint(job)


def test_a_module_of_a_tokenizer_travels_if_it_is_one_file_here(here: Path, tmp_path: Path) -> None:
    (here / "my_models.py").write_text("def load(device):\n    return None\n")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    pack(JobConfig(source="s3://a/b.tar", output="s3://c", tokenizer="my_models:load"), tmp_path / "first")
    assert (tmp_path / "first" / "my_models.py").exists()
    absent = JobConfig(source="s3://a/b.tar", output="s3://c", tokenizer="their_package.models:load")
    with pytest.raises(ConfigError, match=r"tokenizer 'their_package\.models:load': there is no .*--image"):
        pack(absent, tmp_path / "second")


def required(**settings: object) -> set[str]:
    """Names of what the cluster is to install."""
    job = JobConfig.model_validate({"source": "/data/a.tar", "output": "/data/out"} | settings)
    return {line.partition("==")[0].partition(">")[0] for line in pinned_requirements(job)}


def test_the_plug_ins_that_are_installed_here_are_wanted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_heif", reason="needs tatok[heif]")
    assert "pillow-heif" in required()
    monkeypatch.setattr("tatok.pipeline.images.extras._is_importable", lambda module: False)
    assert not {"pillow-heif", "pillow-jxl-plugin"} & required()


def test_requirements_are_pinned() -> None:
    lines = pinned_requirements(JobConfig(source="s3://a/b.tar", output="/c"))
    assert all("==" in line and "+" not in line for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"torch", "pyarrow", "s3fs", "aiobotocore"} <= names
    assert not names & {"ray", "tatok", "moto", "pytest"}


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"source": "s3://a/b.tar"}, "s3fs"),
        ({"checkpoint": "gs://a/b"}, "gcsfs"),
        ({"source": ["/data/a.tar", "abfss://a@b/c.tar"]}, "adlfs"),
        ({"source": "https://a/b.tar"}, "aiohttp"),
        ({"source": "simplecache::hf://datasets/a/b.tar"}, "huggingface-hub"),
        ({"source": "/data/uris.csv", "storage": {"s3": {"anon": True}}}, "s3fs"),
        ({"preprocessing": {"decoder": "simplejpeg"}}, "simplejpeg"),
    ],
)
def test_requirements_go_with_what_the_job_says(settings: dict[str, object], package: str) -> None:
    assert package not in required()
    assert package in required(**settings)


def test_what_is_not_installed_here_is_required_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == "simplejpeg":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    job = JobConfig.model_validate({"source": "a", "output": "b", "preprocessing": {"decoder": "simplejpeg"}})
    assert "simplejpeg>=1.8" in pinned_requirements(job)
