"""A training run's folder on a disk and in a bucket."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from tatok.model.autoencoder import TaTok, TaTokConfig
from tatok.model.checkpoint import load_checkpoint, save_checkpoint
from tatok.model.dtf import DTFSettings
from tatok.model.prior import Prior
from tatok.schemas.errors import CommitError, ConfigError
from tatok.training.run_folder import RunFolder

TINY = TaTokConfig(patch_size=4, num_global=1, codebook_size=8, code_dim=4, width=8, num_heads=1, num_trunk_layers=1,
                   num_base_layers=1, num_refiner_layers=1, num_decoder_layers=1, num_prior_layers=1)  # fmt: skip


@pytest.fixture(params=["disk", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "run")
    return f"s3://{request.getfixturevalue('s3_bucket')}/run-folder/{tmp_path.name}"


def test_files_are_replaced_and_missing_ones_are_none(location: str) -> None:
    folder = RunFolder(location)
    assert folder.read("state.pt") is None
    for data in (b"one", b"two"):
        folder.write("state.pt", data)
        folder.write("samples/a.png", data)
        assert RunFolder(location).read("state.pt") == data
    assert folder.path("samples/a.png") == f"{location}/samples/a.png"
    assert folder.read("samples/a.png") == b"two"


def test_records_beyond_the_state_are_dropped_on_resuming(location: str) -> None:
    first = RunFolder(location)
    for step in range(3):
        first.add_record({"step": step})
    first.sync_records()
    saved = first.num_records
    first.add_record({"step": 3})
    first.sync_records()  # killed before the next state
    second = RunFolder(location)
    second.keep_records(saved)
    second.add_record({"step": 3, "again": "yes"})
    second.sync_records()
    expected = b'{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3, "again": "yes"}\n'
    assert second.read("metrics.jsonl") == expected
    third = RunFolder(location)
    third.keep_records(None)
    assert third.num_records == 4
    with pytest.raises(ConfigError, match=r"has 4 lines, but the state beside it was saved after 5; put the file back"):
        third.keep_records(5)


def test_checkpoints_come_back(location: str) -> None:
    torch.manual_seed(0)
    model, prior = TaTok(TINY), Prior(TINY)
    folder = RunFolder(location)
    for threshold in (7.0, 8.0):
        dtf = DTFSettings(threshold=threshold)
        folder.write_checkpoint("checkpoint", partial(save_checkpoint, model=model, prior=prior, dtf=dtf))
    loaded = load_checkpoint(folder.path("checkpoint"))
    assert loaded.dtf.threshold == 8.0
    assert torch.equal(loaded.model.patch_quantizer.codebook_KC, model.patch_quantizer.codebook_KC)
    folder.write("checkpoint/config.json", b"{")
    with pytest.raises(ConfigError, match=f"{location}/checkpoint/config.json is not valid JSON"):
        load_checkpoint(folder.path("checkpoint"))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(str(tmp_path))
    folder.write("state.pt", b"whole")

    def full(source: str, target: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CommitError, match=r"cannot write .*state.pt: no space left; free space"):
        folder.write("state.pt", b"half")
    assert folder.read("state.pt") == b"whole"


def test_unreachable_places_are_named(tmp_path: Path, s3_bucket: str) -> None:
    with pytest.raises(ConfigError, match="output is 'nowhere://x/y'"):
        RunFolder("nowhere://x/y")
    with pytest.raises(ConfigError, match="nowhere://x/y"):
        load_checkpoint("nowhere://x/y")
    with pytest.raises(ConfigError, match=f"s3://{s3_bucket}/no-such-folder"):
        load_checkpoint(f"s3://{s3_bucket}/no-such-folder")
    with pytest.raises(CommitError, match=r"s3://no-such-bucket/run/state\.pt"):
        RunFolder("s3://no-such-bucket/run").write("state.pt", b"x")
