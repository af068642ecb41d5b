"""tatok tokenize --dry-run: what would be done, or the error that the job would end with; nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tatok.jobs.cli import app
from tatok.jobs.text.plan import changed_settings
from tatok.pipeline.preview import preview_job
from tatok.schemas.errors import CommitError
from tatok.schemas.job import JobConfig
from tests.support.fake_tokenizer import FakeTokenizer, load_fake
from tests.support.photos import photo_members, tar_bytes
from tests.support.real_data import write_real_data


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Three tars of four photos."""
    for number in range(3):
        (tmp_path / f"photos-{number}.tar").write_bytes(tar_bytes(photo_members(4 * number, 4)))
    return f"{tmp_path}/photos-*.tar"


@pytest.fixture
def begun(photos: str, tmp_path: Path) -> Path:
    """A dataset of the first of them."""
    write_real_data(str(tmp_path / "begun"), (f"{tmp_path}/photos-0.tar",), image_size=64, tokenizer=FakeTokenizer())
    return tmp_path / "begun"


def job(source: str, output: Path, **settings: object) -> JobConfig:
    preprocessing = {"image_size": 64}
    return JobConfig.model_validate(
        {"source": source, "output": str(output), "preprocessing": preprocessing, **settings}
    )


def dry_run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["tokenize", *map(str, arguments), "--dry-run"])


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_a_new_output(photos: str, tmp_path: Path) -> None:
    found = preview_job(job(photos, tmp_path / "out"), load_tokenizer=load_fake)  # type: ignore[arg-type]
    assert (found.resumes, len(found.progress.pending), found.output_bytes) == (False, 3, None)
    assert found.fingerprint["preprocessing.image_size"] == "64"
    assert found.sizes is not None
    assert not (tmp_path / "out").exists()


def test_what_is_committed_and_what_the_rest_becomes(photos: str, begun: Path) -> None:
    before = contents(begun)
    found = preview_job(job(photos, begun), load_tokenizer=load_fake)  # type: ignore[arg-type]
    assert (found.resumes, len(found.progress.committed), len(found.progress.pending)) == (True, 1, 2)
    [part] = (begun / "data").glob("*.parquet")
    tars = [path.stat().st_size for path in sorted(begun.parent.glob("photos-*.tar"))]
    assert found.output_bytes == pytest.approx(part.stat().st_size * sum(tars[1:]) / tars[0], abs=1)
    assert contents(begun) == before


def test_what_the_job_would_refuse_is_refused(photos: str, begun: Path) -> None:
    other = job(photos, begun, write={"patch_entropy": False})
    with pytest.raises(CommitError, match=r"patch_entropy: true -> false"):
        preview_job(other, load_tokenizer=load_fake)  # type: ignore[arg-type]


def test_a_cluster_is_not_asked(photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:6379")
    found = preview_job(job(photos, tmp_path / "out"), load_tokenizer=load_fake)  # type: ignore[arg-type]
    assert (found.cluster, found.sizes) == ("nowhere:6379", None)


def test_the_command(photos: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tatok.pipeline.preview.configured_loader", lambda config: load_fake)
    monkeypatch.setitem(sys.modules, "tatok.pipeline.cluster.driver", None)  # an import of it, and so Ray, would fail
    before = contents(tmp_path)
    result = dry_run(photos, begun, "--image-size", 64, "--batch-size", 8)
    assert result.exit_code == 0, result.output
    for words in (
        "WebDataset tars: 3 shards",
        "to be resumed: 1 shard is committed",
        "to do: 2 shards",
        "tokenizer: the bundled checkpoint\n  1,024 codes, patch 16",
        "  resources.batch_size: 8\n",
        "on a Ray of this machine",
        "batches of 8",
    ):
        assert words in result.output
    done = dry_run(f"{tmp_path}/photos-0.tar", begun, "--image-size", 64)
    assert "nothing is left to do: its only shard is committed" in done.output
    other = dry_run(photos, begun, "--image-size", 128)
    assert other.exit_code == 1
    assert "preprocessing.image_size: 64 -> 128" in other.output
    nothing = dry_run(f"{tmp_path}/none-*.tar", begun)
    assert nothing.exit_code == 1
    assert "none-*.tar" in nothing.output
    assert contents(tmp_path) == before


def test_which_settings_are_not_the_defaults() -> None:
    assert changed_settings(JobConfig(source="a.tar", output="o")) == {}
    changed = JobConfig.model_validate(
        {
            "source": "a.tar",
            "output": "o",
            "preprocessing": {"buckets": {"max_aspect_ratio": 2}, "background": [0, 0, 0]},
            "storage": {"s3": {"anon": True}},
            "limits": {"max_reject_fraction": 0.5},
        }
    )
    assert changed_settings(changed) == {
        "preprocessing.buckets.max_aspect_ratio": 2.0,
        "preprocessing.background": [0, 0, 0],
        "storage": {"s3": {"anon": True}},
    }
