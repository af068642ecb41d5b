"""TaTok over a frozen tokenizer: its codes and pixels are that tokenizer's, and the rest is filled by the prior."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tatok.frozen.config import AdaptedConfig, FillSettings, Over
from tatok.frozen.under import FrozenTokenizer
from tatok.model.autoencoder import Codes
from tatok.model.checkpoint import load_checkpoint, save_checkpoint, write_dtf
from tatok.model.dtf import DTFSettings
from tatok.model.pixels import to_float, to_pixels
from tatok.schemas.errors import ConfigError, TatokError
from tatok.tokenizer.beneath import any_checkpoint
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import tiny_images, tiny_tokenizer
from tests.support.tokenizers.mosaic import Mosaic, load, mosaic_config, mosaic_models

DTF = DTFSettings(criterion="distance", threshold_kind="distortion", threshold=0.3, temporal=False)
CPU = torch.device("cpu")


def saved(folder: Path, dtf: DTFSettings = DTF, **changes: Any) -> Path:
    torch.manual_seed(0)
    save_checkpoint(folder, *mosaic_models(**changes), dtf)
    return folder


def test_codes_and_pixels_are_the_frozen_tokenizers_where_all_is_kept(tmp_path: Path) -> None:
    pixels, mosaic = tiny_images(6), load("cpu")
    tokenizer = Tokenizer.load(saved(tmp_path), "cpu").with_dtf(threshold=0.0)
    sequences = tokenizer.encode(pixels)
    codes = mosaic.encode(pixels).flatten(1)
    assert [sequence.codes[4:].tolist() for sequence in sequences] == codes.tolist()
    assert torch.equal(tokenizer.decode(sequences), mosaic.decode(mosaic.encode(pixels), 32, 32))


def test_lengths_vary_and_entropies_and_worth_are_there(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(saved(tmp_path), "cpu")
    pixels = tiny_images(8)
    sequences = tokenizer.encode(pixels)
    assert len({len(sequence.codes) for sequence in sequences}) > 2
    for sequence in sequences:
        assert sequence.entropy is not None
        assert 0 < sequence.entropy.entropy_bits <= 64 * 6 + 0.01
        worth = sequence.entropy.patch_worth_bits_N
        assert worth is not None
        assert worth.nonzero()[0].tolist() == sequence.positions.tolist()
    (alone,) = tokenizer.encode(pixels[3:4])
    assert alone.codes.tolist() == sequences[3].codes.tolist()
    assert torch.equal(tokenizer.decode([alone])[0], tokenizer.decode(sequences)[3])


def test_frames_of_a_clip_are_images(tmp_path: Path) -> None:
    tokenizer, pixels = Tokenizer.load(saved(tmp_path), "cpu"), tiny_images(6)
    (clip,) = tokenizer.encode_clips(pixels[None])
    frames = tokenizer.encode(pixels)
    assert clip.num_global == 4 * 6
    assert len(clip.positions) == sum(len(frame.positions) for frame in frames)
    assert torch.equal(tokenizer.decode_clips([clip])[0], tokenizer.decode(frames))


def test_images_of_any_shape_are_taken(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(saved(tmp_path), "cpu")
    wide = tiny_images(3, side=48)[:, :, :20]
    sequences = tokenizer.encode(wide)
    assert tuple(sequences[0].grid) == (1, 5, 12)
    assert tokenizer.decode(sequences).shape == wide.shape
    with pytest.raises(ValueError, match="multiples of 4"):
        tokenizer.encode(wide[:, :, :18])


def test_without_globals_the_prior_alone_decides(tmp_path: Path) -> None:
    tokenizer, pixels = Tokenizer.load(saved(tmp_path, num_global=0), "cpu"), tiny_images(4)
    assert tokenizer.num_global == 0
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


def test_what_was_dropped_is_filled_as_asked_and_tokens_do_not_change(tmp_path: Path) -> None:
    tokenizer, pixels = Tokenizer.load(saved(tmp_path), "cpu"), tiny_images(4)
    sequences = tokenizer.encode(pixels)
    drawn = {}
    for kind in ("mean", "nearest", "mode", "constant"):
        other = tokenizer.with_fill(FillSettings(kind=kind))
        assert other.fingerprint == tokenizer.fingerprint
        drawn[kind] = other.decode(sequences)
    for image, sequence in zip(range(4), sequences, strict=True):
        for position in sequence.positions.tolist():
            patch = (image, slice(None), slice(4 * (position // 8), 4 * (position // 8) + 4),
                     slice(4 * (position % 8), 4 * (position % 8) + 4))  # fmt: skip
            assert all(torch.equal(each[patch], drawn["mean"][patch]) for each in drawn.values())
    assert not torch.equal(drawn["mean"], drawn["constant"])
    assert set(drawn["nearest"].unique().tolist()) <= {32, 96, 160, 224}  # whole codes
    assert not set(drawn["mean"].unique().tolist()) <= {32, 96, 160, 224}
    with pytest.raises(ConfigError, match="tatok adapt"):
        tiny_tokenizer(tmp_path / "of pixels").with_fill(FillSettings())


def test_a_tokenizer_that_decodes_codes_alone_is_given_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = mosaic_models()
    codes = model.canvas.working(to_float(tiny_images(3)))
    few = torch.rand(3, 64) < 0.4
    asked = Codes(model.encode(codes).globals_BMC.codes, codes.flatten(1))
    nearest = model.filled_by(FillSettings(kind="nearest"))
    wanted = nearest.canvas.images(nearest.decode_codes(asked, few, (8, 8)))
    by_codes = Mosaic.decode
    monkeypatch.setattr(Mosaic, "decode", lambda self, codes, height, width: draws(self, codes, height, width))
    vectors = Mosaic.decode_embedded

    def draws(mosaic: Mosaic, codes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return vectors(mosaic, mosaic.embed(codes))

    monkeypatch.delattr(Mosaic, "decode_embedded")
    assert torch.equal(model.canvas.images(model.decode_codes(asked, few, (8, 8))), wanted)
    assert by_codes is not Mosaic.decode


def test_the_state_has_nothing_of_the_frozen_tokenizer_and_a_copy_shares_it() -> None:
    model, prior = mosaic_models()
    both = torch.nn.ModuleDict({"tatok": model, "prior": prior})
    assert not [name for name in both.state_dict() if "frozen" in name or "refiner" in name]
    assert not set(model.state_dict()) & {f"prior.{name}" for name in prior.state_dict()}
    again = copy.deepcopy(both)
    assert again["tatok"].canvas.frozen is model.canvas.frozen
    assert again["tatok"]._prior[0] is again["prior"]


def test_a_checkpoint_names_what_it_is_over_and_refuses_another(tmp_path: Path) -> None:
    over = Over(tokenizer=mosaic_config().over.tokenizer, identity=_identity("mosaic of May"))
    saved(tmp_path, over=over)
    tokenizer = Tokenizer.load(tmp_path, "cpu")
    assert len(tokenizer.encode(tiny_images(1))) == 1
    assert "mosaic of May" in tokenizer.identity["model"]
    document = json.loads((tmp_path / "config.json").read_text())
    document["model"]["over"]["options"] = {"identity": "mosaic of June"}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"identity.*mosaic of June.*was.*mosaic of May"):
        Tokenizer.load(tmp_path, "cpu")


def _identity(text: str) -> dict[str, str]:
    from tatok.tokenizer.beneath import over_of

    return {**over_of(mosaic_config().over.tokenizer, {}).identity, "identity": text}


def test_tokens_do_not_depend_on_where_the_tokenizer_was_found() -> None:
    here = mosaic_config(over=Over(tokenizer="a.py:load", options={"path": "/a"}, identity={"weights": "x"}))
    there = mosaic_config(over=Over(tokenizer="b.py:load", options={"path": "/b"}, identity={"weights": "x"}),
                          fill=FillSettings(kind="mode"))  # fmt: skip
    assert here.identity() == there.identity()
    assert here.document() != there.document()


def test_checkpoints_come_back_as_they_were_and_dtf_can_be_replaced(tmp_path: Path) -> None:
    config = mosaic_config(fill=FillSettings(kind="mode", rounds=2))
    saved(tmp_path, fill=config.fill)
    write_dtf(tmp_path, DTF.with_threshold(0.5))
    checkpoint = any_checkpoint(tmp_path)
    assert isinstance(checkpoint.model.config, AdaptedConfig)
    assert (checkpoint.model.config, checkpoint.dtf.threshold) == (config, 0.5)
    with pytest.raises(ConfigError, match="over a frozen tokenizer"):
        load_checkpoint(tmp_path)


class _Wrong(Mosaic):
    def __init__(self) -> None:
        super().__init__("wrong")


class _NoEmbed:
    vocab_size, patch_size, identity, encode = 4, 4, "wrong", None


class _Several(_Wrong):
    codes_per_position = 2


class _NoWayBack:
    vocab_size, patch_size, identity, encode, embed = 4, 4, "wrong", None, None


class _Contextual(_Wrong):
    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        return super().embed(codes) + codes.float().flatten(1)[:, :1, None, None]


class _Coarse(_Wrong):
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().encode(pixels)[:, ::2, ::2]


class _OutOfRange(_Wrong):
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().encode(pixels) + 64


class _Halves(_Wrong):
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().encode(pixels) / 2


class _Floats(_Wrong):
    def decode_embedded(self, vectors: torch.Tensor) -> torch.Tensor:
        return super().decode_embedded(vectors).float()


def frozen(inner: object) -> FrozenTokenizer:
    def loaded(name: str, options: Mapping[str, Any], device: str) -> tuple[object, dict[str, str]]:
        return inner, {}

    return FrozenTokenizer(Over(tokenizer="theirs.py:load"), loaded)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (_NoEmbed(), "theirs.py:load has no embed"),
        (_Several(), "2 codes a position"),
        (_NoWayBack(), "neither decode nor decode_embedded"),
    ],
)
def test_what_cannot_be_adapted_is_refused(inner: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        frozen(inner).on(CPU)


def test_what_comes_in_another_shape_or_range_is_told() -> None:
    pixels = tiny_images(2)
    with pytest.raises(ConfigError, match="embed must give each code the vector of its codebook"):
        frozen(_Contextual()).codebook(CPU)
    with pytest.raises(TatokError, match=r"shape \[2, 4, 4\].*8 x 8 positions"):
        frozen(_Coarse()).codes(pixels)
    with pytest.raises(TatokError, match=r"outside 0 \.\. 63"):
        frozen(_OutOfRange()).codes(pixels)
    with pytest.raises(TatokError, match="must be whole numbers"):
        frozen(_Halves()).codes(pixels)
    with pytest.raises(TatokError, match=r"torch\.float32.*expected torch\.uint8"):
        frozen(_Floats()).pixels_of_vectors(torch.zeros(2, 3, 8, 8))
    assert to_pixels(to_float(pixels)).equal(pixels)  # what it is asked with are the very pixels
