from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tatok.pipeline.output.manifest import claim_output, mark_incomplete, mark_success, read_manifest, update_manifest
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.fingerprint import run_fingerprint
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import CommitError
from tatok.schemas.identity import describe_difference
from tatok.schemas.job import JobConfig
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.parts import commit

CONFIG = JobConfig(source="a.tar", output="out")


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore.open(str(tmp_path))


def test_manifest_tells_every_part(store: OutputStore, tmp_path: Path) -> None:
    reports = [commit(store, name) for name in ("s0", "s1")]
    manifest = update_manifest(store, reports)
    document = json.loads((tmp_path / "_manifest.json").read_text())
    assert (document["num_parts"], document["num_rows"], document["num_rejects"]) == (2, 14, 2)
    assert document["num_tokens"] == manifest.num_tokens == sum(report.num_tokens for report in reports)
    assert document["rejects"] == {"corrupt": 2}
    assert manifest.reject_fraction == pytest.approx(2 / 16)
    for part in document["parts"]:
        data = (tmp_path / "data" / part["name"]).read_bytes()
        assert part["num_bytes"] == len(data)
        assert part["checksum"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert read_manifest(store) == manifest


@pytest.mark.parametrize("num_videos", [0, 2])
def test_manifest_is_the_same_from_reports_and_from_parts(store: OutputStore, tmp_path: Path, num_videos: int) -> None:
    from_reports = update_manifest(store, [commit(store, "s0", num_videos=num_videos), commit(store, "s1")])
    assert (from_reports.num_clips, from_reports.num_frames) == ((2, 5) if num_videos else (0, 0))
    assert read_manifest(store) == from_reports
    assert '"num_frames": 0' not in (tmp_path / "_manifest.json").read_text()
    (tmp_path / "_manifest.json").write_text("damaged")
    assert update_manifest(store, []) == from_reports


def test_manifest_follows_the_parts(store: OutputStore, tmp_path: Path) -> None:
    update_manifest(store, [commit(store, name) for name in ("s0", "s1")])
    (tmp_path / "data" / "part-s0.parquet").unlink()
    assert [part.name for part in update_manifest(store, []).parts] == ["part-s1.parquet"]


def test_foreign_file_is_named(store: OutputStore, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part-x.parquet").write_bytes(b"hello")
    with pytest.raises(CommitError, match=r"part-x\.parquet"):
        update_manifest(store, [])
    with pytest.raises(CommitError, match=r"part-x\.parquet"):
        claim_output(store, CONFIG, {"weights": "abc"})


def test_success_comes_and_goes(store: OutputStore, tmp_path: Path) -> None:
    mark_success(store)
    mark_success(store)
    assert (tmp_path / "_SUCCESS").exists()
    mark_incomplete(store)
    mark_incomplete(store)
    assert not (tmp_path / "_SUCCESS").exists()


def test_run_json_holds_the_configuration(store: OutputStore, tmp_path: Path) -> None:
    claim_output(store, CONFIG, {"weights": "abc"})
    document = json.loads((tmp_path / "_run.json").read_text())
    assert JobConfig.model_validate(document["config"]) == CONFIG
    assert document["fingerprint"] == {"weights": "abc"}
    other = JobConfig(source="b.tar", output="out")
    claim_output(store, other, {"weights": "abc"})
    assert json.loads((tmp_path / "_run.json").read_text())["config"]["source"] == ["b.tar"]


def test_other_fingerprint_is_refused_with_the_difference(store: OutputStore, tmp_path: Path) -> None:
    claim_output(store, CONFIG, {"weights": "abc", "threshold": "1", "pillow": "12"})
    before = (tmp_path / "_run.json").read_text()
    with pytest.raises(CommitError) as caught:
        claim_output(store, CONFIG, {"weights": "abc", "threshold": "2", "image_field": "jpg"})
    message = str(caught.value)
    for line in ("threshold: 1 -> 2", "pillow: 12 -> (none)", "image_field: (none) -> jpg", "another output"):
        assert line in message
    assert "weights:" not in message
    assert (tmp_path / "_run.json").read_text() == before


def test_parts_remember_the_fingerprint_without_run_json(store: OutputStore) -> None:
    commit(store)
    with pytest.raises(CommitError, match="weights: abc -> xyz"):
        claim_output(store, CONFIG, {"weights": "xyz"})
    claim_output(store, CONFIG, {"weights": "abc"})


def test_damaged_run_json(store: OutputStore, tmp_path: Path) -> None:
    (tmp_path / "_run.json").write_text("{")
    with pytest.raises(CommitError, match=r"run\.json"):
        claim_output(store, CONFIG, {})


def test_fingerprint_holds_what_changes_rows_and_nothing_else() -> None:
    spec = TokenizerSpec.of(FakeTokenizer())  # type: ignore[arg-type]

    def fingerprint(**sections: dict[str, object] | str) -> dict[str, str]:
        return run_fingerprint(JobConfig.model_validate({"source": "a", "output": "o", **sections}), spec)

    plain = fingerprint()
    assert plain["tokenizer.weights"]
    assert plain["pillow"]
    for same in (
        {"resources": {"batch_size": 3, "num_decoders": 9}},
        {"limits": {"max_reject_fraction": 0.9}},
        {"source": "elsewhere"},
    ):
        assert fingerprint(**same) == plain  # type: ignore[arg-type]
    for name, other in (
        ("preprocessing.image_size", {"preprocessing": {"image_size": 128}}),
        ("preprocessing.resample", {"preprocessing": {"resample": "lanczos"}}),
        ("image_field", {"image_field": "png"}),
        ("patch_entropy", {"write": {"patch_entropy": False}}),
    ):
        (line,) = describe_difference(plain, fingerprint(**other))  # type: ignore[arg-type]
        assert line.startswith(f"{name}: ")
