"""The chaos bench's tiny twin: victims killed in the middle of a run, and nothing is lost or doubled.

One run is in `make test`, two are in `make test-long`: together each kind of victim once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.robustness.chaos import SETUPS, Kill, Victim, chaos, plan_kills

VICTIMS: tuple[Victim, ...] = get_args(Victim)
KILLED: dict[int, tuple[Victim, ...]] = {  # by the runs' numbers; runs are dear, so that two have two victims each
    1: ("decoder", "tokenizer"),
    2: ("stopped tokenizer",),
    3: ("raylet", "driver"),
}


@pytest.mark.timeout(900)  # a calm run, and one or two with victims, on a Ray of three nodes
@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param((3,), id="a raylet, and then the driver"),
        pytest.param((1, 2), id="a decoder, a tokenizer, and one that stands still", marks=pytest.mark.long),
    ],
)
def test_nothing_is_lost_and_nothing_doubled(
    numbers: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Victims are killed one after another when a first part is committed; where parts are few, midway."""

    def plan(number: int) -> tuple[Kill, ...]:
        has_few = SETUPS[number % len(SETUPS)].num_shards == 2
        when = {"moment": 0.5, "after_parts": 0} if has_few else {"moment": 0.0, "after_parts": 1}
        return tuple(Kill(victim=victim, **when) for victim in KILLED[number])

    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # put back at the end
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    calm, *runs = chaos(numbers, 0, tmp_path, plan=plan, is_held_back=True)
    assert calm.hit == ()
    assert [run.hit for run in runs] == [KILLED[number] for number in numbers]
    for run in (calm, *runs):
        assert run.findings == ()
        assert (run.num_rows, run.num_rejects) == (96, 9 if run.setup.num_shards == 8 else 3)
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
