"""DTF on a toy joint distribution that can be enumerated, and its laws on arbitrary numbers."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tatok.model.dtf import DTFSettings, filter_tokens, keep_most, position_bits
from tatok.model.prior import CodeStatistics, code_statistics
from tatok.schemas.errors import ConfigError

K = 4  # alphabet of the toy's four patch codes; the global code is 0 or 1
SKEWED = {0: 0.97, 1: 0.03}


def toy_joint() -> dict[tuple[int, ...], float]:
    """p(g, z0, z1, z2, z3): z0 uniform, z1 copies z0, z2 follows from g, z3 is a skewed coin."""
    joint = {}
    for g, z0, z3 in itertools.product(range(2), range(K), range(2)):
        joint[(g, z0, z0, g, z3)] = 0.5 * (1 / K) * SKEWED[z3]
    return joint


def exact_conditional(g: int, z: tuple[int, ...], visible: list[int], i: int) -> Tensor:
    """q(z_i | g, z_visible), [K], by enumeration."""
    weights = torch.zeros(K, dtype=torch.float64)
    for (og, *oz), p in toy_joint().items():
        if og == g and all(oz[j] == z[j] for j in visible):
            weights[oz[i]] += p
    return weights / weights.sum()


def toy_estimate(g: int, z: tuple[int, ...]):
    codebook = torch.eye(K)

    def estimate(visible_BN: Tensor) -> CodeStatistics:
        visible = visible_BN[0].nonzero()[:, 0].tolist()
        q = torch.stack([exact_conditional(g, z, [j for j in visible if j != i], i) for i in range(4)])
        return code_statistics(q.clamp_min(1e-30).log()[None].float(), torch.tensor([z]), codebook)

    return estimate


def run(estimate, settings_: DTFSettings, n: int = 4, num_global: int = 1):
    return filter_tokens(
        estimate, num_images=1, num_positions=n, num_global=num_global, settings=settings_, device=torch.device("cpu")
    )


def entropy_of(p: Tensor) -> float:
    p = p[p > 0]
    return float(-(p * p.log2()).sum())


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_chain_rule_is_exact_in_every_order(order: tuple[int, ...]) -> None:
    joint_given_g = entropy_of(torch.tensor(list(toy_joint().values()), dtype=torch.float64)) - 1.0  # H(g) = 1 bit
    cumulative = 0.0
    for (g, *z), p in toy_joint().items():
        for t, i in enumerate(order):
            visible = torch.zeros(1, 4, dtype=torch.bool)
            visible[0, list(order[:t])] = True
            cumulative += p * float(toy_estimate(g, tuple(z))(visible).entropy[0, i])
    assert cumulative == pytest.approx(joint_given_g, abs=1e-5)


def test_redundancy_of_the_copy_is_its_total_correlation() -> None:
    marginals = sum(float(h) for h in toy_estimate(0, (1, 1, 0, 0))(torch.zeros(1, 4, dtype=torch.bool)).entropy[0])
    joint_given_g = entropy_of(torch.tensor(list(toy_joint().values()), dtype=torch.float64)) - 1.0
    assert marginals - joint_given_g == pytest.approx(2.0, abs=1e-5)  # z1 repeats the 2 bits of z0


def test_one_round_keeps_what_the_globals_leave_open() -> None:
    kept = run(toy_estimate(0, (1, 1, 0, 0)), DTFSettings(threshold=0.5)).kept_BN
    assert kept.tolist() == [[True, True, False, False]]  # z2 follows from g, the coin is worth 0.19 bits


def test_rounds_drop_the_copy() -> None:
    filtered = run(toy_estimate(0, (1, 1, 0, 0)), DTFSettings(threshold=0.5, rounds=2))
    assert filtered.kept_BN.tolist() == [[True, False, False, False]]
    assert filtered.entropy_when_kept_BN[0].tolist() == pytest.approx([2.0, 0.0, 0.0, 0.1944], abs=1e-3)


def test_surprisal_keeps_the_rare_coin() -> None:
    settings_ = DTFSettings(criterion="surprisal", threshold=4.1)
    common, rare = toy_estimate(0, (1, 1, 0, 0)), toy_estimate(0, (1, 1, 0, 1))
    assert not run(common, settings_).kept_BN[0, 3]
    assert run(rare, settings_).kept_BN[0, 3]  # -log2 0.03 = 5.06 bits


def test_statistics_of_a_known_distribution() -> None:
    codebook = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    q = torch.tensor([[[0.5, 0.5]]])
    statistics = code_statistics(q.log(), torch.tensor([[1]]), codebook)
    assert float(statistics.entropy) == pytest.approx(1.0)
    assert float(statistics.surprisal) == pytest.approx(1.0)
    assert float(statistics.variance) == pytest.approx(6.25)  # both codes lie 2.5 from their mean
    assert float(statistics.distance) == pytest.approx(6.25)


# --- laws, on arbitrary statistics ------------------------------------------------------------------------------

bits = st.lists(st.floats(0, 12, width=32), min_size=1, max_size=40)


def fixed_estimate(values: list[float]):
    row = torch.tensor([values])
    return lambda visible: CodeStatistics(row, row, row, row)


SETTINGS = {
    "residual_bits": DTFSettings(),
    "fraction": DTFSettings(threshold_kind="fraction"),
    "distortion": DTFSettings(criterion="content", threshold_kind="distortion"),
}


@given(
    values=bits, low=st.floats(0.001, 1), factor=st.floats(1, 50), kind=st.sampled_from(["residual_bits", "distortion"])
)
def test_kept_sets_shrink_and_are_nested_as_the_threshold_grows(
    values: list[float], low: float, factor: float, kind: str
) -> None:
    lenient = run(fixed_estimate(values), SETTINGS[kind].with_threshold(low), len(values)).kept_BN
    strict = run(fixed_estimate(values), SETTINGS[kind].with_threshold(low * factor), len(values)).kept_BN
    assert not bool((strict & ~lenient).any())


@given(values=bits, threshold=st.floats(0.01, 40))
def test_what_is_dropped_stays_within_the_threshold_and_no_shorter_prefix_does(
    values: list[float], threshold: float
) -> None:
    kept = run(fixed_estimate(values), DTFSettings(threshold=threshold), len(values)).kept_BN[0]
    units = position_bits(fixed_estimate(values)(kept[None]), DTFSettings(threshold=threshold))[0]
    target = round(threshold * 1024)
    assert int(units[~kept].sum()) <= target
    if kept.any():
        assert int(units[~kept].sum()) + int(units[kept].min()) > target


@given(values=bits, rounds=st.integers(1, 5))
def test_zero_keeps_everything(values: list[float], rounds: int) -> None:
    for settings_ in (
        DTFSettings(rounds=rounds),
        SETTINGS["distortion"],
        DTFSettings(threshold_kind="fraction", threshold=1),
    ):
        assert bool(run(fixed_estimate(values), settings_, len(values)).kept_BN.all())


@given(
    values=bits, low=st.integers(0, 45), span=st.integers(0, 20), threshold=st.floats(0, 60), rounds=st.integers(1, 4)
)
def test_bounds_hold(values: list[float], low: int, span: int, threshold: float, rounds: int) -> None:
    settings_ = DTFSettings(threshold=threshold, min_tokens=low, max_tokens=low + span, rounds=rounds)
    num_kept = int(run(fixed_estimate(values), settings_, len(values)).kept_BN.sum())
    assert min(max(low - 1, 0), len(values)) <= num_kept <= max(low + span - 1, 0)


@given(values=st.lists(bits.filter(lambda v: len(v) >= 12).map(lambda v: v[:12]), min_size=1, max_size=4))
@settings(max_examples=50)
def test_an_image_does_not_depend_on_its_batch(values: list[list[float]]) -> None:
    rows = torch.tensor(values)
    together = filter_tokens(
        lambda visible: CodeStatistics(rows, rows, rows, rows),
        num_images=len(values), num_positions=12, num_global=1, settings=DTFSettings(threshold=7.5, rounds=3),
        device=torch.device("cpu"),
    ).kept_BN  # fmt: skip
    for row, alone in zip(together, values, strict=True):
        assert row.tolist() == run(fixed_estimate(alone), DTFSettings(threshold=7.5, rounds=3), 12).kept_BN[0].tolist()


# --- worth, and the criterion residual --------------------------------------------------------------------------


def by_residual(values: list[float], threshold: float, **changes: int):
    """DTF by residual, for a prior to whom all positions are alike."""
    row = torch.ones(1, len(values))
    return filter_tokens(
        lambda visible: CodeStatistics(row, row, row, row),
        num_images=1, num_positions=len(values), num_global=1,
        settings=DTFSettings(criterion="residual", threshold_kind="distortion", threshold=threshold, **changes),
        device=torch.device("cpu"), residual_BN=torch.tensor([values]),
    )  # fmt: skip


def test_residual_keeps_what_the_picture_would_lose() -> None:
    filtered = by_residual([0.0, 16.0, 4.0, 1.0, 64.0], threshold=4.0)
    assert filtered.kept_BN.tolist() == [[False, True, False, False, True]]
    assert filtered.worth_BN.tolist() == [[0.0, 1.0, 0.0, 0.0, 2.0]]  # 1/2 log2 of 4 and of 16
    assert by_residual([0.0, 16.0, 4.0, 1.0, 64.0], threshold=4.0, max_tokens=2).kept_BN.nonzero().tolist() == [[0, 4]]
    settings_ = DTFSettings(criterion="residual", threshold_kind="distortion", threshold=4.0)
    assert settings_.needs_positions
    assert DTFSettings(threshold=3.0).with_criterion("residual") == settings_.with_threshold(0.0)
    row = torch.ones(1, 2)
    with pytest.raises(ValueError, match="needs residual_BN"):
        position_bits(CodeStatistics(row, row, row, row), settings_)


@given(values=bits, threshold=st.floats(0.001, 50))
def test_under_a_distortion_what_is_kept_is_what_is_worth_anything(values: list[float], threshold: float) -> None:
    of_content = run(fixed_estimate(values), SETTINGS["distortion"].with_threshold(threshold), len(values))
    for filtered in (of_content, by_residual(values, threshold)):
        assert torch.equal(filtered.kept_BN, filtered.worth_BN > 0)
        assert filtered.worth_BN.dtype is torch.float32


@given(values=bits, threshold=st.floats(0, 60), rounds=st.integers(1, 3), kind=st.sampled_from(sorted(SETTINGS)))
@example(values=[0.0, 2.0], threshold=sys.float_info.min / 2, rounds=1, kind="distortion")
@example(values=[0.0, 2.0, 50.0], threshold=5e-324, rounds=2, kind="distortion")
def test_worth_is_finite_and_in_the_order_of_what_is_ranked(
    values: list[float], threshold: float, rounds: int, kind: str
) -> None:
    settings_ = replace(SETTINGS[kind], threshold=min(threshold, 1.0 if kind == "fraction" else 60.0), rounds=rounds)
    filtered = run(fixed_estimate(values), settings_, len(values))
    worth = filtered.worth_BN[0]
    assert bool((worth.isfinite() & (worth >= 0)).all())
    assert bool((worth[torch.tensor(values).argsort()].diff() >= 0).all())
    if kind != "distortion":
        torch.testing.assert_close(worth, torch.tensor(values), rtol=0, atol=1 / 2048)
    kept = filtered.kept_BN[0]
    if kept.any() and not kept.all():
        assert float(worth[kept].min()) >= float(worth[~kept].max())


# --- texture ----------------------------------------------------------------------------------------------------

TEXTURED = DTFSettings(criterion="residual", threshold_kind="distortion", threshold=4.0, texture_bits=0.5)


def by_texture(texture: list[float], residual: list[float], **changes: float | int):
    """DTF by residual and texture, for a prior to whom all positions are alike."""
    row = torch.ones(1, len(residual))
    return filter_tokens(
        lambda visible: CodeStatistics(row, row, row, row),
        num_images=1, num_positions=len(residual), num_global=1, settings=replace(TEXTURED, **changes),
        device=torch.device("cpu"), residual_BN=torch.tensor([residual]), texture_BN=torch.tensor([texture]),
    )  # fmt: skip


def test_texture_is_kept_whatever_the_criterion_says() -> None:
    filtered = by_texture([0.75, 0.5, 2.0, 0.0], [0.0, 0.0, 16.0, 16.0])
    assert filtered.kept_BN.tolist() == [[True, False, True, True]]
    assert filtered.worth_BN.tolist() == [[0.25, 0.0, 1.5, 1.0]]  # the more of texture - 0.5 and 1/2 log2(16 / 4)
    most = by_texture([0.75, 0.5, 2.0, 0.0], [0.0, 0.0, 16.0, 16.0], max_tokens=3)
    assert most.kept_BN.tolist() == [[False, False, True, True]]
    assert bool(by_texture([0.75, 0.5, 2.0, 0.0], [0.0] * 4, threshold=0.0).kept_BN.all())


@given(values=bits, threshold=st.floats(0.001, 50), factor=st.floats(1, 50), data=st.data())
def test_texture_adds_to_what_is_kept_and_says_so(
    values: list[float], threshold: float, factor: float, data: st.DataObject
) -> None:
    texture = data.draw(st.lists(st.floats(0, 4), min_size=len(values), max_size=len(values)))
    filtered = by_texture(texture, values, threshold=threshold)
    assert torch.equal(filtered.kept_BN, filtered.worth_BN > 0)
    assert not bool((by_residual(values, threshold).kept_BN & ~filtered.kept_BN).any())
    fewer = by_texture(texture, values, threshold=threshold * factor).kept_BN
    assert not bool((fewer & ~filtered.kept_BN).any())  # nested, as without it


def test_texture_has_a_place_in_the_settings_where_it_matters() -> None:
    assert TEXTURED.document()["texture_bits"] == 0.5
    assert "texture_bits" not in replace(TEXTURED, texture_bits=0.0).document()  # fingerprints of datasets without it
    assert replace(TEXTURED, criterion="content").needs_positions
    assert TEXTURED.with_criterion("entropy").texture_bits == 0
    assert TEXTURED.with_criterion("distance").texture_bits == 0.5
    row = torch.ones(1, 2)
    with pytest.raises(ValueError, match="needs texture_BN"):
        position_bits(CodeStatistics(row, row, row, row), TEXTURED, residual_BN=row)
    assert position_bits(CodeStatistics(row, row, row, row), TEXTURED.ranking_all(), row).min() > 0


def test_ties_go_to_the_earlier_position() -> None:
    assert keep_most(torch.tensor([[5, 7, 7, 7]]), torch.tensor([2])).tolist() == [[False, True, True, False]]


def test_a_relative_threshold_keeps_a_share_of_even_a_flat_image() -> None:
    """Why the absolute residual is the paper-reading default: fractions are blind to scale."""
    flat = fixed_estimate([0.01] * 20)
    assert int(run(flat, DTFSettings(threshold=2.0), 20).kept_BN.sum()) == 0
    assert int(run(flat, DTFSettings(threshold_kind="fraction", threshold=0.5), 20).kept_BN.sum()) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criterion": "luck"}, "must be one of entropy, surprisal"),
        ({"criterion": "content"}, "for 'content' it is distortion"),
        ({"criterion": "residual"}, "for 'residual' it is distortion"),
        ({"threshold_kind": "distortion"}, "for 'entropy' it is residual_bits or fraction"),
        ({"threshold": -1.0}, "at least 0"),
        ({"threshold": math.nan}, "at least 0"),
        ({"threshold_kind": "fraction", "threshold": 1.5}, "at most 1"),
        ({"rounds": 0}, "at least 1"),
        ({"texture_bits": 0.5}, "criterion content, distance or residual; this one is 'entropy'"),
        ({"criterion": "content", "threshold_kind": "distortion", "texture_bits": -0.5}, "at least 0, which turns it"),
        ({"criterion": "content", "threshold_kind": "distortion", "texture_bits": math.inf}, "at least 0, which turns"),
        ({"min_tokens": 9, "max_tokens": 3}, "below"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DTFSettings(**changes)
