"""What is said of a checkpoint's files before anything is loaded, in folders and under URLs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from tatok.checkpoint_files import check_checkpoint
from tatok.model.checkpoint import default_checkpoint, load_checkpoint
from tatok.pipeline.run import run_job
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(params=["a folder", "a folder [v1] #2", "a URL"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[str, bytes | None], None]]]:
    """A good checkpoint, and how one of its files is replaced or removed."""
    made = tiny_checkpoint(tmp_path / (request.param if request.param != "a URL" else "made"))
    if request.param == "a URL":
        fs = fsspec.filesystem("memory")
        fs.put(str(made), "/checkpoints/tiny", recursive=True)

        def change(name: str, data: bytes | None) -> None:
            path = f"/checkpoints/tiny/{name}"
            fs.rm(path) if data is None else fs.pipe_file(path, data)

        yield "memory://checkpoints/tiny", change
        fs.rm("/checkpoints", recursive=True)
        return

    def change_file(name: str, data: bytes | None) -> None:
        (made / name).unlink() if data is None else (made / name).write_bytes(data)

    yield str(made), change_file


Place = tuple[str, Callable[[str, bytes | None], None]]


def test_a_good_one_passes_and_loads(place: Place) -> None:
    folder, _ = place
    check_checkpoint(folder)
    check_checkpoint(f"{folder}/")
    assert Tokenizer.load(folder, device="cpu").vocab_size == load_checkpoint(folder).model.config.codebook_size


def test_the_bundled_one_passes() -> None:
    check_checkpoint(default_checkpoint())


CONFIG = {"format": 1, "model": {}, "dtf": {}}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("config.json", None, "is not a checkpoint: config.json is missing (`tatok train` writes one)"),
        ("model.safetensors", None, "is not a checkpoint: model.safetensors is missing"),
        ("config.json", b"{", "config.json is not valid JSON"),
        ("config.json", b"\xff\xfe", "config.json is not valid JSON"),
        ("config.json", b"[]", "config.json is not of the format 1"),
        ("config.json", json.dumps(CONFIG | {"format": "tatok-generator-1"}).encode(), "not of the format 1"),
        ("model.safetensors", b"", "model.safetensors is damaged"),
        ("model.safetensors", b"not a checkpoint at all", "model.safetensors is damaged"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{}", "model.safetensors is damaged"),
    ],
)
def test_what_is_wrong_is_named(place: Place, name: str, data: bytes | None, said: str) -> None:
    folder, change = place
    change(name, data)
    with pytest.raises(ConfigError) as caught:
        check_checkpoint(folder)
    assert said in str(caught.value)
    assert folder in str(caught.value), "as it was given: a URL keeps its slashes"


def test_cut_weights_are_seen_without_reading_them(place: Place) -> None:
    folder, change = place
    fs, path = fsspec.core.url_to_fs(folder) if "://" in folder else (fsspec.filesystem("file"), folder)
    change("model.safetensors", fs.cat_file(f"{path}/model.safetensors")[:-1])
    with pytest.raises(ConfigError, match=r"model.safetensors is damaged: it has [\d,]+ bytes, and its header"):
        check_checkpoint(folder)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere://bucket/checkpoint", "cannot read the checkpoint nowhere://bucket/checkpoint"),
        ("memory://no/such/folder", "memory://no/such/folder is not a checkpoint"),
        ("/no/such/folder", "/no/such/folder is not a checkpoint"),
        (__file__, f"{__file__} is not a checkpoint"),
    ],
)
def test_a_job_with_a_wrong_checkpoint_ends_before_ray_starts(
    place: str, said: str, tmp_path: Path, photo_shards: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tatok.pipeline.cluster.driver", None)  # Ray must not even be imported
    config = JobConfig(source=(photo_shards(1, 1),), output=str(tmp_path / "out"), checkpoint=place)
    with pytest.raises(ConfigError) as caught:
        run_job(config)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_in_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    made = tiny_checkpoint(tmp_path / "made")
    fsspec.filesystem("s3").put(str(made), f"{s3_bucket}/checkpoints/tiny", recursive=True)
    url = f"s3://{s3_bucket}/checkpoints/tiny"
    check_checkpoint(url)
    assert Tokenizer.load(url, "cpu").fingerprint == Tokenizer.load(made, "cpu").fingerprint
    with pytest.raises(ConfigError, match=f"s3://{s3_bucket}/checkpoints/no-such is not a checkpoint"):
        check_checkpoint(f"s3://{s3_bucket}/checkpoints/no-such")


def test_looking_at_the_files_needs_no_torch(tmp_path: Path) -> None:
    made = shutil.copytree(default_checkpoint(), tmp_path / "copy")
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['ray'] = None\n"
        "from tatok.checkpoint_files import check_checkpoint\ncheck_checkpoint(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(made)], check=True)
