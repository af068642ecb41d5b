"""The chaos bench's tiny twin: each kind of victim once, in the middle of a run, and nothing is lost or doubled."""

from __future__ import annotations

import os
from typing import get_args

import pytest

from benchmarks.robustness.chaos import SETUPS, ChaosRun, Kill, Victim, chaos, plan_kills

VICTIMS: tuple[Victim, ...] = get_args(Victim)
KILLED: dict[str, tuple[Victim, ...]] = {  # by the runs' names; runs are dear, so that two have two victims each
    "nobody": (),
    "a decoder, and then a tokenizer": ("decoder", "tokenizer"),
    "a tokenizer that stands still": ("stopped tokenizer",),
    "a raylet, and then the driver": ("raylet", "driver"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChaosRun]:
    """A calm run, and those with victims, killed one after another when a first part is committed; of few, midway."""

    def plan(number: int) -> tuple[Kill, ...]:
        has_few = SETUPS[number % len(SETUPS)].num_shards == 2
        when = {"moment": 0.5, "after_parts": 0} if has_few else {"moment": 0.0, "after_parts": 1}
        return tuple(Kill(victim=victim, **when) for victim in list(KILLED.values())[number])

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # put back at the end
        patch.delenv("RAY_ADDRESS", raising=False)
        found = chaos(range(1, len(KILLED)), 0, tmp_path_factory.mktemp("chaos"), plan=plan, is_held_back=True)
    return dict(zip(KILLED, found, strict=True))


@pytest.mark.timeout(900)  # the fixture: four runs on a Ray of three nodes
@pytest.mark.parametrize("name", KILLED)
def test_nothing_is_lost_and_nothing_doubled(runs: dict[str, ChaosRun], name: str) -> None:
    run = runs[name]
    assert run.findings == ()
    assert (run.num_rows, run.num_rejects) == (96, 9 if run.setup.num_shards == 8 else 3)
    assert run.hit == KILLED[name]
    assert run.num_starts == (2 if "driver" in run.hit else 1), "a driver outlives all others"


def test_every_kind_of_victim_is_killed_once() -> None:
    assert sorted(victim for victims in KILLED.values() for victim in victims) == sorted(VICTIMS)


def test_a_seed_makes_the_same_plan() -> None:
    plans = [plan_kills(7, number) for number in range(200)]
    assert plans == [plan_kills(7, number) for number in range(200)]
    assert plans != [plan_kills(8, number) for number in range(200)]
    kills = [kill for plan in plans for kill in plan]
    assert {kill.victim for kill in kills} == set(VICTIMS)
    assert all(0.02 <= kill.moment <= 1 for kill in kills)
    assert {len(plan) for plan in plans} == {1, 2, 3}
