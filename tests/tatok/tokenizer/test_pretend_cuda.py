"""Tokenizing on a pretended CUDA device: one wait a batch, few launches, and what the CPU gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tatok.model.dtf import DTFSettings
from tests.support.cuda import pretend_cuda
from tests.support.places import ROOT
from tests.support.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler, which the pretended device needs")
    folder = tmp_path_factory.mktemp("pretend")
    guard = pretend_cuda.build_guard(folder, compiler)
    dtf = DTFSettings(criterion="distance", threshold_kind="distortion", threshold=2.0)
    checkpoint = tiny_checkpoint(folder / "tiny", dtf=dtf)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.cuda.pretend_tokenizing", str(guard), str(checkpoint)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


def test_a_batch_is_waited_for_once(found: dict[str, Any]) -> None:
    for name in ("eager", "rounds", "fraction", "zero", *(f"graph {number}" for number in range(11))):
        assert list(found[name]["waits"].values()) == [1], (name, found[name])
        assert found[name]["equal"], name
    assert found["eager"]["launches"] <= 190, found["eager"]


def test_two_batches_ahead_are_each_waited_for_once(found: dict[str, Any]) -> None:
    assert found["ahead"]["equal"]
    assert list(found["ahead"]["waits"].values()) == [2]
    assert found["ahead"]["by"]["graph"] == 2, "the first one's graph did not overwrite the second one's result"


def test_a_tokenizer_of_ones_own_is_waited_for_once_a_batch(found: dict[str, Any]) -> None:
    assert found["own ahead"]["equal"]
    assert list(found["own ahead"]["waits"].values()) == [2], found["own ahead"]["waits"]


def test_a_graph_is_one_launch_and_small_batches_use_it(found: dict[str, Any]) -> None:
    launches = [found[f"graph {number}"]["by"] for number in range(11)]
    assert [by.get("graph", 0) for by in launches] == [0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1]
    assert [sum(by.values()) <= 4 for by in launches] == [
        *(False, False, True, True),  # warmed up, captured; and then replayed, for the nine images, too
        *(True, True, True, True),  # one image in a graph for sixteen, while it is seldom
        *(False, False, True),  # a graph for one
    ]


def test_a_step_that_cannot_be_captured_is_named_once(found: dict[str, Any]) -> None:
    assert all(found[f"broken {number}"]["equal"] for number in range(3))
    (warning,) = found["warnings"]
    assert "run without a CUDA graph" in warning
    assert "not permitted when stream is capturing" in warning


def test_clips_are_waited_for_once_a_frame_that_follows(found: dict[str, Any]) -> None:
    """Whether any clip's frame may need new globals; and at the end for the codes of all frames."""
    assert found["clips"]["equal"]
    assert sorted(found["clips"]["waits"].values()) == [1, 3], found["clips"]["waits"]


def test_clips_through_graphs_are_few_launches_and_one_wait_a_step(found: dict[str, Any]) -> None:
    """Four frames: the first, and three steps of which each is two graphs, what is copied into and out of them, and
    the question which frames the second is for. The first two batches of a size warm up and capture."""
    for number in range(5):
        clips = found[f"clips {number}"]
        assert clips["equal"], number
        assert sorted(clips["waits"].values()) == [1, 3], clips["waits"]
    for number in range(2, 5):
        assert found[f"clips {number}"]["by"]["graph"] == 1 + 2 * 3
        assert found[f"clips {number}"]["launches"] <= 4 * 75, found[f"clips {number}"]


def test_decoding_is_not_waited_for(found: dict[str, Any]) -> None:
    for name in ("decode", "decode clips"):
        assert found[name]["equal"], name
        assert not found[name]["waits"], found[name]["waits"]


def test_precisions(found: dict[str, Any]) -> None:
    assert found["tf32"]["equal"]  # which is pretended, too
    assert not found["bfloat16"]["equal"]


def test_the_pretended_device_refuses_mixed_devices(found: dict[str, Any]) -> None:
    assert "tensors on cuda:0 and cpu" in found["mix"]
