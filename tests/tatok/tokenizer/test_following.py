"""Frames that follow: what a CPU leaves out changes no token, and what is decoded is decoded for a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from benchmarks.temporal.clips import read_clip
from tatok import Tokenizer
from tatok.model.autoencoder import TaTok
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.following import Following
from tests.support.places import ROOT
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_images

CORPUS = ROOT.parent / "shared" / "corpus" / "video"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(tiny_checkpoint(tmp_path_factory.mktemp("tiny")), "cpu").with_dtf(threshold=2.0)


def leaving_nothing_out(tokenizer: Tokenizer) -> Tokenizer:
    """The same, but that every way of coding every frame is tried to its end, as on a GPU."""
    thorough = tokenizer.with_dtf()
    thorough._following = Following(thorough._encoding, tokenizer.device, thorough._launcher.runs)
    thorough._following._on_cpu = False
    return thorough


def content(sequence: TokenSequence) -> tuple[object, ...]:
    assert sequence.entropy is not None
    assert sequence.global_cells is not None
    assert sequence.global_frames is not None
    return (
        sequence.codes.tolist(),
        sequence.positions.tolist(),
        sequence.global_frames.tolist(),
        sequence.global_cells.tolist(),
        torch.from_numpy(sequence.entropy.patch_worth_bits_N).gt(0).tolist(),
    )


def hard_clips(seed: int, strength: float, num_frames: int = 5) -> Tensor:
    """uint8 [4, T, 3, 32, 32]: noise of some strength over a still, a pan, a cut, and a corner that changes."""
    generator = torch.Generator().manual_seed(seed)
    (still, other), wide = tiny_images(2, seed=seed), tiny_images(1, seed=seed + 100, side=64)[0]
    corner = still.expand(num_frames, -1, -1, -1).clone()
    for number in range(1, num_frames):
        corner[number, :, :16, :16] = tiny_images(num_frames, seed=seed + 200)[number, :, :16, :16]
    clips = torch.stack(
        [
            still.expand(num_frames, -1, -1, -1),
            torch.stack([wide[:, :32, 4 * t : 4 * t + 32] for t in range(num_frames)]),
            torch.stack([still if t < 2 else other for t in range(num_frames)]),
            corner,
        ]
    )
    noise = torch.randn(clips.shape, generator=generator) * strength
    return (clips.float() + noise).clamp(0, 255).byte()


@pytest.mark.parametrize(
    "settings", [{}, {"threshold": 0.2}, {"threshold": 8.0}, {"min_tokens": 20}, {"max_tokens": 12}]
)
@pytest.mark.parametrize("strength", [0.0, 3.0, 30.0])
def test_what_is_left_out_changes_no_token(tiny: Tokenizer, settings: dict[str, float], strength: float) -> None:
    tokenizer = tiny.with_dtf(**settings)
    for seed in range(3):
        clips = hard_clips(seed, strength)
        found, wanted = (each.encode_clips(clips) for each in (tokenizer, leaving_nothing_out(tokenizer)))
        assert [content(clip) for clip in found] == [content(clip) for clip in wanted]


def decodings(act: Callable[[], object]) -> int:
    """Frames that the decoder was run for."""
    counts: list[int] = []

    def counted(decode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(model: TaTok, codes: tuple[Tensor, Tensor], *arguments: object) -> Tensor:
            counts.append(len(codes[1]))
            return decode(model, codes, *arguments)

        return call

    names = ("decode_codes", "decode_codes_after")
    with mock.patch.multiple(TaTok, **{name: counted(getattr(TaTok, name)) for name in names}):
        act()
    return sum(counts)


def test_a_frame_is_decoded_only_where_its_choice_asks_for_it(tiny: Tokenizer) -> None:
    clips = hard_clips(0, 3.0)
    few, many = (decodings(lambda each=each: each.encode_clips(clips)) for each in (tiny, leaving_nothing_out(tiny)))
    assert few < many
    still, dear = clips[:1, :1].expand(-1, 4, -1, -1, -1).contiguous(), tiny.with_dtf(threshold=1e6)
    assert decodings(lambda: dear.encode_clips(still)) == 1, "no change is worth a token: the first frame is decoded"


def test_a_frame_is_looked_at_once(tiny: Tokenizer) -> None:
    looks: list[int] = []
    look = TaTok.look

    def counted(model: TaTok, canvas: Tensor) -> object:
        looks.append(len(canvas))
        return look(model, canvas)

    clips = hard_clips(1, 3.0)
    with mock.patch.object(TaTok, "look", counted):
        tiny.encode_clips(clips)
    assert looks == [len(clips)] * clips.shape[1]


@pytest.mark.long
@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs ../shared/corpus/video")
@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()) if CORPUS.is_dir() else [], ids=lambda path: path.stem)
def test_what_is_left_out_changes_no_token_of_real_clips(path: Path) -> None:
    tokenizer = Tokenizer.load(device="cpu")
    clips = torch.stack([read_clip(path, 4.0, 4)[:, :, 64:192, 64:192], read_clip(path, 8.0, 4)[:, :, :128, :128]])
    found, wanted = (each.encode_clips(clips) for each in (tokenizer, leaving_nothing_out(tokenizer)))
    assert [content(clip) for clip in found] == [content(clip) for clip in wanted]
