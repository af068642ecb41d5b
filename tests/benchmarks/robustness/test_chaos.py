"""The chaos bench's tiny twin: each kind of victim once, in the middle of a run, and nothing is lost or doubled."""

from __future__ import annotations

import os
from typing import get_args

import pytest

from benchmarks.robustness.chaos import ChaosRun, Kill, Victim, chaos, plan_kills

VICTIMS: tuple[Victim, ...] = get_args(Victim)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChaosRun]:
    """A calm run, and one for each victim, killed when a first part is committed."""

    def plan(number: int) -> tuple[Kill, ...]:
        return (Kill(victim=VICTIMS[number - 1], moment=0, after_parts=1),)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # put back at the end
        patch.delenv("RAY_ADDRESS", raising=False)
        found = chaos(range(1, len(VICTIMS) + 1), 0, tmp_path_factory.mktemp("chaos"), plan=plan)
    return {run.kills[0].victim if run.kills else "nobody": run for run in found}


@pytest.mark.timeout(900)  # the fixture: six runs on a Ray of three nodes
@pytest.mark.parametrize("victim", ["nobody", *VICTIMS])
def test_nothing_is_lost_and_nothing_doubled(runs: dict[str, ChaosRun], victim: str) -> None:
    run = runs[victim]
    assert run.findings == ()
    assert (run.num_rows, run.num_rejects) == (96, 9)
    assert run.hit == (() if victim == "nobody" else (victim,))
    assert run.num_starts == (2 if victim == "driver" else 1), "a driver outlives all others"


def test_a_seed_makes_the_same_plan() -> None:
    plans = [plan_kills(7, number) for number in range(200)]
    assert plans == [plan_kills(7, number) for number in range(200)]
    assert plans != [plan_kills(8, number) for number in range(200)]
    kills = [kill for plan in plans for kill in plan]
    assert {kill.victim for kill in kills} == set(VICTIMS)
    assert all(0.02 <= kill.moment <= 1 for kill in kills)
    assert {len(plan) for plan in plans} == {1, 2, 3}
