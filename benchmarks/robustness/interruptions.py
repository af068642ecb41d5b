"""Stop trainings by signals at random moments, resume them, and compare with one that was never stopped, bit by bit.

    make interruptions RUNS=10 SEED=0

A run is `tatok train` or `tatok generator train` of a tiny model on the CPU. One to three times it is sent SIGINT,
SIGTERM or SIGKILL at a random step, or in its start, and started again by the same command. Then its weights must be
those of the run that was never stopped, to the bit, and its figures must hold every step once, with the same losses.
Of a SIGKILL nothing is saved: the run resumes from the last state, and what was written after that must be gone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from benchmarks import ROOT
from tests.support.photos import write_photo_shards
from tests.support.processes import heed_interrupts
from tests.support.synthetic_tokens import write_synthetic
from tests.support.synthetic_videos import video_bytes
from tests.support.tiny_checkpoint import TINY_RECIPE

__all__ = ["Interrupted", "Interruption", "interruptions", "main"]

Kind = Literal["images", "images in memory", "clips", "generator"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
_TATOK = (sys.executable, "-m", "tatok.jobs.cli")
_SAVE_EVERY = 5
_GENERATOR_STEPS = 40
_MOST_S = 240.0  # for one start; longer is a hang
# Figures of a record that say how fast it was, not what came of it.
_OF_TIME = {"images_per_s", "hours", "seconds", "tokens_per_s", "end"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """One signal: sent when there were so many records; with its answer, and the steps that had to be done again."""

    signal: str
    records: int
    exit_code: int
    said: str
    steps_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """One run: what interrupted it, and how it differs in the end from one that was never stopped."""

    number: int
    kind: Kind
    interruptions: tuple[Interruption, ...]
    num_records: int
    num_doubles: int
    num_gaps: int
    num_other_losses: int
    num_other_weights: int

    @property
    def findings(self) -> list[str]:
        """What should not be."""
        found = [
            name for name in ("num_doubles", "num_gaps", "num_other_losses", "num_other_weights") if getattr(self, name)
        ]
        for each in self.interruptions:
            number = signal.Signals[each.signal]
            if each.exit_code != EXIT_CODES[number]:
                found.append(f"{each.signal}: exit code {each.exit_code}")
            if number != signal.SIGKILL and (each.steps_lost or "the same command" not in each.said):
                found.append(f"{each.signal}: {each.steps_lost} steps lost, said {each.said!r}")
        return found


def _recipe(kind: Kind, work: Path, output: Path) -> dict[str, Any]:
    photos = str(work / "source")
    shape = {"batch_size": 4, "image_size": 32, "warmup_steps": 2, "steps": 8}
    stages: dict[Kind, list[dict[str, Any]]] = {
        "images": [
            {"name": "tokenizer", "train": ["tokenizer"], "perceptual_weight": 0.01, "adversarial_weight": 0.1},
            {"name": "prior", "train": ["prior"]},
            {"name": "decoder", "train": ["decoder"], "adversarial_weight": 0.1, "kept": {"dtf": 1.0}},
        ],
        "images in memory": [{"name": "joint", "train": ["tokenizer", "prior"], "native_share": 0.5}],
        "clips": [
            {"name": "images", "train": ["tokenizer"]},
            {"name": "clips", "train": ["decoder", "prior"], "num_frames": 3},
        ],
    }
    return {
        "output": str(output),
        "photos": [photos],
        "heldout": [photos],
        "videos": [str(work / "clip.mp4")] if kind == "clips" else [],
        "num_heldout": 4,
        "num_loader_workers": 2,
        "num_start_crops": 32,
        "precision": "float32",
        "photos_in_memory": kind == "images in memory",
        "log_every_steps": 1,
        "save_every_steps": _SAVE_EVERY,
        "model": TINY_RECIPE,
        "stages": [{**shape, "perceptual_size": 32} | stage for stage in stages[kind]],
    }


def _command(kind: Kind, work: Path, output: Path) -> list[str]:
    if kind == "generator":
        rounds = ["--log-every-steps", "1", "--save-every-steps", str(_SAVE_EVERY)]
        options = ["-o", str(output), "--steps", str(_GENERATOR_STEPS), *rounds]
        small = ["--width", "32", "--num-layers", "1", "--num-heads", "2", "--batch-tokens", "2048", "--device", "cpu"]
        return [*_TATOK, "generator", "train", str(work / "tokens"), *options, *small]
    recipe = output.with_suffix(".json")
    recipe.write_text(json.dumps(_recipe(kind, work, output)))  # JSON is YAML
    return [*_TATOK, "train", str(recipe), "--device", "cpu"]


def _records(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # what is being written, or was when it was killed
            break
    return found


def _step(record: Mapping[str, Any]) -> tuple[str, int]:
    return str(record.get("stage", "generator")), int(record.get("step", record.get("steps", _GENERATOR_STEPS + 1)))


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def _heeds_sigterm(pid: int) -> bool:
    """Whether the command line is there already: what comes before it, Python itself, dies of a signal."""
    [caught] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def _finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=_MOST_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def _interrupt(
    command: Sequence[str], output: Path, number: signal.Signals, at: int, whole: int, rng: random.Random
) -> Interruption | None:
    """Start, send a signal to all processes of the run once there are `at` records; None if it was done before that.

    Done is also a process that had written all of the `whole` run's records when the signal came, and ended in peace.
    """
    before = _records(output)
    process = _start(command)
    deadline = time.monotonic() + _MOST_S
    while process.poll() is None and time.monotonic() < deadline:
        if len(_records(output)) >= at and _heeds_sigterm(process.pid):
            break
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1 if at else 4.0))  # in a step, in looking at held-out photos, in saving; in its start
    if process.poll() is not None:
        _finish(process)
        return None
    num_then = len(_records(output))
    os.killpg(process.pid, number)  # as a terminal and Slurm do; Kubernetes sends it to the first process alone
    text = _finish(process)
    if num_then == whole and process.returncode == 0 and "Traceback" not in text:
        return None
    said = " ".join(line.strip() for line in text.splitlines() if "interrupted" in line or "Traceback" in line)
    records = _records(output)
    state = output / "state.pt"
    saved = torch.load(state, weights_only=True)["num_records"] if state.exists() else 0
    num_steps = sum("end" not in record for record in records)  # what came of it is written after the last state
    lost = 0 if records == before else num_steps - saved
    return Interruption(
        signal=number.name, records=len(records), exit_code=process.returncode, said=said, steps_lost=lost
    )


def _weights(output: Path) -> dict[str, Tensor]:
    state = torch.load(output / "state.pt", weights_only=True)
    names = ("modules", "average") if "modules" in state else ("generator", "average")
    return {f"{name}.{key}": value for name in names for key, value in state[name].items()}


def _compared(number: int, kind: Kind, done: Sequence[Interruption], output: Path, whole: Path) -> Interrupted:
    records, expected = _records(output), _records(whole)
    steps, wanted = [_step(record) for record in records], [_step(record) for record in expected]
    by_step = dict(zip(wanted, expected, strict=True))
    others = [
        record
        for step, record in zip(steps, records, strict=True)
        if _without_times(record) != _without_times(by_step.get(step, {}))
    ]
    found, weights = _weights(output), _weights(whole)
    return Interrupted(
        number=number,
        kind=kind,
        interruptions=tuple(done),
        num_records=len(records),
        num_doubles=len(steps) - len(set(steps)),
        num_gaps=len(set(wanted) - set(steps)),
        num_other_losses=len(others),
        num_other_weights=sum(not torch.equal(value, found[name]) for name, value in weights.items()),
    )


def _without_times(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in record.items() if name not in _OF_TIME}


def interruptions(
    kinds: Sequence[Kind],
    numbers: Sequence[int],
    seed: int,
    work: Path,
    *,
    signals: Sequence[signal.Signals] = SIGNALS,
    times: Sequence[int] = (1, 2, 3),
) -> list[Interrupted]:
    """Runs of each kind, each interrupted one of so many `times`; the same moments for the same seed, kind, number."""
    write_photo_shards(work, 2, 8)
    (work / "clip.mp4").write_bytes(video_bytes(40))
    write_synthetic(str(work / "tokens"), 200)
    found = []
    for kind in kinds:
        whole = work / f"{kind}-whole".replace(" ", "-")
        process = _start(_command(kind, work, whole))
        text = _finish(process)
        if process.returncode:
            raise RuntimeError(f"{kind}: the run that is not stopped fails: {text}")
        num_records = len(_records(whole))
        for number in numbers:
            rng = random.Random(f"{seed} {kind} {number}")
            output = work / f"{kind}-{number}".replace(" ", "-")
            command = _command(kind, work, output)
            moments = sorted(rng.randrange(num_records) for _ in range(rng.choice(times)))
            tried = [_interrupt(command, output, rng.choice(signals), at, num_records, rng) for at in moments]
            process = _start(command)
            text = _finish(process)
            if process.returncode:
                raise RuntimeError(f"{kind} {number}: the run that resumes fails: {text}")
            run = _compared(number, kind, [each for each in tried if each is not None], output, whole)
            print(
                f"{kind} {number}: {len(run.interruptions)} signals, {run.findings or 'as one never stopped'}",
                flush=True,
            )
            found.append(run)
    return found


def main() -> int:
    """The command line; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=get_args(Kind), action="append", help="only this kind; may be repeated")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds: Sequence[Kind] = options.kind or get_args(Kind)
    with TemporaryDirectory(prefix="tatok-interruptions-") as folder:
        found = interruptions(kinds, range(options.runs), options.seed, Path(folder))
    signals = [each for run in found for each in run.interruptions]
    figures = {
        "seed": options.seed,
        "num_runs": len(found),
        "num_signals": {name: sum(each.signal == name for each in signals) for name in (s.name for s in SIGNALS)},
        "steps_lost": {
            name: sum(each.steps_lost for each in signals if each.signal == name) for name in (s.name for s in SIGNALS)
        },
        "num_findings": sum(len(run.findings) for run in found),
        "runs": [asdict(run) | {"findings": run.findings} for run in found],
    }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps({name: value for name, value in figures.items() if name != "runs"}))
    return 1 if figures["num_findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
