"""What the pages on queries and columns say: their commands and Python run, and columns repeat what they should."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.schemas.tokens import REPEATS
from tatok.schemas.preprocessing import Video
from tatok.statistics.sql import query
from tests.support.photos import tar_bytes
from tests.support.places import EXAMPLES, ROOT
from tests.support.real_data import write_real_data
from tests.support.synthetic_tokens import write_synthetic
from tests.support.synthetic_videos import video_bytes

PAGES_OF_RECIPES = ("guides/query.md", "explanation/entropy-columns.md")


def recipes(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands = "".join(blocks).replace("\\\n", " ")
    return [words[1:] for words in map(shlex.split, re.findall(r"^tatok .*?(?=^tatok|\Z)", commands, re.M | re.S))]


@pytest.fixture(scope="module")
def with_bits_of_patches(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("patches"))
    write_synthetic(folder, 40, rows_per_part=20, rejects_per_part=3, patch_entropy=True, patch_worth=True)
    return folder


@pytest.mark.parametrize(
    "command",
    [recipe for page in PAGES_OF_RECIPES for recipe in recipes(page)],
    ids=lambda command: " ".join(command)[:60].replace("\n", " "),
)
def test_recipes_of_the_documentation_run(
    command: list[str], with_bits_of_patches: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.csv").write_text("key,caption\nrow-000000001,a cat\n")
    result = CliRunner().invoke(app, [with_bits_of_patches if word == "OUTPUT" else word for word in command])
    assert result.exit_code == 0, result.output
    if "--output" not in command:
        assert len(result.stdout.splitlines()) > 1


def test_there_are_recipes() -> None:
    assert [len(recipes(page)) >= 8 for page in PAGES_OF_RECIPES] == [True, True]


def test_python_of_the_documentation_runs(
    with_bits_of_patches: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OUTPUT").symlink_to(with_bits_of_patches)
    text = (ROOT / "docs" / "guides" / "query.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, "query.md", "exec"), {})


@pytest.fixture(scope="module")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("images") / "set")
    write_real_data(url, (str(EXAMPLES / "photos" / "demo-0000.tar"),), image_size=64)
    return url


@pytest.fixture(scope="module")
def real_clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    (folder / "clips.tar").write_bytes(tar_bytes([("noise.mp4", video_bytes(6, pictures=list(noise), width=64))]))
    video = Video(frames_per_clip=3)
    write_real_data(str(folder / "set"), (str(folder / "clips.tar"),), image_size=64, video=video)
    return str(folder / "set")


@pytest.mark.parametrize("name", ["real_images", "real_clips"])
def test_columns_that_are_said_to_repeat_others_do(name: str, request: pytest.FixtureRequest) -> None:
    data_set = request.getfixturevalue(name)
    for column, expression in REPEATS.items():
        table = query(data_set, f"SELECT {column} AS stored, {expression} AS computed FROM tokens")
        stored, computed = (table[side].to_numpy().astype(float) for side in ("stored", "computed"))
        assert len(stored)
        # float16 has 11 bits, float32 sums of hundreds of numbers some 20.
        np.testing.assert_allclose(computed, stored, rtol=2**-11 if column == "entropy_max_bits" else 1e-5)
