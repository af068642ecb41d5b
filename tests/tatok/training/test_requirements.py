"""What would end a training later is said before its first step: all of it at once, each with what to do about it."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tatok.device import device_named
from tatok.model.autoencoder import TaTokConfig
from tatok.pipeline.readers import formats
from tatok.schemas.errors import CommitError, ConfigError, SourceError, TatokError
from tatok.schemas.settings import validated
from tatok.training.config import TrainingConfig
from tatok.training.moving_photos import VIDEO_EXTENSIONS, RandomClips
from tatok.training.photo_memory import PhotoMemory
from tatok.training.photos import RandomCrops
from tatok.training.requirements import check_requirements, check_room, photos_read_whole, readable_photos
from tatok.training.run import train
from tatok.training.trainer import Trainer
from tests.support.photos import jpeg, photo_members, tar_bytes
from tests.support.synthetic_videos import video_bytes
from tests.support.tiny_checkpoint import TINY_RECIPE

CPU = torch.device("cpu")
STAGE = {"name": "s", "train": ["tokenizer"], "steps": 2, "batch_size": 2, "image_size": 32, "perceptual_size": 32}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources of every wrong kind, and good ones: good.tar, held.tar, clip.mp4."""
    pq.write_table(pa.table({"picture": [jpeg(1)], "name": ["a"]}), tmp_path / "other-column.parquet")
    pq.write_table(pa.table({"image": pa.array([None], pa.binary())}), tmp_path / "null.parquet")
    files = {
        "good.tar": tar_bytes(photo_members(0, 4)),
        "held.tar": tar_bytes(photo_members(4, 4)),
        "empty.tar": tar_bytes([]),
        "texts.tar": tar_bytes([("a.txt", b"no photo")]),
        "cut.tar": tar_bytes(photo_members(0, 4))[:5000],
        "no-tar.tar": b"these are no headers" * 60,
        "nothing.tar": b"",
        "no-photo.tar": tar_bytes([("a.jpg", b"no photo")]),
        "cut.jpg": jpeg(1)[:300],
        "notes.txt": b"no photos",
        "scan.tiff": b"II*\x00" + bytes(600),
        "damaged.parquet": b"PAR1 and no more",
        "no-video.mp4": b"no video",
        "clip.mp4": video_bytes(8),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "videos").mkdir()
    shutil.copy(tmp_path / "clip.mp4", tmp_path / "videos" / "clip.mp4")
    return tmp_path


def recipe(folder: Path, *, stage: dict[str, Any] | None = None, **changes: Any) -> TrainingConfig:
    document: dict[str, Any] = {
        "output": str(folder / "run"),
        "photos": ["good.tar"],
        "heldout": ["held.tar"],
        "num_loader_workers": 0,
        "num_start_crops": 8,
        "num_heldout": 2,
        "model": TINY_RECIPE,
        "stages": [STAGE | (stage or {})],
        **changes,
    }
    for name in ("photos", "heldout", "videos"):
        document[name] = [str(folder / each) if "://" not in each else each for each in document.get(name, [])]
    return validated(TrainingConfig, document, origin="the recipe")


CLIPS = {"num_frames": 3}
WRONG: dict[str, tuple[dict[str, Any], type[TatokError], str]] = {
    "a missing file": ({"photos": ["gone.tar"]}, ConfigError, r"gone.tar does not exist"),
    "a missing held-out file": ({"heldout": ["gone.tar"]}, ConfigError, r"gone.tar does not exist"),
    "a pattern of nothing": ({"photos": ["gone-*.tar"]}, ConfigError, r"no file matches"),
    "no photos": ({"photos": []}, ConfigError, r"photos is empty, and stage s trains on photos"),
    "an empty tar": ({"photos": ["empty.tar"]}, SourceError, r"no image in .*empty.tar \(photos\)"),
    "a tar of texts": ({"photos": ["texts.tar"]}, SourceError, r"no image in .*texts.tar"),
    "an empty held-out tar": ({"heldout": ["empty.tar"]}, SourceError, r"no image in .*empty.tar \(heldout\)"),
    "a tar that is cut off": (
        {"photos": ["cut.tar", "good.tar"]},
        SourceError,
        r"cut.tar: as a tar it is damaged or cut",
    ),
    "no tar": ({"photos": ["no-tar.tar"]}, SourceError, r"no-tar.tar: as a tar it is damaged"),
    "a file of no bytes": ({"photos": ["nothing.tar"]}, SourceError, r"nothing.tar: as a tar it is damaged"),
    "another kind of file": (
        {"photos": ["notes.txt"]},
        SourceError,
        r"notes.txt: it is no tar, no .parquet file and no image",
    ),
    "an image of another kind": (
        {"photos": ["scan.tiff"]},
        SourceError,
        r"scan.tiff: it is no tar, .* no image of .jpg",
    ),
    "no photo in a tar": ({"photos": ["no-photo.tar"]}, SourceError, r"photo 0 of .*no-photo.tar cannot be decoded"),
    "half a photo": ({"heldout": ["cut.jpg"]}, SourceError, r"photo 0 of .*cut.jpg cannot be decoded"),
    "a damaged table": ({"photos": ["damaged.parquet"]}, SourceError, r"damaged.parquet: Parquet magic bytes"),
    "a table of other columns": ({"photos": ["other-column.parquet"]}, SourceError, r"column `image`.*picture, name"),
    "a table of nulls": ({"photos": ["null.parquet"]}, SourceError, r"photo 0 of .*null.parquet cannot be decoded"),
    "a store without backend": ({"photos": ["nowhere://a.tar"]}, SourceError, r"nowhere://a.tar: Protocol not known"),
    "a glob that a store does not know": ({"photos": ["memory://gone/*.tar"]}, ConfigError, r"no file matches"),
    "no video": ({"videos": ["no-video.mp4"], "stage": CLIPS}, SourceError, r"frames from .*no-video.mp4"),
    "crops of no whole patches": (
        {"stage": {"image_size": 100}},
        ConfigError,
        r"stage s: image_size is 100.* 96 or 104",
    ),
    "an output among the photos": ({"photos": ["."]}, ConfigError, r"output .* lies in .*; choose an output beside it"),
    "an output that is a file": ({"output": "/proc/version/run"}, CommitError, r"cannot write to the output"),
    "TensorBoard in a bucket": (
        {"output": "memory://run", "tensorboard": True},
        ConfigError,
        r"cannot be written to mem",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_before_the_first_step(what: str, folder: Path) -> None:
    changes, kind, words = WRONG[what]
    if changes.get("photos") == ["."]:
        for path in folder.glob("*.*"):
            if path.name != "good.tar":
                path.unlink()
    with pytest.raises(kind, match=words) as raised:
        check_requirements(recipe(folder, **changes))
    assert "take it out" in str(raised.value) or raised.value.remedy or kind is ConfigError
    assert not list(folder.glob("run/*"))


def test_all_of_it_is_said_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    config = recipe(
        folder,
        photos=["gone.tar", "cut.tar", "good.tar"],
        heldout=["empty.tar"],
        compiled=True,
        stage={"image_size": 36, "lpips_weight": 1.0, "batch_size": 3},
    )
    with pytest.raises(ConfigError) as raised:
        check_requirements(config, num_workers=2, start_from=str(folder / "no-checkpoint"))
    said = str(raised.value)
    assert said.startswith("8 things stand in the way of this training:\n  1. ")
    for words in (
        "no-checkpoint is not a checkpoint",
        "batch_size of 3",
        "image_size is 36",
        "no C compiler\n     remedy: install one",
        "gone.tar does not exist",
        "cut.tar: as a tar",
        "no image in",
        "pip install 'tatok[train]'",
    ):
        assert words in said


def test_what_is_odd_goes_with_the_run_and_is_said(folder: Path) -> None:
    config = recipe(
        folder,
        photos=["good.tar", "empty.tar"],
        heldout=["good.tar"],
        videos=["clip.mp4"],
        num_start_crops=1,
        stage={
            "train": ["decoder"],
            "native_share": 0.5,
            "adversarial_weight": 0.1,
            "adversarial_start": 2,
            "camera": {},
        },
    )
    notes = "\n".join(check_requirements(config))
    for words in (
        "native_share has no effect",
        "not heard",
        "camera has no effect",
        "learned nothing yet",
        "repeated ones",
        "no image in",
        "videos have no effect",
        "held-out figures will flatter",
    ):
        assert words in notes
    assert check_requirements(recipe(folder, num_start_crops=64)) == ()


def test_images_that_a_folder_holds_beside_its_photos_are_counted(folder: Path) -> None:
    (folder / "mixed" / "below").mkdir(parents=True)
    shutil.copy(folder / "good.tar", folder / "mixed")
    for name in ("a.TIFF", "below/b.heic", "below/c.heic", "below/.d.heic", "notes.txt"):
        (folder / "mixed" / name).touch()
    [note] = check_requirements(recipe(folder, photos=["mixed"], num_start_crops=64))
    assert note == f"left out in {folder}/mixed: 2 .heic, 1 .tiff; photos are read as .jpg, .jpeg, .png, .webp"


def test_a_stage_on_videos_alone_needs_no_photos(folder: Path) -> None:
    clips = recipe(folder, photos=[], videos=["videos"], heldout=[], stage=CLIPS | {"video_share": 1.0})
    assert train(clips, CPU, say=[].append).endswith("checkpoint")


def test_shares_of_kept_sets_are_not_all_0() -> None:
    document = {"output": "run", "photos": ["a"], "stages": [STAGE | {"kept": dict.fromkeys(["none", "full", "random",
                "energy"], 0)}]}  # fmt: skip
    with pytest.raises(ConfigError) as raised:
        validated(TrainingConfig, document, origin="a")
    assert str(raised.value) == "a: wrong settings\n  stages.0.kept: all shares are 0; give one of them a share"


def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 0, 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    check_room(str(tmp_path / "not" / "yet"), 10**9)
    check_room("s3://bucket/run", 10**12)
    with pytest.raises(CommitError, match=r"needs about 2.0 GB in .*, and its disk has 1.0 GB free"):
        check_room(str(tmp_path / "not" / "yet"), 2 * 10**9)


@pytest.mark.parametrize("name", ["gpu0", "cuda:77", "cpu:banana"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device {name} cannot be used: ") as raised:
        device_named(name)
    assert "cpu" in str(raised.value.remedy)
    assert len(str(raised.value)) < 200


def test_videos_are_those_that_jobs_take() -> None:
    assert set(VIDEO_EXTENSIONS) == formats.VIDEO_EXTENSIONS


def test_every_photo_can_be_looked_at(folder: Path) -> None:
    members = photo_members(0, 6)
    members[8] = (members[8][0], b"no photo")  # of the third
    (folder / "good.tar").write_bytes(tar_bytes(members))
    (folder / "cut.tar").write_bytes(tar_bytes(photo_members(0, 4))[:5000])
    found = list(photos_read_whole(recipe(folder, photos=["good.tar", "cut.tar"])))
    assert [str(error) for _, error in found if error] == [
        f"photo 2 of {folder}/good.tar cannot be decoded: these bytes are no image that Pillow knows; take it out",
        f"cannot read photos from {folder}/cut.tar: as a tar it is damaged or cut off (unexpected end of data)",
    ]
    assert sum(error is None for path, error in found if path.endswith("held.tar")) == 4
    assert readable_photos([str(folder / "good.tar")]) == [str(folder / "good.tar")]  # its first can be decoded


@pytest.mark.parametrize("kind", ["crops", "clips", "memory"])
def test_a_photo_that_cannot_be_decoded_is_named_whoever_comes_upon_it(kind: str, folder: Path) -> None:
    paths = [str(folder / "no-photo.tar")]
    crops = RandomCrops(paths, 32, 0, shuffle_buffer=1)
    clips = RandomClips(crops, 2, recipe(folder).stages[0].camera)
    asks: dict[str, Callable[[], object]] = {
        "crops": lambda: next(iter(crops)),
        "clips": lambda: next(iter(clips)),
        "memory": lambda: PhotoMemory(paths, CPU),
    }
    with pytest.raises(SourceError, match=r"photo 0 of .*no-photo.tar cannot be decoded: these bytes are no image"):
        asks[kind]()


@pytest.mark.parametrize("num_loader_workers", [0, 1])
def test_a_photo_that_turns_up_later_ends_the_run_with_its_state_saved(num_loader_workers: int, folder: Path) -> None:
    """By a loader's process, too, the error is of one line; without the photo the run ends as it would have."""
    members = photo_members(0, 40)
    bad = [*members[:-4], ("photo-0039.jpg", b"no photo")]
    (folder / "good.tar").write_bytes(tar_bytes(bad))
    changes = {"num_loader_workers": num_loader_workers, "photos": ["good.tar"], "heldout": [], "seed": 7}
    config = recipe(folder, stage={"steps": 16}, **changes)  # by that seed it comes 34th, after those to start from
    with pytest.raises(SourceError, match=r"^photo 39 of [^\n]* cannot be decoded: [^\n]*$"):
        train(config, CPU, say=[].append)
    (folder / "good.tar").write_bytes(tar_bytes(members))
    lines: list[str] = []
    train(config, CPU, say=lines.append)
    assert lines[0] == f"resuming in {config.output}: stage 1, step 12"


def test_a_run_that_has_ended_says_so_and_touches_nothing(folder: Path) -> None:
    config, lines = recipe(folder, num_start_crops=64), list[str]()
    checkpoint = Path(train(config, CPU, say=lines.append))
    assert [line.partition(":")[0] for line in lines[-2:]] == ["finished", "checkpoint"]
    assert "dB of all tokens" in lines[-2]
    calibrated = json.loads((checkpoint / "config.json").read_text())
    calibrated["dtf"]["threshold"] = 7.5  # as `tatok calibrate --write` does
    (checkpoint / "config.json").write_text(json.dumps(calibrated))
    for path in folder.glob("*.tar"):  # nothing of it is needed any more
        path.unlink()
    lines.clear()
    assert train(config, CPU, say=lines.append) == str(checkpoint)
    assert lines[0].startswith("finished already, 2 steps in 0:0")
    assert lines[1:] == [f"checkpoint: {checkpoint}"]
    assert json.loads((checkpoint / "config.json").read_text())["dtf"]["threshold"] == 7.5


def test_more_stages_or_a_lost_checkpoint_are_not_taken_for_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, lines = recipe(folder, num_start_crops=64), list[str]()
    checkpoint = Path(train(config, CPU, say=lines.append))
    (checkpoint / "config.json").unlink()
    train(config, CPU, say=lines.append)
    assert (checkpoint / "config.json").exists()
    more = config.model_copy(update={"stages": (*config.stages, config.stages[0].model_copy(update={"name": "more"}))})
    steps: list[int] = []
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, pixels: steps.append(self.step) or step(self, pixels))
    train(more, CPU, say=lines.append)
    assert steps == [0, 1]
    with pytest.raises(ConfigError, match="another model"):
        train(config.model_copy(update={"model": TaTokConfig(**{**TINY_RECIPE, "width": 64})}), CPU)
