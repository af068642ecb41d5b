"""Filling, with a prior that can be worked out by hand: three codes at -1, 0 and 2 on a line, in a row of positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tatok.frozen.config import Fill, FillSettings
from tatok.frozen.filling import fill
from tatok.schemas.errors import ConfigError

CODEBOOK = torch.tensor([[-1.0], [0.0], [2.0]])
SHARES = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
CODES = torch.tensor([[2, 0]])


def constant_prior(vectors_BNC: Tensor, visible_BN: Tensor) -> Tensor:
    return SHARES.log().expand(len(vectors_BNC), -1, -1)


def filled(kind: Fill, kept: list[bool], codes: Tensor = CODES) -> list[float]:
    found = fill(constant_prior, codes, torch.tensor([kept]), CODEBOOK, FillSettings(kind=kind))
    return [round(value, 5) for value in found[0, :, 0].tolist()]


def test_what_was_kept_stays_and_the_rest_is_what_the_prior_expects() -> None:
    assert filled("mean", [True, False]) == [2.0, 1.5]  # 0.1 * -1 + 0.8 * 2
    assert filled("mean", [False, True]) == [0.0, -1.0]
    assert filled("mode", [False, False]) == [-1.0, 2.0]
    assert filled("constant", [True, False]) == [2.0, 0.0]


def test_codes_that_were_dropped_have_no_effect() -> None:
    assert filled("mean", [True, False], torch.tensor([[2, 2]])) == filled("mean", [True, False])


def test_in_rounds_the_surest_come_first_and_the_rest_is_predicted_given_them() -> None:
    """The second position is surer; the first one's code is known once the second's is."""
    asked = []

    def prior(vectors_BNC: Tensor, visible_BN: Tensor) -> Tensor:
        asked.append((visible_BN[0].tolist(), vectors_BNC[0, :, 0].tolist()))
        logits = constant_prior(vectors_BNC, visible_BN).clone()
        if visible_BN[0, 1] and vectors_BNC[0, 1, 0] == 2:
            logits[:, 0] = torch.tensor([0.0, 9.0, 0.0])
        return logits

    nothing = torch.zeros(1, 2, dtype=torch.bool)
    found = fill(prior, CODES, nothing, CODEBOOK, FillSettings(kind="mode", rounds=2))
    assert found[0, :, 0].tolist() == [0.0, 2.0]
    assert asked == [([False, False], [0.0, 0.0]), ([False, True], [0.0, 2.0])]


@pytest.mark.parametrize("rounds", [1, 2, 3, 7])
@pytest.mark.parametrize("kept", [[False, False], [True, False], [True, True]])
def test_any_number_of_rounds_fills_every_position_and_no_kept_one(rounds: int, kept: list[bool]) -> None:
    found = fill(constant_prior, CODES, torch.tensor([kept]), CODEBOOK, FillSettings(kind="mode", rounds=rounds))
    codes = [code if is_kept else mode for code, mode, is_kept in zip([2, 0], [0, 2], kept, strict=True)]
    assert torch.equal(found[0], CODEBOOK[codes])


@pytest.mark.parametrize("wrong", [{"kind": "zeros"}, {"rounds": 0}, {"rounds": -math.inf}])
def test_another_fill_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="fill"):
        FillSettings(**wrong)  # type: ignore[arg-type]
