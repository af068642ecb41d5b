"""Training on clips: cameras that move over photos, pieces of videos, and the losses of frames that follow another."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tatok.model.checkpoint import load_checkpoint
from tatok.schemas.errors import ConfigError, SourceError
from tatok.training.config import CameraMoves, KeptMixture, TrainingConfig, load_training_config
from tatok.training.moving_photos import RandomClips, moving_photo
from tatok.training.photos import RandomCrops, expand_sources
from tatok.training.run import train
from tatok.training.trainer import Trainer
from tests.support.tiny_checkpoint import TINY_RECIPE

NOTHING = CameraMoves(still=0, pan=0, zoom=0, rotation_degrees=0, object=0, noise=0)


def noisy_photo(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def clip_of(moves: CameraMoves, *, seed: int = 0, num_frames: int = 4, size: int = 48) -> torch.Tensor:
    return moving_photo(noisy_photo(1), noisy_photo(2), size, num_frames, moves, random.Random(seed))


def differences(clip: torch.Tensor) -> list[float]:
    """Mean absolute difference of each frame from the first."""
    return (clip[1:].float() - clip[0].float()).abs().mean((1, 2, 3)).tolist()


def test_a_camera_that_does_nothing_shows_the_same_frame_again() -> None:
    clip = clip_of(NOTHING)
    assert clip.shape == (4, 3, 48, 48)
    assert clip.dtype is torch.uint8
    assert (clip == clip[:1]).all()
    assert clip.float().std() > 10


@pytest.mark.parametrize("move", ["pan", "zoom", "rotation_degrees"])
def test_each_move_goes_on_from_frame_to_frame(move: str) -> None:
    most = 5.0 if move == "rotation_degrees" else 0.05
    for seed in range(3):
        one, two, three = differences(clip_of(NOTHING.model_copy(update={move: most}), seed=seed))
        assert 0 < one < two < three
    assert differences(clip_of(NOTHING.model_copy(update={move: most, "still": 1.0}))) == [0, 0, 0]


def test_an_object_changes_a_still_picture_where_it_is_and_nowhere_else() -> None:
    clip = clip_of(NOTHING.model_copy(update={"object": 1.0, "object_step": 0.2}))
    changed = (clip[1] != clip[0]).any(0).float().mean()
    assert 0 < changed < 0.6


def test_noise_differs_from_frame_to_frame_and_is_as_loud_as_said() -> None:
    clip = clip_of(NOTHING.model_copy(update={"noise": 8.0}), seed=3)
    assert 0 < differences(clip)[0] < 12
    assert not torch.equal(clip[1], clip[2])


def test_the_same_seed_moves_the_same_way() -> None:
    assert torch.equal(clip_of(CameraMoves(), seed=5), clip_of(CameraMoves(), seed=5))
    assert not torch.equal(clip_of(CameraMoves(), seed=5), clip_of(CameraMoves(), seed=6))


def counting_video(path: Path, num_frames: int, fps: int = 24) -> str:
    """A video whose frame n is of the grey value 4 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture
def crops(photo_shards: Callable[..., str]) -> RandomCrops:
    return RandomCrops(expand_sources([photo_shards(num_shards=1, photos_per_shard=8)]), 32, 0, shuffle_buffer=4)


def test_pieces_of_videos_follow_each_other_at_the_rate(crops: RandomCrops, tmp_path: Path) -> None:
    videos = [counting_video(tmp_path / "count.mp4", 40)]
    clips = RandomClips(crops, 3, CameraMoves(), videos=videos, video_share=1.0, video_fps=8)
    for clip, first in zip(islice(clips, 6), [0, 9, 18, 27, 0, 9], strict=True):  # every third frame; then again
        assert clip.shape == (3, 3, 32, 32)
        wanted = [4.0 * (first + step) for step in (0, 3, 6)]
        assert clip.float().mean((1, 2, 3)).tolist() == pytest.approx(wanted, abs=5)


def test_photos_and_videos_are_mixed_and_workers_differ(crops: RandomCrops, tmp_path: Path) -> None:
    videos = [counting_video(tmp_path / "count.mp4", 40)]
    clips = RandomClips(crops, 2, CameraMoves(), videos=videos, video_share=0.5)
    is_flat = [float(clip.float().std((2, 3)).max()) < 2 for clip in islice(clips, 24)]
    assert 4 <= sum(is_flat) <= 20
    of_two = list(islice(DataLoader(clips, batch_size=2, num_workers=2), 2))
    assert not torch.equal(of_two[0], of_two[1])


def test_videos_that_give_no_clip_are_named(crops: RandomCrops, tmp_path: Path) -> None:
    short = counting_video(tmp_path / "short.mp4", 3)
    with pytest.raises(SourceError, match=r"short\.mp4 has 4 frames at 8 a second"):
        next(iter(RandomClips(crops, 4, CameraMoves(), videos=[short], video_share=1.0)))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(SourceError, match=r"cannot read frames from .*broken\.mp4"):
        next(iter(RandomClips(crops, 4, CameraMoves(), videos=[str(broken)], video_share=1.0)))


# --- losses and stages ------------------------------------------------------------------------------------------------


@pytest.fixture
def config(photo_shards: Callable[..., str], tmp_path: Path) -> TrainingConfig:
    source = photo_shards(num_shards=2, photos_per_shard=8)
    shape = {"batch_size": 4, "image_size": 32, "warmup_steps": 2}
    document = {
        "output": str(tmp_path / "run"),
        "photos": [source],
        "videos": [counting_video(tmp_path / "count.mp4", 40)],
        "heldout": [source],
        "num_heldout": 4,
        "num_loader_workers": 0,
        "num_start_crops": 32,
        "log_every_steps": 3,
        "save_every_steps": 3,
        "model": TINY_RECIPE,
        "stages": [
            {"name": "images", "train": ["tokenizer"], "steps": 6, **shape},
            {"name": "clips", "train": ["decoder", "prior"], "steps": 6, "num_frames": 3, **shape},
            {"name": "all", "train": ["tokenizer", "prior"], "steps": 3, "num_frames": 3, **shape},
        ],
    }
    path = tmp_path / "train.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return load_training_config(path)


def clip_batches(config: TrainingConfig, moves: CameraMoves | None = None) -> DataLoader[torch.Tensor]:
    crops = RandomCrops(expand_sources(config.photos), 32, 0)
    return DataLoader(RandomClips(crops, 3, moves or CameraMoves()), batch_size=4)


def trainer_of(config: TrainingConfig) -> Trainer:
    trainer = Trainer(config, torch.device("cpu"))
    trainer.initialise(iter(clip_batches(config)))
    return trainer


def test_stages_on_clips_leave_the_codes_of_images_as_they_are_where_the_encoder_is_not_trained(
    config: TrainingConfig,
) -> None:
    images, clips, everything = config.stages
    train(config.model_copy(update={"stages": (images,)}), torch.device("cpu"))
    before = load_checkpoint(Path(config.output) / "checkpoint").model.state_dict()
    train(config.model_copy(update={"stages": (images, clips)}), torch.device("cpu"))
    after = load_checkpoint(Path(config.output) / "checkpoint").model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    # All of the decoder: its base learns too, and codes of patches are of what the base leaves open.
    assert all(name.startswith("decoder.") for name in moved), moved
    records = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    assert {"pixel", "base", "prior", "pixel_after", "prior_after"} <= records[-1].keys()
    train(config, torch.device("cpu"))
    last = json.loads((Path(config.output) / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == everything.name
    assert "commitment_after" in last


def test_frames_that_follow_get_better_by_training(config: TrainingConfig) -> None:
    kept = KeptMixture(none=0, full=1, random=0, energy=0)
    quick = config.stages[1].model_copy(update={"learning_rate": 3e-3, "steps": 30, "kept": kept})
    trainer = trainer_of(config.model_copy(update={"stages": (quick,)}))
    fixed = next(iter(clip_batches(config)))

    def losses() -> dict[str, float]:
        torch.manual_seed(0)
        with torch.no_grad():
            return {name: float(term) for name, term in trainer.losses(fixed / 127.5 - 1, quick).items()}

    before = losses()
    for _ in range(quick.steps):
        trainer.train_step(fixed)
    after = losses()
    assert after["prior_after"] < 0.9 * before["prior_after"], (before, after)
    assert after["pixel_after"] < 0.9 * before["pixel_after"], (before, after)


def test_a_clip_of_one_frame_has_the_losses_of_an_image_to_the_bit(config: TrainingConfig) -> None:
    trainer = trainer_of(config)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    for stage in config.stages:
        torch.manual_seed(1)
        of_images = trainer.losses(images, stage)
        torch.manual_seed(1)
        of_clips = trainer.losses(images[:, None], stage)
        assert of_images.keys() == of_clips.keys()
        assert all(torch.equal(of_images[name], of_clips[name]) for name in of_images)


def test_codebooks_follow_images_only(config: TrainingConfig) -> None:
    """What most frames say, that nothing changed, would draw all codes there."""
    trainer, stage = trainer_of(config), config.stages[2]
    clips = next(iter(clip_batches(config))).float() / 127.5 - 1
    states = []
    for pixels in (clips[:, 0], clips):
        copied = copy.deepcopy(trainer)
        copied.model.train()
        torch.manual_seed(2)
        copied.losses(pixels, stage)
        assert copied.model.training
        states.append([copied.model.patch_quantizer.codebook_KC, copied.model.global_quantizer.codebook_KC])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert not torch.equal(states[0][0], trainer.model.patch_quantizer.codebook_KC)


def test_models_without_anchored_globals_cannot_be_trained_on_clips(config: TrainingConfig) -> None:
    document = config.model_dump()
    document["model"] = TINY_RECIPE | {"anchored": False}
    with pytest.raises(ValueError, match=r"stage clips is on clips \(num_frames\), which need anchored globals"):
        TrainingConfig.model_validate(document)
    document["model"] = TINY_RECIPE | {"num_global": 0}
    with pytest.raises(ValueError, match="anchored globals"):
        TrainingConfig.model_validate(document)


def test_a_pattern_without_videos_is_named(config: TrainingConfig) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        train(config.model_copy(update={"videos": ("nowhere/*.mp4",)}), torch.device("cpu"))
