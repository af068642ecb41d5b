"""What fault tolerance costs a run without faults: an earlier commit against this one, in turns, on the same data.

    make bench-fault-cost

Each tree gets one process with a Ray of its own, which stays. In each pair both run the same job into new outputs, the
one that goes first alternating. What counts is the time from the first committed shard to the last: processes have
started by then. The ratio is now / before of each pair.
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
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.layout import lay_out

NUM_SHARDS = 12
PHOTOS_A_SHARD = {"fake": 100, "real": 16}  # by tokenizer: the tests' fake, the bundled checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """Seconds from the first committed shard to the last, pair by pair; `ratios` are now / before."""

    tokenizer: str
    num_photos: int
    before_s: tuple[float, ...]
    now_s: tuple[float, ...]
    ratios: tuple[float, ...]
    median_ratio: float
    load_average: float

    @staticmethod
    def of(tokenizer: str, num_photos: int, before_s: Sequence[float], now_s: Sequence[float]) -> CostReport:
        """From the measured seconds."""
        ratios = tuple(round(now / before, 3) for before, now in zip(before_s, now_s, strict=True))
        return CostReport(
            tokenizer=tokenizer,
            num_photos=num_photos,
            before_s=tuple(before_s),
            now_s=tuple(now_s),
            ratios=ratios,
            median_ratio=round(statistics.median(ratios), 3),
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

    def run(self, output: Path) -> float:
        """One run into a new output; its seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{output}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

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
    seconds: dict[str, list[float]] = {"before": [], "now": []}
    try:
        for pair in range(-1 if is_warmed_up else 0, num_pairs):
            for name in ("before", "now") if pair % 2 else ("now", "before"):
                took = trees[name].run(work / f"{tokenizer}-{name}-{pair}")
                if pair >= 0:
                    seconds[name].append(round(took, 3))
                print(f"{tokenizer} pair {pair} {name}: {took:.2f} s", file=sys.stderr, flush=True)
    finally:
        for tree in trees.values():
            tree.close()
    return CostReport.of(tokenizer, num_shards * photos_a_shard, seconds["before"], seconds["now"])


def serve(tokenizer: str, source: str) -> None:
    """The process of a tree: a line of input is an output to run into, a line of output its seconds."""
    import tatok.pipeline.cluster.driver  # noqa: F401  sets Ray's environment before the import below
    from tatok.pipeline.run import run_job
    from tatok.schemas.job import JobConfig
    from tests.support.fake_tokenizer import load_fake

    import ray  # isort: skip

    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    print("ready", flush=True)
    for line in sys.stdin:
        commits: list[float] = []

        def note(event: object, commits: list[float] = commits) -> None:
            if type(event).__name__ == "ShardCommitted":  # both trees have it, in modules of different names
                commits.append(time.monotonic())

        # Decoders of their own, as on GPUs: what was fixed is the way between processes.
        settings = {"source": source, "output": line.strip(), "resources": {"num_decoders": 2}}
        config = JobConfig.model_validate(settings)
        summary = run_job(config, load_tokenizer=load_fake if tokenizer == "fake" else None, on_event=note)
        assert summary.status == "complete", summary
        assert len(commits) == summary.num_shards, commits
        print(commits[-1] - commits[0], flush=True)


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
