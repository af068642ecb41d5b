"""The speed bench in small: its table and its figures, with a trained generator beside the told lengths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.claims import speed as claims_speed
from tatok.generator.checkpoint import GeneratorCheckpoint, save_generator
from tatok.generator.config import GeneratorConfig
from tatok.generator.model import Generator
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.photos import photo_members, tar_bytes
from tests.support.real_data import write_real_data
from tests.support.synthetic_tokens import write_synthetic

NUM_GLOBAL = Tokenizer.load().num_global
TINY = {"width": 64, "num_layers": 1, "num_heads": 1}
OPTIONS = [
    "--batch",
    "6",
    "--rounds",
    "2",
    "--images-a-round",
    "1",
    "--width",
    "64",
    "--num-layers",
    "1",
    "--num-heads",
    "1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 simple photos of 8 x 8 patches, as the shipped tokenizer tells them."""
    folder = tmp_path_factory.mktemp("speed")
    (folder / "photos.tar").write_bytes(tar_bytes(photo_members(0, 40)))
    write_real_data(str(folder / "data"), (str(folder / "photos.tar"),), image_size=128)
    return folder / "data"


def generator(folder: Path, **changes: object) -> str:
    config = GeneratorConfig(
        **{"vocab_size": 4096, "num_global": NUM_GLOBAL, "grid": (1, 8, 8), "num_classes": 2, **TINY, **changes}
    )  # type: ignore[arg-type]
    save_generator(
        folder, GeneratorCheckpoint(generator=Generator(config), classes=("0", "1"), tokenizer_weights_sha256="")
    )
    return str(folder)


def test_the_bench_writes_what_it_measured(data: Path, tmp_path: Path) -> None:
    arguments = [str(data), "--generator", generator(tmp_path / "g"), "--json", f"{tmp_path}/speed.json"]
    result = CliRunner().invoke(claims_speed.app, [*arguments, *OPTIONS, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert figures["baseline_tokens"] == 64
    assert figures["num_rows"] == 40
    places = [(c["setting"], c["contender"], c["contender_batch"]) for c in figures["comparisons"]]
    baseline, tatok = figures["memory"]
    larger = tatok["batch"]
    assert tatok["computed_bytes"] <= baseline["computed_bytes"]
    assert places == [
        ("equal batch", "tatok", 6),
        ("equal batch", "tatok, never compacted", 6),
        ("equal batch", "tatok, trained, its own lengths", 6),
        ("equal memory", "tatok", larger),
        ("one at a time", "tatok", 1),
    ]
    for comparison in figures["comparisons"]:
        assert len(comparison["baseline_rounds"]) == len(comparison["ratios"]) == 2
        assert comparison["min_ratio"] <= comparison["median_ratio"] <= comparison["max_ratio"]
        assert comparison["median_end_to_end_ratio"] > 0
        assert comparison["baseline_tokens"] == 64
        assert NUM_GLOBAL <= comparison["contender_tokens"] <= NUM_GLOBAL + 64
    told, never = figures["comparisons"][:2]
    assert told["contender_tokens"] == never["contender_tokens"]  # both were told the same rows
    assert told["tail"] < never["tail"]
    for memory in figures["memory"]:
        assert memory["measured_bytes"] > memory["computed_cache_bytes"] / 2
    for text in ("equal memory", "one at a time", "measured", "40 rows"):
        assert text in result.output


def test_what_cannot_be_compared_is_refused(data: Path, tmp_path: Path) -> None:
    def measure(url: Path, trained: Generator | None) -> None:
        claims_speed.measure_speed(
            str(url),
            checkpoint=None,
            device=torch.device("cpu"),
            batch=1,
            num_rounds=1,
            images_a_round=1,
            trained=trained,
            **TINY,
        )

    other = Generator(GeneratorConfig(vocab_size=4096, num_global=1, grid=(1, 8, 8), num_classes=2, **TINY))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"num_global=1.*give its sizes"):
        measure(data, other)
    write_synthetic(str(tmp_path / "one"), 1)  # a single row keeps the same positions as all others
    with pytest.raises(ConfigError, match="nothing variable"):
        measure(tmp_path / "one", None)
