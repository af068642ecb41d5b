"""Policies at one mean count: they meet it, from none to all, and each keeps what it says it keeps."""

from __future__ import annotations

import pytest
import torch

from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.policies import FULL_RATE, GLOBALS_ONLY, grid_positions, select_policies, standard_policies
from tatok.model.dtf import DTFSettings
from tatok.schemas.errors import ConfigError
from tests.support.tiny_checkpoint import NUM_POSITIONS, PATCH, tiny_images, tiny_tokenizer

NUM_IMAGES = 40
SHIPPED = DTFSettings(criterion="distance", threshold_kind="distortion", rounds=2)


@pytest.fixture(scope="module", params=[4, 0], ids=["4 globals", "no globals"])
def photos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EncodedPhotos:
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tiny"), request.param)
    return EncodedPhotos(tokenizer, tiny_images(NUM_IMAGES))


def test_counts_meet_the_mean(photos: EncodedPhotos) -> None:
    num_global = photos.tokenizer.num_global
    for policy in standard_policies(SHIPPED, num_global, num_global + 20.25):
        kept = torch.cat(policy.choose(photos))
        assert kept.shape == (NUM_IMAGES, NUM_POSITIONS)
        counts = kept.sum(1)
        if policy.name == FULL_RATE:
            assert kept.all()
        elif policy.name == GLOBALS_ONLY:
            assert not kept.any()
        elif policy.name.startswith(("fixed k", "random", "uniform")):
            assert set(counts.tolist()) == {20}
        elif num_global or not policy.name.startswith("DTF"):  # knowing nothing, a prior may say the same everywhere
            assert float(counts.double().mean()) == pytest.approx(20.25, abs=0.06)
            assert len(counts.unique()) > 3


@pytest.mark.parametrize("wanted", [0, NUM_POSITIONS])
def test_none_and_all(photos: EncodedPhotos, wanted: int) -> None:
    num_global = photos.tokenizer.num_global
    for policy in standard_policies(SHIPPED, num_global, num_global + wanted):
        counts = {int(count) for kept in policy.choose(photos) for count in kept.sum(1)}
        assert counts == {{FULL_RATE: NUM_POSITIONS, GLOBALS_ONLY: 0}.get(policy.name, wanted)}, policy.name


def test_the_error_router_keeps_what_the_globals_get_most_wrong(photos: EncodedPhotos) -> None:
    num_global = photos.tokenizer.num_global
    (policy,) = standard_policies(SHIPPED, num_global, num_global + 10, patterns=["error router*"])
    kept = policy.choose(photos)
    assert [k.shape for k in kept] == [full.codes.patch_BN.shape for full in photos.full]
    errors = []
    for pixels, full in zip(photos.pixels, photos.full, strict=True):
        rebuilt = photos.tokenizer.rebuild(full, torch.zeros_like(full.codes.patch_BN, dtype=torch.bool))
        squares = (rebuilt.double() - pixels.double()) ** 2
        for image in squares:
            rows = [image[:, y : y + PATCH, x : x + PATCH].sum() for y in range(0, 32, 4) for x in range(0, 32, 4)]
            errors.append(torch.stack(rows))
    error, chosen = torch.stack(errors), torch.cat(kept)
    assert int(chosen.sum()) == 10 * NUM_IMAGES
    assert float(error[chosen].min()) >= float(error[~chosen].max())
    assert chosen.sum(1)[-10:].double().mean() > chosen.sum(1)[:10].double().mean()  # noisy images come last


def test_random_sets_repeat_for_a_seed(photos: EncodedPhotos) -> None:
    num_global = photos.tokenizer.num_global

    def chosen(seed: int) -> torch.Tensor:
        (policy,) = standard_policies(SHIPPED, num_global, num_global + 10, seed=seed, patterns=["random"])
        assert torch.equal(torch.cat(policy.choose(photos)), torch.cat(policy.choose(photos)))
        return torch.cat(policy.choose(photos))

    assert torch.equal(chosen(1), chosen(1))
    assert not torch.equal(chosen(1), chosen(2))
    assert len({tuple(row.tolist()) for row in chosen(1)}) == NUM_IMAGES


def test_who_must_be_told_positions() -> None:
    told = {policy.name: policy.needs_positions for policy in standard_policies(SHIPPED, 4, 20)}
    assert [name for name, needs in told.items() if not needs] == [
        FULL_RATE,
        "DTF content",
        "DTF entropy (the paper's reading)",
        "DTF entropy, fraction tau",
        "fixed k by content",
        "fixed k by entropy",
        "uniform grid",
        GLOBALS_ONLY,
    ]
    assert told["DTF as shipped: distance, distortion, R=2"]
    assert told["DTF content, 4 rounds"]  # what is kept in one round tells the next


def test_selection_by_name() -> None:
    policies = standard_policies(SHIPPED, 4, 20)
    assert len({policy.name for policy in policies}) == len(policies) == 19
    names = [policy.name for policy in select_policies(policies, ["random", "DTF distance*"])]
    assert names == ["DTF distance", "DTF distance, 4 rounds", "random"]
    with pytest.raises(ConfigError, match=r"no policy is named 'luck'; there are: full rate; .*random"):
        standard_policies(SHIPPED, 4, 20, patterns=["random", "luck"])


def test_fewer_tokens_than_globals_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 tokens cannot be the mean: every image has 4 global tokens"):
        standard_policies(SHIPPED, 4, 3)


@pytest.mark.parametrize("num_kept", [0, 1, 7, 40, 64, 256])
def test_grid_positions_are_spread_and_counted(num_kept: int) -> None:
    kept = grid_positions(16, 16, num_kept)
    assert abs(int(kept.sum()) - num_kept) <= 1
    if num_kept >= 40:  # every quarter of the image gets its share
        quarters = kept.view(2, 8, 2, 8).sum((1, 3))
        assert int(quarters.max() - quarters.min()) <= num_kept // 8
