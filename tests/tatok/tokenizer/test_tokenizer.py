"""The bundled checkpoint through the public face: METHOD's acceptance list, round trips and refusals."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tatok import Grid, Tokenizer
from tatok.model.checkpoint import default_checkpoint, load_checkpoint
from tatok.model.dtf import DTFSettings
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.encoding import FullRate
from tests.support.places import EXAMPLES
from tests.support.real_data import demo_photos

DEMO = EXAMPLES / "photos"
SCENES = ("astronaut", "chelsea", "coffee", "rocket")


def demo_pictures() -> dict[str, Tensor]:
    """The demo's photos by their names, uint8 [3, H, W], pixel for pixel."""
    pictures = {}
    for path in sorted(DEMO.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith((".png", ".jpg")):
                    with Image.open(archive.extractfile(member)) as image:
                        pixels = np.array(image.convert("RGB"))
                    pictures[Path(member.name).stem] = torch.from_numpy(pixels).permute(2, 0, 1)
    return pictures


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(device="cpu")


ALL_CRITERIA = [
    DTFSettings(criterion="entropy", threshold_kind="residual_bits"),
    DTFSettings(criterion="surprisal", threshold_kind="residual_bits"),
    DTFSettings(criterion="content", threshold_kind="distortion"),
    DTFSettings(criterion="distance", threshold_kind="distortion"),
    DTFSettings(criterion="residual", threshold_kind="distortion"),
]
by_criterion = pytest.mark.parametrize("settings", ALL_CRITERIA, ids=lambda settings: settings.criterion)


def middling_threshold(tokenizer: Tokenizer, full: FullRate, criterion: str) -> float:
    """A threshold that keeps about half of what the criterion sees."""
    first = tokenizer.estimate(full, torch.zeros_like(full.codes.patch_BN, dtype=torch.bool))
    if criterion == "content":
        return float(first.variance.median())
    if criterion == "distance":
        return float(first.distance.median())
    if criterion == "residual":
        return float(full.residual_BN.median())
    bits = first.entropy if criterion == "entropy" else first.surprisal
    return float(bits.sum(1).mean()) / 2


def test_sequences_are_whole(tokenizer: Tokenizer) -> None:
    sequences = tokenizer.encode(demo_photos())
    assert len(sequences) == 9
    for sequence in sequences:
        assert sequence.num_global == tokenizer.num_global
        assert len(sequence.codes) == tokenizer.num_global + len(sequence.positions) == sequence.num_tokens
        assert sequence.codes.max() < tokenizer.vocab_size
        assert (np.diff(sequence.positions.astype(int)) > 0).all()
        assert sequence.grid == Grid(1, 16, 16)
        bits = sequence.entropy
        assert bits.entropy_bits == pytest.approx(bits.kept_entropy_bits + bits.residual_bits, rel=1e-6)
        assert bits.entropy_bits == pytest.approx(float(bits.patch_entropy_bits_N.sum()), rel=1e-4)
        assert 0 <= bits.entropy_mean_bits <= bits.entropy_max_bits <= np.log2(tokenizer.vocab_size) + 1e-6
    assert len({sequence.num_tokens for sequence in sequences}) > 3  # counts vary


@by_criterion
def test_threshold_zero_is_the_full_rate_bit_for_bit(tokenizer: Tokenizer, settings: DTFSettings) -> None:
    pixels = demo_photos()[:3]
    full = tokenizer.full_rate(pixels)
    sequences = tokenizer.with_dtf(settings).encode(pixels)
    for row, sequence in enumerate(sequences):
        assert sequence.codes[: sequence.num_global].tolist() == full.codes.global_BM[row].tolist()
        assert sequence.codes[sequence.num_global :].tolist() == full.codes.patch_BN[row].tolist()
    everything = torch.ones_like(full.codes.patch_BN, dtype=torch.bool)
    assert torch.equal(tokenizer.decode(sequences), tokenizer.rebuild(full, everything))


@by_criterion
def test_the_kept_count_never_grows_with_the_threshold(tokenizer: Tokenizer, settings: DTFSettings) -> None:
    full = tokenizer.full_rate(demo_photos())
    threshold = middling_threshold(tokenizer, full, settings.criterion)
    kept = [
        tokenizer.with_dtf(settings.with_threshold(threshold * factor)).filter(full).kept_BN
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0)
    ]
    for more, fewer in itertools.pairwise(kept):
        assert not bool((fewer & ~more).any())  # nested: one round
    assert int(kept[0].sum()) > int(kept[-1].sum())


def noise(cell: int) -> Tensor:
    """One image of random cells of `cell` x `cell` pixels."""
    cells = torch.randint(
        0, 256, (1, 3, 256 // cell, 256 // cell), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3)


def test_a_constant_image_keeps_fewer_tokens_than_a_photo_and_a_photo_fewer_than_noise(tokenizer: Tokenizer) -> None:
    constants = torch.stack([torch.full((3, 256, 256), grey, dtype=torch.uint8) for grey in (0, 90, 128, 255)])
    counts = [s.num_tokens for s in tokenizer.encode(torch.cat([constants, demo_photos(), noise(8), noise(16)]))]
    assert max(counts[:4]) < min(counts[4:13])
    assert max(counts[4:13]) < min(counts[13:])


def test_noise_that_no_code_can_express_is_kept_for_its_texture_alone(tokenizer: Tokenizer) -> None:
    """White noise averages out within a patch's code, so by distance a token would tell nothing of it."""
    (sequence,) = tokenizer.encode(noise(1))
    assert sequence.num_tokens == tokenizer.num_global + 256
    (sequence,) = tokenizer.with_dtf(texture_bits=0.0).encode(noise(1))
    assert sequence.num_tokens == tokenizer.num_global


def test_more_tokens_where_there_is_more_to_see(tokenizer: Tokenizer) -> None:
    """In means over crops of 128x128: a flat area < photos < grass, gravel < noise."""

    def mean_kept(crops: list[Tensor]) -> float:
        sequences = tokenizer.encode(torch.stack(crops))
        return float(np.mean([sequence.num_tokens for sequence in sequences])) - tokenizer.num_global

    def crops_of(picture: Tensor) -> list[Tensor]:
        tops, lefts = (torch.linspace(0, side - 128, 4).long().tolist() for side in picture.shape[1:])
        return [picture[:, top : top + 128, left : left + 128] for top in tops for left in lefts]

    pictures = demo_pictures()
    flat = mean_kept([torch.full((3, 128, 128), grey, dtype=torch.uint8) for grey in range(10, 250, 24)])
    photos = mean_kept([crop for name in SCENES for crop in crops_of(pictures[name])])
    grass, gravel = mean_kept(crops_of(pictures["grass"])), mean_kept(crops_of(pictures["gravel"]))
    generator = torch.Generator().manual_seed(0)
    quiet, loud = (
        mean_kept([(128 + d * torch.randn(3, 128, 128, generator=generator)).clamp(0, 255).byte() for _ in range(10)])
        for d in (32, 64)
    )
    assert flat == 0
    assert flat < photos < min(grass, gravel) < max(grass, gravel) < quiet <= loud


def test_an_image_alone_equals_the_image_in_a_batch(tokenizer: Tokenizer) -> None:
    pixels = demo_photos()
    together = tokenizer.encode(pixels)
    rebuilt = tokenizer.decode(together)  # mixed lengths
    for row, sequence in enumerate(together):
        (alone,) = tokenizer.encode(pixels[row : row + 1])
        assert alone.codes.tolist() == sequence.codes.tolist()
        assert alone.positions.tolist() == sequence.positions.tolist()
        difference = tokenizer.decode([alone])[0].int() - rebuilt[row].int()
        assert int(difference.abs().max()) <= 1  # float noise may round a pixel the other way


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (96, 160), (272, 256)])
def test_any_multiple_of_the_patch(tokenizer: Tokenizer, size: tuple[int, int]) -> None:
    pixels = demo_photos()[:2, :, : size[0], : size[1]]
    if pixels.shape[2:] != size:
        pixels = torch.nn.functional.pad(pixels.float(), (0, 0, 0, size[0] - pixels.shape[2]), mode="replicate").byte()
    sequences = tokenizer.encode(pixels)
    assert sequences[0].grid == Grid(1, size[0] // 16, size[1] // 16)
    assert tokenizer.decode(sequences).shape == (2, 3, *size)


def test_an_empty_batch(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([]).shape[0] == 0


def test_rounds_reach_the_threshold_on_their_own_last_estimate(tokenizer: Tokenizer) -> None:
    """That rounds need fewer tokens holds for an exact prior (tests/tatok/model/test_dtf.py).

    A learned one may think otherwise.
    """
    pixels = demo_photos()[:3]
    full = tokenizer.full_rate(pixels)
    settings = DTFSettings(threshold=middling_threshold(tokenizer, full, "entropy"), rounds=4)
    for sequence in tokenizer.with_dtf(settings).encode(pixels):
        assert 0 < sequence.num_patches < sequence.grid.num_positions
        # Before the last round's patches were added the residual was estimated, and they bring it to the threshold.
        assert sequence.entropy.residual_bits <= settings.threshold + 0.5


def test_bounds_count_the_globals(tokenizer: Tokenizer) -> None:
    bounded = tokenizer.with_dtf(min_tokens=40, max_tokens=60)
    assert all(40 <= s.num_tokens <= 60 for s in bounded.encode(demo_photos()))
    with pytest.raises(ConfigError, match=f"{tokenizer.num_global} global tokens"):
        tokenizer.with_dtf(max_tokens=3)


def test_decode_refuses_what_cannot_be(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode(demo_photos()[:2])
    with pytest.raises(ValueError, match="grid"):
        tokenizer.decode([first, replace(second, grid=Grid(1, 8, 32))])
    with pytest.raises(ValueError, match="codes outside"):
        tokenizer.decode([replace(first, codes=np.full_like(first.codes, tokenizer.vocab_size))])
    with pytest.raises(ValueError, match="positions must ascend"):
        tokenizer.decode([replace(first, positions=first.positions[::-1])])
    with pytest.raises(ValueError, match="one code a position"):
        tokenizer.decode([replace(first, positions=first.positions[:-1])])


@pytest.mark.parametrize(
    "pixels", [torch.zeros(1, 3, 250, 256, dtype=torch.uint8), torch.zeros(1, 3, 256, 256), torch.zeros(3, 256, 256)]
)
def test_encode_refuses_other_shapes_and_types(tokenizer: Tokenizer, pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"multiples of 16|expected torch.uint8"):
        tokenizer.encode(pixels)


# --- checkpoints ------------------------------------------------------------------------------------------------


def test_the_fingerprint_tells_settings_and_weights_apart(tokenizer: Tokenizer) -> None:
    assert tokenizer.fingerprint == Tokenizer.load(device="cpu").fingerprint
    changed = tokenizer.with_dtf(threshold=tokenizer.dtf.threshold * 2)
    assert changed.fingerprint != tokenizer.fingerprint
    assert {k for k in tokenizer.identity if tokenizer.identity[k] != changed.identity[k]} == {"dtf"}


def test_the_default_checkpoint_is_small_and_has_a_card() -> None:
    folder = default_checkpoint()
    assert (folder / "model.safetensors").stat().st_size <= 30_000_000
    assert "photos" in (folder / "CARD.md").read_text(encoding="utf-8")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_checkpoint(), tmp_path / "checkpoint"))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere is not a checkpoint: config.json is missing"):
        Tokenizer.load(tmp_path / "nowhere")


def test_damaged_weights_are_named(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ConfigError, match=r"model.safetensors is damaged"):
        Tokenizer.load(copied)


def test_weights_of_another_shape_are_named(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["model"]["code_dim"] = 12
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"does not fit .*expected \["):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    ("name", "value"), [("decoder_width", 256 << 12), ("codebook_size", 1 << 40), ("num_decoder_layers", 1 << 20)]
)
def test_a_config_of_a_far_larger_model_is_refused_before_it_is_made(copied: Path, name: str, value: int) -> None:
    config = json.loads((copied / "config.json").read_text())
    assert name in config["model"]
    config["model"][name] = value
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"model.safetensors does not fit .*many times as large"):
        load_checkpoint(copied)


def test_loading_leaves_torch_s_compiler_alone() -> None:
    """It would take a second and a half of every process that loads a checkpoint."""
    code = (
        "import sys; from tatok.model.checkpoint import load_checkpoint; load_checkpoint(); "
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_settings_are_named(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["dtf"]["luck"] = 1
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="luck"):
        load_checkpoint(copied)


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ConfigError, match="warp"):
        Tokenizer.load(device="warp")


def test_importing_tatok_does_not_start_ray() -> None:
    code = "import sys, tatok; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
