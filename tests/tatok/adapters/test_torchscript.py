"""A pair with the interface of Cosmos' discrete tokenizers: finite scalar quantization at levels 8, 8, 8, 5, 5, 5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tatok.adapters.torchscript import load
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.fixed_rate import FixedRate
from tests.support.tiny_checkpoint import tiny_images

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")  # there is no other way to make some

PATCH = 8
LEVELS, BASIS = (8, 8, 8, 5, 5, 5), (1, 8, 64, 512, 2560, 12800)


class Encoder(nn.Module):
    """Mean colours of the upper and the lower half of each patch, quantized; of clips, of every fourth frame."""

    def __init__(self, num_dimensions: int = 2) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(LEVELS))
        self.register_buffer("basis", torch.tensor(BASIS))
        self.conv = (nn.Conv2d, nn.Conv3d)[num_dimensions - 2](
            3, 3, 1, bias=False
        )  # takes tensors of its own kind alone
        nn.init.dirac_(self.conv.weight)
        self.is_of_clips = num_dimensions == 3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        colours = self.conv(x[:, :, ::4] if self.is_of_clips else x)
        by_rows = colours.unflatten(-2, [-1, 2, 4]).mean(-2).unflatten(-1, [-1, 8]).mean(-1)  # [..., h, 2, w]
        codes = torch.cat([by_rows.select(-2, 0), by_rows.select(-2, 1)], 1)
        unit = ((codes.float() + 1) / 2).clamp(0, 1).movedim(1, -1)
        digits = torch.round(unit * (self.levels - 1))
        return (digits * self.basis).sum(-1).int(), codes, codes.mean()


class Decoder(nn.Module):
    def __init__(self, num_dimensions: int = 2) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(LEVELS))
        self.register_buffer("basis", torch.tensor(BASIS))
        self.is_of_clips = num_dimensions == 3

    def forward(self, indices: Tensor) -> Tensor:
        digits = (indices.unsqueeze(-1) // self.basis) % self.levels
        colours = (digits / (self.levels - 1) * 2 - 1).movedim(-1, 1)  # [B, 6, ..., h, w]
        both = torch.stack([colours[:, :3], colours[:, 3:]], -2)  # [B, 3, ..., h, 2, w]
        pixels = both.repeat_interleave(4, -2).flatten(-3, -2).repeat_interleave(8, -1)
        if self.is_of_clips:
            pixels = torch.cat([pixels[:, :, :1], pixels[:, :, 1:].repeat_interleave(4, 2)], 2)
        return pixels


class Continuous(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::8, ::8].mean(1)


def write(folder: Path, encoder: nn.Module, decoder: nn.Module) -> Path:
    folder.mkdir(exist_ok=True)
    torch.jit.script(encoder).save(str(folder / "encoder.jit"))
    torch.jit.script(decoder).save(str(folder / "decoder.jit"))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cosmos-di"), Encoder(), Decoder())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cosmos-dv"), Encoder(3), Decoder(3))


def test_images_there_and_back(images: Path) -> None:
    inner = load("cpu", path=str(images), trust_torchscript=True)
    tokenizer = FixedRate(inner)
    assert (tokenizer.vocab_size, tokenizer.patch_size) == (64_000, PATCH)
    pixels = tiny_images(3, side=64)[..., :32]
    batch = tokenizer.encode(pixels)
    assert [tuple(each.grid) for each in batch] == [(1, 8, 4)] * 3
    assert len({int(code) for each in batch for code in each.codes}) > 20
    rebuilt = tokenizer.decode(batch)
    halves = pixels.float().unflatten(2, (-1, 4)).unflatten(4, (-1, 8)).mean((3, 5))
    wanted = halves.repeat_interleave(4, 2).repeat_interleave(8, 3)
    assert (rebuilt.float() - wanted).abs().max() <= 255 / 4 / 2 + 1  # half a step of the five levels


def test_a_clip_has_its_first_frame_and_groups_of_four(clips: Path) -> None:
    tokenizer = FixedRate(load("cpu", path=str(clips), trust_torchscript=True, video=True))
    pixels = tiny_images(2 * 9, side=64)[..., :32].reshape(2, 9, 3, 64, 32)
    batch = tokenizer.encode_clips(pixels)
    assert [(tuple(each.grid), each.num_frames) for each in batch] == [((3, 8, 4), 9)] * 2
    rebuilt = tokenizer.decode_clips(batch)
    stills = FixedRate(load("cpu", path=str(clips), trust_torchscript=True, video=True))
    assert rebuilt.shape == pixels.shape
    assert torch.equal(rebuilt[:, 0], stills.decode(stills.encode(pixels[:, 0])))  # an image is a clip of one frame
    assert torch.equal(rebuilt[:, 5], stills.decode(stills.encode(pixels[:, 8])))
    with pytest.raises(ConfigError, match="8 frames; this tokenizer takes 1 \\+ a multiple of 4") as refused:
        tokenizer.encode_clips(pixels[:, :8])
    assert refused.value.remedy == "set video.frames_per_clip to 9"


@pytest.mark.parametrize("trust", [False, "yes", 1, None])
def test_code_that_nobody_trusts_is_not_loaded(images: Path, trust: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ConfigError, match="TorchScript is code") as refused:
        load("cpu", path=str(images), trust_torchscript=trust)  # type: ignore[arg-type]
    assert "trust_torchscript: true" in str(refused.value.remedy)


def test_the_same_codes_each_time_and_whatever_else_is_in_the_batch(images: Path) -> None:
    inner = load("cpu", path=str(images), trust_torchscript=True)
    pixels = tiny_images(4, side=64)
    first = inner.encode(pixels)
    assert all(torch.equal(inner.encode(pixels), first) for _ in range(4))  # TorchScript optimizes after some calls
    assert torch.equal(inner.encode(pixels[2:3]), first[2:3])


def test_types_of_numbers(images: Path) -> None:
    pixels = tiny_images(2, side=64)
    plain = load("cpu", path=str(images), trust_torchscript=True)
    half = load("cpu", path=str(images), trust_torchscript=True, dtype="bfloat16")
    assert half.identity != plain.identity
    assert half.encode(pixels).shape == plain.encode(pixels).shape
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        load("cpu", path=str(images), trust_torchscript=True, dtype="int8")


def test_the_identity_is_that_of_the_encoder_wherever_it_lies(images: Path, clips: Path, tmp_path: Path) -> None:
    for name in ("encoder.jit", "decoder.jit"):
        (tmp_path / name).write_bytes((images / name).read_bytes())
    here, there = (load("cpu", path=str(each), trust_torchscript=True).identity for each in (images, tmp_path))
    assert here == there != load("cpu", path=str(clips), trust_torchscript=True, video=True).identity


def test_what_cannot_be_used_is_named(images: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not take a tensor of") as refused:
        load("cpu", path=str(images), trust_torchscript=True, video=True)
    assert "video: true" in str(refused.value.remedy)
    continuous = write(tmp_path / "ci", Continuous(), Decoder())
    with pytest.raises(ConfigError, match="which are no codes"):
        load("cpu", path=str(continuous), trust_torchscript=True)
    (continuous / "encoder.jit").write_bytes(b"PK\x03\x04 not a script")
    with pytest.raises(ConfigError, match=r"encoder\.jit is damaged or no TorchScript"):
        load("cpu", path=str(continuous), trust_torchscript=True)
    (continuous / "encoder.jit").unlink()
    with pytest.raises(ConfigError, match=r"has no encoder\.jit; it has decoder\.jit"):
        load("cpu", path=str(continuous), trust_torchscript=True)
