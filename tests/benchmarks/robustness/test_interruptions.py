"""The interruptions bench's tiny twin: real commands and signals, nothing lost; and what it counts as a finding."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.robustness.interruptions import Interrupted, Interruption, Kind, interruptions

GOOD = Interruption(
    signal="SIGTERM",
    records=7,
    exit_code=143,
    said="interrupted: saved at step 7 in run; resume with the same command:",
    steps_lost=0,
)
RUN = Interrupted(
    number=0,
    kind="images",
    interruptions=(GOOD,),
    num_records=12,
    num_doubles=0,
    num_gaps=0,
    num_other_losses=0,
    num_other_weights=0,
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "signals", "times"),
    [
        ("generator", (signal.SIGINT,), (1,)),
        pytest.param("generator", (signal.SIGINT, signal.SIGTERM), (1, 2, 3), marks=pytest.mark.long),
        pytest.param("clips", (signal.SIGINT, signal.SIGTERM), (1, 2, 3), marks=pytest.mark.long),
    ],
)
def test_commands_that_signals_stop_end_as_those_that_none_has(
    kind: Kind, signals: tuple[signal.Signals, ...], times: tuple[int, ...], tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    [run] = interruptions([kind], [0], seed, tmp_path, signals=signals, times=times)
    assert run.findings == [], run


def test_what_should_not_be_is_a_finding() -> None:
    assert RUN.findings == []
    for name in ("num_doubles", "num_gaps", "num_other_losses", "num_other_weights"):
        assert replace(RUN, **{name: 1}).findings == [name]  # type: ignore[arg-type]
    for wrong in ({"exit_code": 1}, {"steps_lost": 2}, {"said": "Traceback"}):
        assert len(replace(RUN, interruptions=(replace(GOOD, **wrong),)).findings) == 1  # type: ignore[arg-type]
    killed = replace(GOOD, signal="SIGKILL", exit_code=-9, said="", steps_lost=4)
    assert replace(RUN, interruptions=(killed,)).findings == []
