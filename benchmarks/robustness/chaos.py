"""Kill random processes of real runs on a Ray of several nodes, run again, and verify every dataset.

    make chaos RUNS=100 SEED=0

A run is `chaos_driver.py` over a handful of shards with a few broken samples: eight of them, or two, on which all
processes work together from the start, these with decoders and with tokenizers that decode, in turn. At random moments
one to three processes are killed (SIGKILL) or stopped (SIGSTOP): a decoder, a tokenizer, the driver, a node's raylet. A
driver that was killed is started again. Then `tatok verify --source` must find nothing: no row lost, none twice.

The seed decides on victims and moments, these as shares of an undisturbed run's duration; `--only 17` does the
seed's run 17 again. What the processes were doing at such a moment is the machine's affair.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tatok.pipeline.cluster.driver  # noqa: F401  sets Ray's environment before the import below
from benchmarks import ROOT
from tatok.pipeline.verify.dataset import verify_output
from tests.support.photos import write_flawed_shards
from tests.support.processes import descendants
from tests.support.runs import write_gated_filters

Victim = Literal["decoder", "tokenizer", "stopped tokenizer", "driver", "raylet"]
_DELAY_S = 0.25  # of the fake model for a batch of four
_MOST_TRIES = 6
_MOST_S = 300.0  # for one try; longer is a hang


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A source and who works on it; without decoders tokenizers decode."""

    num_shards: int
    photos_a_shard: int
    num_decoders: int


SETUPS = (
    Setup(num_shards=8, photos_a_shard=12, num_decoders=3),
    Setup(num_shards=2, photos_a_shard=48, num_decoders=3),
    Setup(num_shards=2, photos_a_shard=48, num_decoders=0),
)
"""Of the runs, in turn; the undisturbed one has the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Whom to kill; when, as a share of an undisturbed run's duration; and not before so many parts are committed."""

    victim: Victim
    moment: float
    after_parts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosRun:
    """One dataset: what was killed, how often the driver was started, and what verification found.

    `hit` are the kills that found a victim; a run may be over before its last one.
    """

    number: int
    kills: tuple[Kill, ...]
    hit: tuple[Victim, ...]
    num_starts: int
    seconds: float
    num_rows: int
    num_rejects: int
    findings: tuple[str, ...]
    setup: Setup = SETUPS[0]


class Nodes:
    """A Ray of a head and two more nodes, all of this machine; processes are children of this one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._environment = {"PYTHONPATH": str(ROOT)}
        os.environ |= self._environment
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self._others: list[Any] = [self._cluster.add_node(num_cpus=2) for _ in range(2)]

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return str(self._cluster.address)

    def kill_raylet(self, rng: random.Random) -> bool:
        """Kill the raylet of a node that is not the head, with all that runs there."""
        if not self._others:
            return False
        node = self._others.pop(rng.randrange(len(self._others)))
        for process in node.all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        return True

    def replace_lost(self) -> bool:
        """Let a new node join where one was killed."""
        if len(self._others) >= 2:
            return False
        try:
            self._others.append(self._cluster.add_node(num_cpus=2, wait=False))
        except Exception:  # Ray's own, bare: on a busy machine a node may not start in time; another may, later
            return False
        return True

    def close(self) -> None:
        """End every process."""
        self._cluster.shutdown()


def plan_kills(seed: int, number: int) -> tuple[Kill, ...]:
    """One to three kills of a run; the same for the same seed and number."""
    rng = random.Random(f"{seed}/{number}")
    moments = sorted(rng.uniform(0.02, 1.0) for _ in range(rng.choice((1, 1, 2, 3))))
    return tuple(Kill(victim=rng.choice(get_args(Victim)), moment=round(moment, 3)) for moment in moments)


def one_run(
    number: int,
    kills: tuple[Kill, ...],
    nodes: Nodes,
    *,
    setup: Setup = SETUPS[0],
    work: Path,
    rng: random.Random,
    span_s: float = 0.0,
    is_held_back: bool = False,
) -> ChaosRun:
    """Carry out the kills on a run into a new dataset, run again until it ends with 0, verify.

    With `is_held_back` the last shard waits for the last kill, so that none comes too late.
    """
    output, log = work / f"run-{number:03}", work / f"run-{number:03}.log"
    shutil.rmtree(output, ignore_errors=True)
    source = write_flawed_shards(
        work / f"source-{setup.num_shards}", num_shards=setup.num_shards, photos_a_shard=setup.photos_a_shard
    )
    folder = work / f"run-{number:03}-filters"
    folder.mkdir(exist_ok=True)
    gate = write_gated_filters(folder, f"-{setup.num_shards - 1:04}.tar")
    started = time.monotonic()
    pending, hit, num_starts = list(kills), list[Victim](), 0
    findings: list[str] = []
    with log.open("wb") as lines:
        while True:
            num_starts += 1
            driver = _start_driver(source, output, setup.num_decoders, nodes.address, lines, folder)
            began = time.monotonic()
            while driver.poll() is None:
                if not (pending and is_held_back):
                    gate.touch()
                now = time.monotonic()
                is_due = pending and now - started >= pending[0].moment * span_s
                if is_due and _num_parts(output) >= pending[0].after_parts:
                    victim = pending[0].victim
                    if _kill(victim, driver, nodes, rng):  # else there is none yet
                        hit.append(victim)
                        del pending[0]
                if now - began > _MOST_S:
                    findings.append(f"a try took more than {_MOST_S:g} s")
                    driver.kill()
                    driver.wait()
                time.sleep(0.05)
                if rng.random() < 0.005:  # every ten seconds or so
                    nodes.replace_lost()
            if driver.returncode == 0:
                break
            if driver.returncode != -signal.SIGKILL:  # whatever else dies, a driver continues by itself
                findings.append(f"the driver ended with {driver.returncode} at start {num_starts}")
            if num_starts == _MOST_TRIES or findings:
                break
    nodes.replace_lost()
    verification = verify_output(str(output), [source])
    findings += [f"{finding.check} {finding.file}: {finding.message}" for finding in verification.findings]
    return ChaosRun(
        number=number,
        kills=kills,
        hit=tuple(hit),
        num_starts=num_starts,
        seconds=round(time.monotonic() - started, 1),
        num_rows=verification.num_rows,
        num_rejects=verification.num_rejects,
        findings=tuple(findings),
        setup=setup,
    )


def _num_parts(output: Path) -> int:
    return len(list((output / "data").glob("*.parquet")))


def _start_driver(
    source: str, output: Path, num_decoders: int, address: str, log: Any, filters: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.robustness.chaos_driver"]
    command += [source, str(output), str(_DELAY_S), str(num_decoders), "my_filters:everything"]  # of its folder
    environment = os.environ | {"RAY_ADDRESS": address}
    return subprocess.Popen(command, cwd=filters, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _kill(victim: Victim, driver: subprocess.Popen[bytes], nodes: Nodes, rng: random.Random) -> bool:
    if victim == "driver":
        driver.kill()
        return True
    if victim == "raylet":
        return nodes.kill_raylet(rng)
    title = "ray::DecodeWorker" if victim == "decoder" else "ray::TokenizerWorker"
    found = descendants(title)
    if not found:
        return False
    os.kill(rng.choice(found), signal.SIGSTOP if victim == "stopped tokenizer" else signal.SIGKILL)
    return True


def chaos(
    numbers: Iterable[int],
    seed: int,
    work: Path,
    *,
    plan: Callable[[int], tuple[Kill, ...]] | None = None,
    on_run: Callable[[ChaosRun], None] = lambda run: None,
    is_held_back: bool = False,
) -> list[ChaosRun]:
    """An undisturbed run, for its duration, and the disturbed ones of these numbers; `plan` may choose the kills.

    `is_held_back` is that of `one_run`.
    """
    work.mkdir(parents=True, exist_ok=True)
    nodes = Nodes()
    runs: list[ChaosRun] = []
    try:
        rng = random.Random(seed)
        calm = one_run(0, (), nodes, work=work, rng=rng)
        on_run(calm)
        runs.append(calm)
        for number in numbers:
            kills = plan(number) if plan else plan_kills(seed, number)
            rng = random.Random(f"{seed}/{number}/victim")
            setup = SETUPS[number % len(SETUPS)]
            run = one_run(
                number,
                kills,
                nodes,
                setup=setup,
                work=work,
                rng=rng,
                span_s=calm.seconds,
                is_held_back=is_held_back,
            )
            on_run(run)
            runs.append(run)
    finally:
        nodes.close()
    return runs


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosReport:
    """What the bench found: `runs` in order, the undisturbed one first."""

    seed: int
    num_runs: int
    num_kills: int
    kills: dict[str, int]
    num_rows_a_run: int
    num_rejects_a_run: int
    num_findings: int
    runs: tuple[ChaosRun, ...]

    @staticmethod
    def of(runs: Sequence[ChaosRun], seed: int) -> ChaosReport:
        """Count over the runs."""
        kills = Counter(victim for run in runs for victim in run.hit)
        return ChaosReport(
            seed=seed,
            num_runs=sum(run.number > 0 for run in runs),
            num_kills=kills.total(),
            kills=dict(sorted(kills.items())),
            num_rows_a_run=runs[0].num_rows,
            num_rejects_a_run=runs[0].num_rejects,
            num_findings=sum(len(run.findings) for run in runs),
            runs=tuple(runs),
        )


def _read_runs(path: Path, seed: int) -> list[ChaosRun]:
    document = json.loads(path.read_text())
    if document["seed"] != seed:
        raise SystemExit(f"{path} holds runs of the seed {document['seed']}")
    runs = []
    for run in document["runs"]:
        read = {
            "kills": tuple(Kill(**kill) for kill in run["kills"]),
            "hit": tuple(run["hit"]),
            "findings": tuple(run["findings"]),
            "setup": Setup(**run["setup"]) if "setup" in run else SETUPS[0],
        }
        runs.append(ChaosRun(**run | read))
    return runs


def _print(run: ChaosRun) -> None:
    what = ", ".join(run.hit) or "nothing"
    verdict = "ok" if not run.findings else "; ".join(run.findings)
    print(
        f"run {run.number:3}  {run.seconds:6.1f} s  {run.num_starts} starts  killed: {what:40}  {verdict}", flush=True
    )


def main() -> int:
    """Exit code 1 where any run lost or doubled anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="do this run of the seed alone")
    parser.add_argument("--resume", action="store_true", help="leave out the runs that the JSON file holds already")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "chaos")
    parser.add_argument("--json", type=Path, help="write the runs here, after each of them")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    done: list[ChaosRun] = _read_runs(options.json, options.seed) if options.resume and options.json.exists() else []
    known = {run.number for run in done}

    def keep(run: ChaosRun) -> None:
        _print(run)
        if run.number not in known:  # each invocation starts with an undisturbed one
            done.append(run)
        if options.json:
            options.json.write_text(json.dumps(asdict(ChaosReport.of(done, options.seed)), indent=1) + "\n")

    numbers = range(1, options.runs + 1) if options.only is None else (options.only,)
    chaos([number for number in numbers if number not in known], options.seed, options.work, on_run=keep)
    report = ChaosReport.of(done, options.seed)
    print(f"{report.num_runs} runs, {report.num_kills} kills ({report.kills}); {report.num_findings} findings")
    return 1 if report.num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
