"""The model's kinds: TaTok, and the fixed-rate tokenizers that it is compared with, out of the same parts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tatok.model.autoencoder import Codes, TaTok, TaTokConfig
from tatok.model.checkpoint import load_checkpoint, save_checkpoint
from tatok.model.dtf import DTFSettings
from tatok.model.patches import patch_coordinates
from tatok.model.prior import Prior
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import TINY

TATOK = replace(TINY, codebook_size=32)
KINDS = {
    "tatok": TATOK,
    "large cells": replace(TATOK, cell_size=7),
    "patches alone": replace(TATOK, num_global=0),
    "free queries": replace(TATOK, anchored=False),
    "zeros as filler": replace(TATOK, filler="zeros"),
}


def saved(config: TaTokConfig, folder: Path) -> Tokenizer:
    """A random model of this kind, whose decoder does change pictures."""
    torch.manual_seed(0)
    model, prior = TaTok(config), Prior(config)
    for head in (model.decoder.head, model.decoder.base_head, model.encoder.global_head, model.encoder.patch_head):
        torch.nn.init.normal_(head.weight, std=0.1)
    save_checkpoint(folder, model, prior, DTFSettings(criterion="content", threshold_kind="distortion", threshold=0.0))
    return Tokenizer.load(folder, "cpu")


def images(num: int = 3, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_encodes_and_decodes(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    tokenizer = saved(config, tmp_path)
    sequences = tokenizer.encode(images())
    assert [len(s.codes) for s in sequences] == [config.num_global + 16] * 3
    rebuilt = tokenizer.decode(sequences)
    alone = tokenizer.decode([sequences[1]])
    assert (rebuilt[1:2].int() - alone.int()).abs().max() <= 1  # a decoder's rounding, not its batch

    model = TaTok(config).train()
    encoded = model.encode(images().float() / 127.5 - 1)
    kept = torch.zeros(3, 16, dtype=torch.bool)
    kept[:, ::2] = True
    rebuilt = model.decode(encoded.globals_BMC.vectors, encoded.patches_BNC.vectors, kept, encoded.base_BNP, (4, 4))
    (rebuilt.square().mean() + encoded.globals_BMC.commitment + encoded.patches_BNC.commitment).backward()
    assert torch.isfinite(rebuilt).all()
    assert model.decoder.head.weight.grad is not None


@pytest.mark.parametrize("kind", [kind for kind, config in KINDS.items() if config.num_global])
def test_globals_change_the_picture_where_no_patch_is_kept(kind: str, tmp_path: Path) -> None:
    tokenizer = saved(KINDS[kind], tmp_path)
    full = tokenizer.full_rate(images())
    nothing = torch.zeros_like(full.codes.patch_BN, dtype=torch.bool)
    other = replace(full, codes=Codes((full.codes.global_BM + 1) % 32, full.codes.patch_BN))
    assert not torch.equal(tokenizer.rebuild(full, nothing), tokenizer.rebuild(other, nothing))


def test_without_globals_the_picture_is_the_same_for_all_when_no_patch_is_kept(tmp_path: Path) -> None:
    tokenizer = saved(KINDS["patches alone"], tmp_path)
    full = tokenizer.full_rate(images())
    rebuilt = tokenizer.rebuild(full, torch.zeros_like(full.codes.patch_BN, dtype=torch.bool))
    assert (rebuilt == rebuilt[:1]).all()


def test_cells_have_their_own_size_whatever_the_image() -> None:
    model = TaTok(KINDS["large cells"])
    for side in (16, 40):
        assert model.cells(torch.zeros(2, 3, side, side)).shape == (2, 4, 3 * 7 * 7)


def test_patch_coordinates_without_globals_are_the_patches() -> None:
    with_globals = patch_coordinates(3, 5, 4, torch.device("cpu"))
    assert torch.equal(patch_coordinates(3, 5, 0, torch.device("cpu")), with_globals[4:])


def test_a_filler_of_zeros_is_not_learned() -> None:
    names = dict(TaTok(KINDS["zeros as filler"]).named_parameters())
    assert "decoder.filler_D" not in names
    assert "decoder.filler_D" in dict(TaTok(TATOK).named_parameters())


def test_later_fields_stand_in_the_document_only_where_they_are_used(tmp_path: Path) -> None:
    later = ("cell_size", "anchored", "filler", "prior_width", "prior_rank", "has_stem", "pixel_width", "learned_dim")
    later = (*later, "decoder_width", "latents")
    early = {name: value for name, value in asdict(TATOK).items() if name not in later}
    assert TATOK.document() == early  # so checkpoints made before these fields keep their fingerprint
    for config in KINDS.values():
        assert TaTokConfig(**config.document()) == config
        saved(config, tmp_path)
        assert load_checkpoint(tmp_path).model.config == config


@pytest.mark.parametrize(("changes", "said"), [({"num_global": -1}, "num_global"), ({"filler": "noise"}, "filler")])
def test_wrong_shapes_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(TATOK, **changes)
