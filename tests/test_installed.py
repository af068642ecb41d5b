"""tatok as users have it: a wheel in an environment of its own, used in a folder that has modules of the same names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import yaml

from tests.support.photos import photo_members, tar_bytes
from tests.support.places import ROOT
from tests.support.services.real_services import ray_head
from tests.support.tiny_checkpoint import tiny_checkpoint

BUILT = ("tatok", "schemas", "pipeline", "jobs", "examples", "pyproject.toml", "README.md", "LICENSE")
RAISES = "raise RuntimeError('tatok must not import what a user calls by the same name')\n"


@dataclass(frozen=True, kw_only=True)
class Installed:
    """An environment with tatok's wheel in it, and a user's folder."""

    python: Path
    packages: Path
    folder: Path

    def run(
        self, *command: object, environment: Mapping[str, str] = {}, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command of the environment, by its name, in the user's folder."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
        name, *arguments = map(str, command)
        return subprocess.run(
            [self.python.parent / name, *arguments],
            cwd=cwd or self.folder,
            env=inherited | dict(environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What tatok requires is borrowed from this environment by a path file, whose own path files do not count."""
    root = tmp_path_factory.mktemp("installed")
    source, environment, folder = root / "source", root / "environment", root / "user"
    source.mkdir()
    for name in BUILT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next((environment / "lib").glob("python*")) / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--no-deps"]
    borrowed = packages / "borrowed.pth"
    borrowed.write_text(os.pathsep.join(path for path in sys.path if path.endswith("site-packages")))
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-compile", "--quiet", "--disable-pip-version-check", source], check=True
    )
    for name in ("schemas", "jobs", "tests", "benchmarks"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(RAISES)
    (folder / "pipeline.py").write_text(RAISES)
    for number in range(2):
        (folder / f"photos-{number}.tar").write_bytes(tar_bytes(photo_members(4 * number, 4)))
    tiny_checkpoint(folder / "tiny")
    document = {
        "source": str(folder / "photos-{0..1}.tar"),
        "output": str(folder / "submitted"),
        "checkpoint": str(folder / "tiny"),
        "device": "cpu",
        "preprocessing": {"image_size": 32},
        "resources": {"batch_size": 4},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return Installed(python=environment / "bin" / "python", packages=packages, folder=folder)


def test_one_package_is_installed(installed: Installed) -> None:
    found = {path.name for path in installed.packages.iterdir()} - {"borrowed.pth", "__pycache__"}
    assert {name for name in found if not name.endswith(".dist-info")} == {"tatok"}
    [told] = [name for name in found if name.endswith(".dist-info")]
    assert told.startswith("tatok-")
    version = installed.run("tatok", "--version")
    assert version.stdout.split()[-1] == told.removeprefix("tatok-").removesuffix(".dist-info"), version
    assert installed.run("python", "-m", "tatok", "--version").stdout == version.stdout


def test_the_main_job_verify_and_the_loader_among_modules_of_the_same_names(installed: Installed) -> None:
    job = ("--config", "job.yaml", "--set", "output=tokens")
    for command in (("tokenize", *job), ("tokenize", *job), ("verify", "tokens", "--source", "photos-{0..1}.tar")):
        done = installed.run("tatok", *command)
        assert done.returncode == 0, done.stdout + done.stderr
    script = (
        "import tatok\nfrom tatok import TokenDataset, Packing\nfrom torch.utils.data import DataLoader\n"
        "stream = TokenDataset('tokens').stream(Packing(tokens=512), epochs=1)\n"
        "print(sum(len(batch.cu_seqlens) - 1 for batch in DataLoader(stream, batch_size=None, num_workers=1)))\n"
        "print(tatok.__file__)"
    )
    (installed.folder / "train.py").write_text(script)
    loaded = installed.run("python", "train.py")  # a script's own folder comes first on its path
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.splitlines()[0] == "8"
    assert str(installed.packages) in loaded.stdout


@pytest.mark.long
def test_the_demo_and_the_recipes_are_installed(installed: Installed) -> None:
    demo = installed.run("tatok", "demo", "--output", "demo-output")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert (installed.folder / "demo-output.png").stat().st_size > 10_000
    assert ds.dataset(installed.folder / "demo-output" / "data").count_rows() == 9
    unknown = installed.run("tatok", "train", "no-such-recipe")
    assert unknown.returncode != 0
    assert "train-photos-256" in unknown.stdout + unknown.stderr


SCRIPT = """
from pathlib import Path

import numpy as np
import tatok
import torch
from PIL import Image

reveal_type(tatok.tokenize("photos", "tokens", limits={"max_reject_fraction": 0.1}))  # RunSummary
reveal_type(tatok.plan("photos").files)  # tuple[str, ...]
opened = tatok.open("tokens")
reveal_type(opened.stats())  # DatasetStatistics
reveal_type(opened.stats(by="label"))  # GroupedStatistics
reveal_type(opened.dataset()[0])  # TokenRow
reveal_type(opened.decode("key"))  # Image
reveal_type(opened.decode(["key"]))  # list[Image]
tokenizer = tatok.Tokenizer.load()
one = tokenizer.encode("photo.jpg")
several = tokenizer.encode([Path("photo.jpg"), Image.new("RGB", (64, 64)), np.zeros((64, 64, 3), np.uint8)])
reveal_type(one)  # ImageTokens
reveal_type(one.preprocessing.size)  # tuple[int, int]
reveal_type(several)  # list[ImageTokens]
reveal_type(tokenizer.encode(Image.new("RGB", (64, 64))))  # ImageTokens
reveal_type(tokenizer.encode(np.zeros((64, 64, 3), np.uint8)))  # ImageTokens | Any
reveal_type(tokenizer.encode(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))  # TokenBatch | Any
reveal_type(tokenizer.decode(one))  # Image
reveal_type(tokenizer.decode(several))  # list[Image]
reveal_type(tokenizer.decode(one, as_="torch"))  # Tensor
reveal_type(tokenizer.decode([one], as_="torch"))  # list[Tensor]
reveal_type(tatok.load_tokenizer("mine.py:load").encode("photo.jpg"))  # ImageTokens
tatok.tokenize("photos", "tokens", devise="cpu")  # error: Unexpected keyword argument "devise"
tokenizer.encode(3)  # error: No overload variant of "encode"
"""


def test_the_wheel_is_typed(installed: Installed) -> None:
    """What type checkers look for; that they find what is so: below, and tests/jobs/python for lazy names."""
    assert (installed.packages / "tatok" / "py.typed").is_file()
    assert (installed.packages / "tatok" / "examples" / "first_hour.ipynb").is_file()


@pytest.mark.long
def test_mypy_finds_the_types_of_a_users_script(installed: Installed) -> None:
    (installed.folder / "typed.py").write_text(SCRIPT)
    checked = installed.run("python", "-m", "mypy", "--strict", "typed.py")
    said = [line.removeprefix("typed.py:") for line in checked.stdout.splitlines() if line.startswith("typed.py:")]
    found = {int(line.partition(":")[0]): line for line in reversed(said)}  # the first that is said of a line
    for number, line in enumerate(SCRIPT.splitlines(), 1):
        _, _, expected = line.partition("  # ")
        if not expected:
            assert number not in found, found[number]
        elif expected.startswith("error: "):
            assert expected in found[number]
        else:
            names = re.sub(r"(\w+\.)+(?=\w)", "", found[number].partition("Revealed type is ")[2])
            assert names == f'"{expected}"', found[number]


@pytest.fixture
def head_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tk-", dir="/tmp"))  # sockets need short paths
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long  # test_submit.py submits from a checkout, the test above runs what was installed
def test_a_submitted_job_runs_what_was_installed(installed: Installed, head_folder: Path) -> None:
    with ray_head(head_folder, environment={}) as head:
        submitted = installed.run(
            *("tatok", "submit", "job.yaml", "--address", head.address, "--dependencies", "installed"),
            environment=head.environment,
        )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert ds.dataset(installed.folder / "submitted" / "data").count_rows() == 8


def test_a_checkout_as_the_current_folder_is_named(installed: Installed, tmp_path: Path) -> None:
    """Ray's workers look into the current folder first, and would find the half of the package that lies there."""
    shutil.copytree(ROOT / "tatok", tmp_path / "tatok", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    job = ("--config", installed.folder / "job.yaml", "--set", f"output={tmp_path / 'tokens'}")
    done = installed.run("tatok", "tokenize", *job, cwd=tmp_path)
    assert done.returncode == 1
    assert f"another tatok, {tmp_path / 'tatok'}" in " ".join(done.stderr.split())
    assert "change into another folder" in " ".join(done.stderr.split())
