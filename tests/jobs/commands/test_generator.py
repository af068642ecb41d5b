"""`tatok generator train` and `sample`, from photos with labels to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tatok.generator.checkpoint import load_generator
from tatok.jobs.cli import app
from tests.support.photos import photo_members, tar_bytes
from tests.support.real_data import write_real_data

SMALL = ["--steps", "3", "--width", "32", "--num-layers", "1", "--num-heads", "2"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["generator", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["generator", *arguments])
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def size(path: str | Path) -> tuple[int, int]:
    """Width and height."""
    return pixels(path).shape[1::-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 20 small photos in 10 classes under `data`, and a generator that saw it under `run`."""
    folder = tmp_path_factory.mktemp("generator")
    (folder / "photos.tar").write_bytes(tar_bytes(photo_members(0, 20)))
    write_real_data(str(folder / "data"), (str(folder / "photos.tar"),), image_size=32)
    output = run("train", f"{folder}/data", "-o", f"{folder}/run", "--heldout", f"{folder}/data", *SMALL)
    assert "3 steps" in output
    assert "bits an image" in output
    assert "over 20 images" in output
    return folder


def test_a_picture_has_a_row_a_class(trained: Path) -> None:
    picture = trained / "grid.png"
    output = run("sample", f"{trained}/run/checkpoint", "-o", str(picture), "--classes", "3, 7,3", "--count", "2")
    assert "6 images" in output
    assert size(picture) == (2 * 32, 3 * 32)


def test_a_folder_has_a_file_an_image(trained: Path) -> None:
    run("sample", f"{trained}/run/checkpoint", "-o", f"{trained}/images", "--count", "3", "--batch-size", "7")
    names = sorted(path.name for path in (trained / "images").iterdir())
    assert len(names) == 30
    assert names[:4] == ["0000-0-0000.png", "0000-0-0001.png", "0000-0-0002.png", "0001-1-0000.png"]
    assert size(trained / "images" / names[0]) == (32, 32)


def test_a_seed_fixes_the_pictures(trained: Path) -> None:
    pictures = {}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        path = trained / f"{name}.png"
        run("sample", f"{trained}/run/checkpoint", "-o", str(path), "--classes", "1", "--seed", seed)
        pictures[name] = pixels(path)
    assert (pictures["a"] == pictures["b"]).all()
    assert (pictures["a"] != pictures["c"]).any()


def test_the_same_command_again_has_nothing_left_to_do(trained: Path) -> None:
    before = load_generator(trained / "run" / "checkpoint").generator.state_dict()
    assert "3 steps" in run("train", f"{trained}/data", "-o", f"{trained}/run", *SMALL)
    after = load_generator(trained / "run" / "checkpoint").generator.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())


def test_what_does_not_fit_is_refused(trained: Path, tmp_path: Path) -> None:
    checkpoint = f"{trained}/run/checkpoint"
    assert "no class cat; it knows 0, 1" in refused("sample", checkpoint, "-o", "x.png", "--classes", "cat")
    assert "exactly one budget" in refused("train", f"{trained}/data", "-o", str(tmp_path))
    assert "exactly one budget" in refused(
        "train", f"{trained}/data", "-o", str(tmp_path), "--steps", "1", "--tokens", "5"
    )
    assert "is not a generator's checkpoint" in refused("sample", str(tmp_path), "-o", "x.png")
    config = trained / "run" / "checkpoint" / "config.json"
    text = config.read_text()
    sha = load_generator(checkpoint).tokenizer_weights_sha256
    config.write_text(text.replace(sha, "0" * 64))
    assert "name the tokenizer that made them with --tokenizer" in refused("sample", checkpoint, "-o", "x.png")
    config.write_text(text)


def test_without_labels(trained: Path, tmp_path: Path) -> None:
    run("train", f"{trained}/data", "-o", f"{tmp_path}/run", "--unconditional", *SMALL)
    run("sample", f"{tmp_path}/run/checkpoint", "-o", f"{tmp_path}/grid.png", "--count", "2")
    assert size(tmp_path / "grid.png") == (64, 32)
    assert "without labels" in refused("sample", f"{tmp_path}/run/checkpoint", "-o", "x.png", "--guidance", "2")


def test_an_output_that_cannot_be_written_is_said_before_the_first_step(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (f"{tmp_path}/file", f"{tmp_path}/file/run", "/proc/run", "nowhere://x/run"):
        assert output in refused("train", f"{trained}/data", "-o", output, "--steps", "1000000")


def test_held_out_rows_of_another_grid_are_said_before_the_first_step(trained: Path, tmp_path: Path) -> None:
    write_real_data(str(tmp_path / "other"), (str(trained / "photos.tar"),), image_size=48)
    said = refused("train", f"{trained}/data", "-o", f"{tmp_path}/run", *SMALL, "--heldout", f"{tmp_path}/other", "-q")
    assert "has a grid of (1, 3, 3), the training data of (1, 2, 2)" in said
    assert list((tmp_path / "run").iterdir()) == []


def test_quiet_prints_the_result_alone(trained: Path, tmp_path: Path) -> None:
    output = run("train", f"{trained}/data", "-o", f"{tmp_path}/run", *SMALL, "--quiet")
    assert len(output.splitlines()) == 1
    assert output.startswith("3 steps, ")
