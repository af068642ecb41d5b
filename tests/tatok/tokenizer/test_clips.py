"""Temporal TaTok: a clip of one frame is an image, what stays costs nothing, what moves never costs more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tatok import Grid, Tokenizer
from tatok.model.dtf import DTFSettings
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.frames import join_frames, split_frames
from tests.support.real_data import demo_photos
from tests.support.tiny_checkpoint import tiny_images, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny")).with_dtf(threshold=2.0)


def noisy(clip_T3HW: Tensor, seed: int = 0) -> Tensor:
    """The clip as a sensor would give it: every frame has noise of its own."""
    noise = torch.randn(clip_T3HW.shape, generator=torch.Generator().manual_seed(seed))
    return (clip_T3HW.float() + 2 * noise).clamp(0, 255).byte()


def static_clip(num_frames: int, photo: int = 0, side: int = 128) -> Tensor:
    return noisy(demo_photos(side)[photo].expand(num_frames, -1, -1, -1))


def moving_clip(num_frames: int, step: int, photo: int = 1, side: int = 128) -> Tensor:
    """A pan over a photo, `step` pixels a frame."""
    image = demo_photos(256)[photo]
    return torch.stack([image[:, step * t : step * t + side, step * t : step * t + side] for t in range(num_frames)])


def tiny_clips() -> Tensor:
    """uint8 [3, 5, 3, 32, 32]: a still one, one that moves, and one with a cut before frame 3."""
    still, wide, cut = tiny_images(4, seed=1)[3], tiny_images(1, seed=2, side=48)[0], tiny_images(2, seed=3)
    return torch.stack(
        [
            noisy(still.expand(5, -1, -1, -1)),
            torch.stack([wide[:, :32, 3 * t : 3 * t + 32] for t in range(5)]),
            noisy(cut[[0, 0, 0, 1, 1]]),
        ]
    )


def cost_of(sequence: TokenSequence, clip_T3HW: Tensor, tokenizer: Tokenizer) -> tuple[int, float]:
    """Tokens, and what the encoder weighs: squared error in [-1, 1] and each token at the threshold."""
    difference = tokenizer.decode_clips([sequence])[0].double() - clip_T3HW.double()
    error = float((difference / 127.5).square().sum())
    return sequence.num_tokens, error + tokenizer.dtf.threshold * sequence.num_tokens


def test_a_clip_of_one_frame_is_an_image(tokenizer: Tokenizer) -> None:
    pixels = demo_photos(128)[:2]
    for image, clip in zip(tokenizer.encode(pixels), tokenizer.encode_clips(pixels[:, None]), strict=True):
        assert clip.codes.tolist() == image.codes.tolist()
        assert clip.positions.tolist() == image.positions.tolist()
        assert (clip.grid, clip.num_global, clip.global_frames) == (image.grid, image.num_global, None)
        assert clip.entropy.entropy_bits == image.entropy.entropy_bits
        assert torch.equal(tokenizer.decode_clips([clip])[:, 0], tokenizer.decode([image]))


def test_a_static_camera_costs_a_fraction_and_looks_no_worse(tokenizer: Tokenizer) -> None:
    clip = static_clip(8)
    frame_by_frame = tokenizer.with_dtf(temporal=False)
    (follows,), (images,) = tokenizer.encode_clips(clip[None]), frame_by_frame.encode_clips(clip[None])
    assert follows.num_tokens <= images.num_tokens / 2
    assert cost_of(follows, clip, tokenizer)[1] < cost_of(images, clip, tokenizer)[1]
    of_follows, of_images = (
        (tokenizer.decode_clips([sequence])[0].double() - clip.double()).square().mean()
        for sequence in (follows, images)
    )
    assert of_follows <= 1.01 * of_images


@pytest.mark.parametrize("step", [2, 12])
def test_a_moving_camera_never_costs_more_than_images_do(tokenizer: Tokenizer, step: int) -> None:
    clip = moving_clip(5, step)
    (follows,) = tokenizer.encode_clips(clip[None])
    (images,) = tokenizer.with_dtf(temporal=False).encode_clips(clip[None])
    assert cost_of(follows, clip, tokenizer)[1] <= cost_of(images, clip, tokenizer)[1]
    assert follows.num_tokens <= images.num_tokens


def test_a_cut_begins_anew(tokenizer: Tokenizer) -> None:
    first, second = demo_photos(128)[[0, 3]]
    clip = torch.stack([first, first, second, second])
    (sequence,) = tokenizer.encode_clips(clip[None])
    num_globals = np.bincount(sequence.global_frames, minlength=4)
    assert num_globals[0] == tokenizer.num_global
    assert num_globals[2] > 0.8 * tokenizer.num_global
    assert num_globals[[1, 3]].sum() < tokenizer.num_global / 2


def test_errors_do_not_add_up_over_many_frames(tokenizer: Tokenizer) -> None:
    clip = static_clip(64, side=64)
    (sequence,) = tokenizer.encode_clips(clip[None])
    errors = (tokenizer.decode_clips([sequence])[0].double() - clip.double()).square().mean((1, 2, 3))
    assert errors[-8:].mean() <= 1.02 * errors[0]
    spent = np.bincount(sequence.positions.astype(int) // 16, minlength=64)
    assert spent[32:].sum() == 0  # the noise of a sensor is not worth a token


def test_texture_is_told_once(tokenizer: Tokenizer) -> None:
    """Noise is kept where a picture begins; of a decoded frame it differs as much in each that follows."""
    generator = torch.Generator().manual_seed(0)
    frame = (128 + 50 * torch.randn(3, 64, 64, generator=generator)).clamp(0, 255).byte()
    (sequence,) = tokenizer.encode_clips(frame.expand(1, 4, -1, -1, -1))
    assert np.bincount(sequence.positions.astype(int) // 16, minlength=4).tolist() == [16, 0, 0, 0]


def test_frame_by_frame_is_every_frame_as_an_image(tiny: Tokenizer) -> None:
    clips = tiny_clips()
    sequences = tiny.with_dtf(temporal=False).encode_clips(clips)
    for clip, sequence in zip(clips, sequences, strict=True):
        images = tiny.encode(clip)
        for frame, image in zip(split_frames(sequence), images, strict=True):
            assert frame.codes.tolist() == image.codes.tolist()
            assert frame.positions.tolist() == image.positions.tolist()
        assert torch.equal(tiny.decode_clips([sequence])[0], tiny.decode(images))
        assert sequence.entropy.entropy_bits == pytest.approx(sum(image.entropy.entropy_bits for image in images))


def test_clips_are_whole_and_do_not_depend_on_their_batch(tiny: Tokenizer) -> None:
    clips = tiny_clips()
    sequences = tiny.encode_clips(clips)
    together = tiny.decode_clips(sequences)
    assert together.shape == clips.shape
    for row, sequence in enumerate(sequences):
        assert sequence.grid == Grid(5, 8, 8)
        assert len(sequence.codes) == sequence.num_global + len(sequence.positions)
        assert sequence.num_global == len(sequence.global_frames) == len(sequence.global_cells)
        assert (np.diff(sequence.positions.astype(int)) > 0).all()
        assert sequence.entropy.patch_entropy_bits_N.shape == (5 * 64,)
        assert sequence.entropy.entropy_bits == pytest.approx(
            float(sequence.entropy.patch_entropy_bits_N.sum()), rel=1e-4
        )
        (alone,) = tiny.encode_clips(clips[row : row + 1])
        assert alone.codes.tolist() == sequence.codes.tolist()
        assert alone.positions.tolist() == sequence.positions.tolist()
        assert alone.global_cells.tolist() == sequence.global_cells.tolist()
        assert int((tiny.decode_clips([alone])[0].int() - together[row].int()).abs().max()) <= 1


def test_the_decoder_shows_what_the_encoder_saw(tiny: Tokenizer) -> None:
    """More frames behind change nothing of those before: each was coded against what will be shown."""
    clips = tiny_clips()
    whole = tiny.decode_clips(tiny.encode_clips(clips))
    for num_frames in (2, 4):
        part = tiny.decode_clips(tiny.encode_clips(clips[:, :num_frames]))
        assert torch.equal(part, whole[:, :num_frames])


def test_threshold_zero_keeps_every_patch(tiny: Tokenizer) -> None:
    clips = tiny_clips()
    for sequence in tiny.with_dtf(threshold=0.0).encode_clips(clips):
        assert sequence.num_patches == sequence.grid.num_positions


def test_bounds_are_of_each_frame(tiny: Tokenizer) -> None:
    for sequence in tiny.with_dtf(threshold=0.05, max_tokens=20, min_tokens=10).encode_clips(tiny_clips()):
        in_frame = np.bincount(sequence.positions.astype(int) // 64, minlength=5)
        in_frame += np.bincount(sequence.global_frames, minlength=5)
        assert in_frame.max() <= 20
        assert in_frame[0] >= 10


def test_frames_of_a_clip_split_and_join_again(tiny: Tokenizer) -> None:
    for sequence in tiny.encode_clips(tiny_clips()):
        again = join_frames(split_frames(sequence))
        for name in ("codes", "positions", "global_frames", "global_cells"):
            assert getattr(again, name).tolist() == getattr(sequence, name).tolist(), name
            assert getattr(again, name).dtype == getattr(sequence, name).dtype, name
        assert (again.grid, again.num_global) == (sequence.grid, sequence.num_global)


def test_the_fingerprint_of_images_stays(tokenizer: Tokenizer) -> None:
    assert "temporal" not in tokenizer.identity["dtf"]
    off = tokenizer.with_dtf(temporal=False)
    assert '"temporal": false' in off.identity["dtf"]
    assert off.fingerprint != tokenizer.fingerprint == off.with_dtf(temporal=True).fingerprint


def test_decode_clips_refuses_what_cannot_be(tiny: Tokenizer) -> None:
    first, second, _ = tiny.encode_clips(tiny_clips())
    with pytest.raises(ValueError, match="use decode_clips"):
        tiny.decode([first])
    with pytest.raises(ValueError, match="grid"):
        tiny.decode_clips([first, replace(second, grid=Grid(5, 4, 16))])
    with pytest.raises(ValueError, match="only an image"):
        tiny.decode_clips([replace(first, global_frames=None)])
    with pytest.raises(ValueError, match="must ascend"):
        tiny.decode_clips([replace(first, global_cells=first.global_cells[::-1])])
    with pytest.raises(ValueError, match="first frame must have all"):
        tiny.decode_clips([replace(first, global_frames=first.global_frames + np.uint16(1))])
    with pytest.raises(ValueError, match="positions must ascend"):
        tiny.decode_clips([replace(second, positions=second.positions[::-1])])


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 2, 3, 30, 32, dtype=torch.uint8),
        torch.zeros(1, 0, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 2, 3, 32, 32),
    ],
)
def test_encode_clips_refuses_other_shapes_and_types(tiny: Tokenizer, pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"multiples of 4|expected torch.uint8"):
        tiny.encode_clips(pixels)


def test_a_clip_too_long_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(ValueError, match="cut them shorter"):
        tiny.encode_clips(torch.zeros(1, 1025, 3, 32, 32, dtype=torch.uint8))


def test_settings_that_do_not_weigh_distortion_are_refused(tiny: Tokenizer, tmp_path: Path) -> None:
    clips = tiny_clips()
    by_entropy = tiny.with_dtf(DTFSettings(threshold=100.0))
    with pytest.raises(ConfigError, match=r"dtf.temporal: false"):
        by_entropy.encode_clips(clips)
    assert len(by_entropy.with_dtf(temporal=False).encode_clips(clips)) == 3
    without = tiny_tokenizer(tmp_path, num_global=0).with_dtf(threshold=2.0)
    with pytest.raises(ConfigError, match="anchored"):
        without.encode_clips(clips)
    images = without.with_dtf(temporal=False)
    assert images.decode_clips(images.encode_clips(clips)).shape == clips.shape
