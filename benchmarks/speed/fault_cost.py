"""What fault tolerance costs a run without faults: an earlier commit against this one, in turns, on the same data.

    make bench-fault-cost

Each tree gets one process with a Ray of its own, which stays. In each pair both run the same job into new outputs, the
one that goes first alternating. The ratio is now / before of each pair, of three spans (`RunTimes`): what makes the
start of a run shorter moves the first committed shard into what is still warming up, so that no span alone tells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks import ROOT
from benchmarks.layout import lay_out

NUM_SHARDS = 12
PHOTOS_A_SHARD = {"fake": 100, "real": 16}  # by tokenizer: the tests' fake, the bundled checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """Seconds of one run."""

    whole_s: float  # from the call to its return: processes start, Ray stays
    commits_s: float  # from the first committed shard to the last
    steady_s: float  # the same without the first third of the shards

    @staticmethod
    def of(started_at: float, ended_at: float, commits_at: Sequence[float]) -> RunTimes:
        """From readings of one clock."""
        return RunTimes(
            whole_s=round(ended_at - started_at, 3),
            commits_s=round(commits_at[-1] - commits_at[0], 3),
            steady_s=round(commits_at[-1] - commits_at[len(commits_at) // 3], 3),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Now / before of one span, pair by pair."""

    median: float
    lowest: float
    highest: float
    pairs: tuple[float, ...]

    @staticmethod
    def of(before_s: Sequence[float], now_s: Sequence[float]) -> Ratios:
        """From the measured seconds."""
        pairs = tuple(round(now / before, 3) for before, now in zip(before_s, now_s, strict=True))
        median = round(statistics.median(pairs), 3)
        return Ratios(median=median, lowest=min(pairs), highest=max(pairs), pairs=pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """All runs, pair by pair, and their ratios by the spans of `RunTimes`."""

    tokenizer: str
    num_photos: int
    before: tuple[RunTimes, ...]
    now: tuple[RunTimes, ...]
    ratios: dict[str, Ratios]
    load_average: float

    @staticmethod
    def of(tokenizer: str, num_photos: int, before: Sequence[RunTimes], now: Sequence[RunTimes]) -> CostReport:
        """From the measured runs."""
        return CostReport(
            tokenizer=tokenizer,
            num_photos=num_photos,
            before=tuple(before),
            now=tuple(now),
            ratios={
                span.name.removesuffix("_s"): Ratios.of(
                    [getattr(times, span.name) for times in before], [getattr(times, span.name) for times in now]
                )
                for span in fields(RunTimes)
            },
            load_average=round(os.getloadavg()[0], 1),
        )


class Tree:
    """A checkout and its process, which runs the job whenever it is asked to."""

    def __init__(self, root: Path, layout: Path, tokenizer: str, source: str) -> None:
        lay_out(root, layout)
        path = os.pathsep.join((str(layout), str(root)))
        environment = os.environ | {"PYTHONPATH": path, "RAY_ADDRESS": "local"}
        command = [sys.executable, "-P", __file__, "--serve", tokenizer, source]
        self._process = subprocess.Popen(
            command, env=environment, cwd=layout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.close()
            raise RuntimeError(f"the process of {root} did not start; its message is above")

    def run(self, output: Path) -> RunTimes:
        """One run into a new output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{output}\n")
        self._process.stdin.flush()
        return RunTimes(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process and its Ray."""
        self._process.communicate()


def measure(
    before: Path,
    tokenizer: str,
    num_pairs: int,
    work: Path,
    *,
    num_shards: int = NUM_SHARDS,
    photos_a_shard: int = 0,
    is_warmed_up: bool = True,
) -> CostReport:
    """Run the pairs, after one that warms both up if wanted."""
    from tests.support.photos import jpeg, tar_bytes

    source = work / f"source-{tokenizer}"
    source.mkdir(parents=True)
    photos_a_shard = photos_a_shard or PHOTOS_A_SHARD[tokenizer]
    photos = [(f"{i:04}.jpg", jpeg(i, 320, 280)) for i in range(photos_a_shard)]
    for number in range(num_shards):
        (source / f"photos-{number:03}.tar").write_bytes(tar_bytes(photos))
    trees = {
        name: Tree(root, work / f"layout-{name}", tokenizer, str(source))
        for name, root in (("before", before), ("now", ROOT))
    }
    runs: dict[str, list[RunTimes]] = {"before": [], "now": []}
    try:
        for pair in range(-1 if is_warmed_up else 0, num_pairs):
            for name in ("before", "now") if pair % 2 else ("now", "before"):
                took = trees[name].run(work / f"{tokenizer}-{name}-{pair}")
                if pair >= 0:
                    runs[name].append(took)
                print(f"{tokenizer} pair {pair} {name}: {took}", file=sys.stderr, flush=True)
    finally:
        for tree in trees.values():
            tree.close()
    return CostReport.of(tokenizer, num_shards * photos_a_shard, runs["before"], runs["now"])


def serve(tokenizer: str, source: str) -> None:
    """The process of a tree: a line of input is an output to run into, a line of output its RunTimes as JSON."""
    import tatok.pipeline.cluster.driver  # noqa: F401  sets Ray's environment before the import below
    from tatok.pipeline.run import run_job
    from tatok.schemas.job import JobConfig
    from tests.support.fake_tokenizer import load_fake

    import ray  # isort: skip

    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    print("ready", flush=True)
    for line in sys.stdin:
        commits: list[float] = []
        started = time.monotonic()

        def note(event: object, commits: list[float] = commits) -> None:
            if type(event).__name__ == "ShardCommitted":  # both trees have it, in modules of different names
                commits.append(time.monotonic())

        # Decoders of their own, as on GPUs: what was fixed is the way between processes.
        settings = {"source": source, "output": line.strip(), "resources": {"num_decoders": 2}}
        config = JobConfig.model_validate(settings)
        summary = run_job(config, load_tokenizer=load_fake if tokenizer == "fake" else None, on_event=note)
        ended = time.monotonic()
        assert summary.status == "complete", summary
        assert len(commits) == summary.num_shards, commits
        print(json.dumps(asdict(RunTimes.of(started, ended, commits))), flush=True)


def main() -> int:
    """Print the figures."""
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:4])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the earlier commit")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokenizer", choices=tuple(PHOTOS_A_SHARD), action="append", help="default: both")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for tokenizer in options.tokenizer or PHOTOS_A_SHARD:
            reports.append(asdict(measure(options.before.absolute(), tokenizer, options.pairs, Path(folder))))
            print(json.dumps(reports[-1], indent=1), flush=True)
            if options.json:
                options.json.write_text(json.dumps(reports, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
