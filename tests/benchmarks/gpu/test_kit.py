"""The GPU kit on a CPU: its cheapest sections, those that crash and hang, and how things are packed and unpacked."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tatok.model.checkpoint import load_checkpoint
from tests.support.places import ROOT
from tests.support.tiny_checkpoint import tiny_checkpoint

carry, pack, unpack = (importlib.import_module(f"benchmarks.gpu.travel.{name}") for name in ("carry", "pack", "unpack"))


def run_kit(out: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The command in a process, and what it wrote."""
    command = [sys.executable, "-m", "benchmarks.gpu.kit", "--out", str(out), "--device", "cpu", "--tiny", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    return told, json.loads((out / "gpu.json").read_text())["sections"]


@pytest.mark.timeout(300)
def test_sections_are_measured_and_those_that_fail_lose_only_themselves(tmp_path: Path) -> None:
    order = ["crash", "machine", "hang", "agreement", "rows", "graph"]
    told, sections = run_kit(tmp_path, "--seconds", "200", "--only", *order)
    assert told.returncode == 1
    assert list(sections) == order
    for name, reason in (("crash", "ended with -6"), ("hang", "deadline")):
        assert reason in sections[name]["error"]
        assert sections[name]["measurements"]["before"]["value"] == 1  # what it had measured is kept
        assert "before" in sections[name]["log_tail"]
    assert "rehearsals.py" in sections["hang"]["log_tail"]  # where it hung
    assert sections["graph"] == {"skipped": "needs CUDA"}
    assert "error" not in sections["machine"]
    assert sections["machine"]["measurements"]["matmul.float32"]["tflop_per_s"] > 0
    agreement = sections["agreement"]["measurements"]
    assert agreement["float32.batch_4"]["rows_equal"] == 1
    assert agreement["float32.target"]["holds"]
    assert agreement["float32.clips"]["rows_equal"] == 1
    assert not [name for name, value in agreement.items() if "error" in value]
    assert "float32: rows equal to the CPU's 1.0000" in told.stdout
    rows = sections["rows"]["measurements"]
    assert {f"float32.shards_2.{how}" for how in ("ahead", "one_at_a_time")} <= rows.keys()
    assert [each["parts"] for each in rows.values()] == [1, 1, 2, 2]
    assert len({each["part_bytes"] / each["parts"] for each in rows.values()}) == 1, "the same rows, whatever the order"
    assert all(0 < each["device_share"] <= 1 for each in rows.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "logs.txt"]
    assert "=== machine\n" in (tmp_path / "logs.txt").read_text()


def test_what_no_longer_fits_is_skipped_and_says_so(tmp_path: Path) -> None:
    told, sections = run_kit(tmp_path, "--seconds", "5", "--only", "machine", "speed")
    assert told.returncode == 0
    for name in ("machine", "speed"):
        assert "remained" in sections[name]["skipped"]
        assert name in told.stdout


def brought_home(folder: Path, checkpoint: Path, *, with_sums: bool = True) -> Path:
    """As phase.sh leaves a checkpoint: pieces of a tar, and their sums."""
    folder.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(checkpoint, "checkpoint")
    payload = buffer.getvalue()
    size = len(payload) // 3 + 1
    sums = []
    for number in range(3):
        name = f"checkpoint.tar.{number:02}"
        piece = payload[number * size : (number + 1) * size]
        (folder / name).write_bytes(piece)
        sums.append(f"{hashlib.sha256(piece).hexdigest()}  {name}\n")
    if with_sums:
        (folder / "checkpoint.sha256").write_text("".join(sums))
    return folder


def test_pieces_of_a_checkpoint_are_joined_and_loaded(tmp_path: Path) -> None:
    made = tiny_checkpoint(tmp_path / "made")
    for with_sums in (True, False):
        folder = brought_home(tmp_path / f"home-{with_sums}", made, with_sums=with_sums)
        out = tmp_path / f"out-{with_sums}"
        assert unpack.unpack_checkpoint(folder, out) == load_checkpoint(made).weights_sha256
        assert (out / "config.json").read_bytes() == (made / "config.json").read_bytes()


@pytest.mark.parametrize("with_sums", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_piece_that_is_missing_is_named(tmp_path: Path, number: int, with_sums: bool) -> None:
    folder = brought_home(tmp_path / "home", tiny_checkpoint(tmp_path / "made"), with_sums=with_sums)
    (folder / f"checkpoint.tar.{number:02}").unlink()
    # Without sums nothing tells how many there were; the last that is there is named.
    name = f"checkpoint.tar.{number:02} is missing" if with_sums or number < 2 else "checkpoint.tar.01"
    with pytest.raises(unpack.DamagedError, match=name):
        unpack.unpack_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_piece_that_is_damaged_is_named(tmp_path: Path, number: int) -> None:
    folder = brought_home(tmp_path / "home", tiny_checkpoint(tmp_path / "made"))
    piece = folder / f"checkpoint.tar.{number:02}"
    payload = bytearray(piece.read_bytes())
    payload[len(payload) // 2] ^= 1
    piece.write_bytes(payload)
    with pytest.raises(unpack.DamagedError, match=f"{piece.name} is damaged"):
        unpack.unpack_checkpoint(folder, tmp_path / "out")
    piece.write_bytes(payload[: len(payload) // 2])
    (folder / "checkpoint.sha256").unlink()
    with pytest.raises(unpack.DamagedError, match=r"checkpoint\.tar\.0\d"):
        unpack.unpack_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_that_points_elsewhere_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    with tarfile.open(folder / "checkpoint.tar.00", "w") as tar:
        pack.add(tar, "../outside", b"x")
    with pytest.raises(unpack.DamagedError, match=r"checkpoint\.tar\.00"):
        unpack.unpack_checkpoint(folder, tmp_path / "out")
    assert not list(tmp_path.rglob("outside"))


def test_results_are_merged_and_lose_logs_and_paths(tmp_path: Path) -> None:
    for name, file, section in (
        ("old", "gpu.json", "machine"),
        ("more", "gpu.json", "speed"),
        ("old", "gpu-new.json", "speed"),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        kernels = {"void at::native::copy<" + "x" * 60 + end: 1.0 for end in "ab"}
        measured = {"launches": {"longest_kernels_us": kernels, "told": "at /a/long/way/file.py:3\nmore"}}
        document = {"device": "cpu", "sections": {section: {"log_tail": "Traceback", "measurements": measured}}}
        (tmp_path / name / file).write_text(json.dumps(document))
    out = tmp_path / "results.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.travel.unpack",
        str(tmp_path / "old"),
        f"bundled in 0.1.0={tmp_path / 'more'}",
    ]
    subprocess.run([*command, "--results", str(out)], cwd=ROOT, check=True, timeout=60)
    told = json.loads(out.read_text())
    assert {label: list(each["sections"]) for label, each in told.items()} == {
        "bundled in 0.1.0": ["machine", "speed"],
        "new": ["speed"],
    }
    launches = told["new"]["sections"]["speed"]["measurements"]["launches"]
    assert "log_tail" not in told["new"]["sections"]["speed"]
    assert launches["told"] == "at file.py:3"
    first, second = launches["longest_kernels_us"]
    assert first.startswith("copy<x")
    assert second == f"{first} #2"


def test_photos_fill_the_first_call_and_then_the_second(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    names = [f"photo-{number}" for number in range(40)]
    names = [name for name in names if not pack.is_kept_out(name)][:6]
    kept_out = next(name for name in (f"other-{number}" for number in range(1000)) if pack.is_kept_out(name))
    photos = [(name, b"x" * 1000) for name in (names[0], kept_out, *names[1:])]
    counts = carry.fill(tmp_path, iter(photos), [2 * 1536, 3 * 1536])
    assert counts == {"a": 2, "b": 3, "validation": 1, "left out": 1}
    with tarfile.open(tmp_path / "b" / "photos.tar") as tar:
        assert tar.getnames() == [f"{name}.webp" for name in names[2:5]]
    with pytest.raises(carry.TooLargeError, match=r"5\.0 MiB \(photos 3\.0, site 2\.0\) of 4"):
        carry.check("a call", {"photos": 3 << 20, "site": 2 << 20}, 4 << 20)


def test_halved_weights_keep_their_shapes(tmp_path: Path) -> None:
    state = {"body": torch.randn(64, 64), "head.weight": torch.randn(512, 512), "head.count": torch.tensor(3)}
    torch.save(state, tmp_path / "weights.pth")
    payload = carry.half(tmp_path / "weights.pth", ("head.",))
    assert len(payload) < 32_000
    told = torch.load(io.BytesIO(payload), weights_only=True)
    assert told["body"].dtype == torch.float16
    assert {name: each.shape for name, each in told.items()} == {name: each.shape for name, each in state.items()}
