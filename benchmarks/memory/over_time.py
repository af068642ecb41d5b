"""Memory of a run over 100,000 small photos, process by process, over its time: it is to stay where it is.

    make bench-memory-over-time

The tokenizer is the tests' near-free one, so that as much as possible goes through the pipeline in the least time.
Once a second the proportional set sizes (PSS: shared pages count once) of the driver and of what it has started are
added up by kind. What counts begins with the first committed shard and ends when the first actor does; its first
quarter is compared with its last.
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks import ROOT
from benchmarks.memory.photos import memory_mb
from tatok.pipeline.verify.dataset import verify_output
from tests.support.photos import jpeg, tar_bytes

KINDS = ("driver", "tokenizer", "decoder", "ray")  # without decoders there are only the others
_MOST_GROWTH = 1.1
_FEW_MB = 10.0  # which a small process may grow by all the same
_RUN = """
import sys
from tests.support.fake_tokenizer import load_fake
from tatok.pipeline.run import run_job
from tatok.schemas.job import JobConfig
job = {"source": [sys.argv[1]], "output": sys.argv[2], "preprocessing": {"image_size": int(sys.argv[3])},
       "resources": {"num_decoders": int(sys.argv[4])}}
summary = run_job(JobConfig.model_validate(job), load_tokenizer=load_fake)
sys.exit(summary.status != "complete")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarters:
    """Median megabytes of one kind of process in each quarter of the time."""

    first_mb: float
    second_mb: float
    third_mb: float
    last_mb: float

    @property
    def is_flat(self) -> bool:
        """Whether the last quarter takes no more than the first, but for a tenth or a few megabytes."""
        return self.last_mb <= max(_MOST_GROWTH * self.first_mb, self.first_mb + _FEW_MB)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTime:
    """What was measured; `by_kind` adds up the processes of a kind, and "all" is everything.

    With `num_decoders` 0 the tokenizers decode for themselves.
    """

    num_decoders: int
    num_photos: int
    side: int
    num_shards: int
    by_kind: Mapping[str, Quarters]
    num_samples: int
    seconds: float
    num_rows: int
    num_findings: int

    @property
    def is_flat(self) -> bool:
        """Whether every kind stayed where it was."""
        return all(quarters.is_flat for quarters in self.by_kind.values())


def quarters(values_mb: Sequence[float]) -> Quarters:
    """Of at least four values, in the order of time."""
    if len(values_mb) < 4:
        raise ValueError(f"{len(values_mb)} samples of memory: the run was too short to be divided; take more photos")
    bounds = [len(values_mb) * number // 4 for number in range(5)]
    first, second, third, last = (
        round(statistics.median(values_mb[start:stop]), 1) for start, stop in pairwise(bounds)
    )
    return Quarters(first_mb=first, second_mb=second, third_mb=third, last_mb=last)


def measure(
    work: Path, *, num_photos: int, side: int, num_shards: int, num_decoders: int, sample_every_s: float = 1.0
) -> OverTime:
    """Write the photos, tokenize them in a process of its own, watch it. Raises RuntimeError where it fails."""
    source, output = work / "photos", work / "tokens"
    workers = {"tokenizer", "decoder"} if num_decoders else {"tokenizer"}
    kinds = [kind for kind in KINDS if num_decoders or kind != "decoder"]
    source.mkdir(parents=True)
    first = source / "0000.tar"
    first.write_bytes(tar_bytes([(f"{i:06}.jpg", jpeg(i, side, side)) for i in range(num_photos // num_shards)]))
    for number in range(1, num_shards):
        os.link(first, source / f"{number:04}.tar")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    started = time.monotonic()
    samples: list[dict[str, float]] = []
    with (work / "log.txt").open("wb") as log:
        command = [sys.executable, "-c", _RUN, str(source), str(output), str(side), str(num_decoders)]
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while driver.poll() is None:
            sample = memory_mb(driver.pid)
            if workers <= sample.keys() and any(output.glob("data/*.parquet")):
                samples.append(sample)
            time.sleep(sample_every_s)
    if driver.returncode:
        raise RuntimeError(f"the run ended with {driver.returncode}:\n{(work / 'log.txt').read_text()[-2000:]}")
    verification = verify_output(str(output), [str(source)])
    # Actors are stopped one after the other at the end.
    at_work = [sum(sample[kind] for kind in workers) for sample in samples]
    whole = [sample for sample, mb in zip(samples, at_work, strict=True) if mb > 0.6 * at_work[len(at_work) // 2]]
    by_kind = {kind: quarters([sample.get(kind, 0.0) for sample in whole]) for kind in kinds}
    return OverTime(
        num_decoders=num_decoders,
        num_photos=num_photos,
        side=side,
        num_shards=num_shards,
        by_kind=by_kind | {"all": quarters([sum(sample.values()) for sample in whole])},
        num_samples=len(whole),
        seconds=round(time.monotonic() - started, 1),
        num_rows=verification.num_rows,
        num_findings=len(verification.findings),
    )


def main() -> int:
    """Exit code 1 where memory grew or the run was not whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    found = []
    for num_decoders in (0, 2):
        with tempfile.TemporaryDirectory() as folder:
            sizes = {"num_photos": options.photos, "side": options.side, "num_shards": options.shards}
            found.append(measure(Path(folder), **sizes, num_decoders=num_decoders))
    text = json.dumps([asdict(each) | {"is_flat": each.is_flat} for each in found], indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    is_right = [each.is_flat and each.num_rows == options.photos and each.num_findings == 0 for each in found]
    return 0 if all(is_right) else 1


if __name__ == "__main__":
    sys.exit(main())
