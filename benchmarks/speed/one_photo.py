"""One photo, from the command to the committed part: what the smallest job costs, and what of it is Ray's own start.

    make bench-one-photo

Each round runs `tatok tokenize photo.jpg OUTPUT` as a process of its own, into a new output, and beside it a process
that starts the same Ray with one actor that holds nothing. With `--before CHECKOUT` an earlier checkout takes its turns
in the same rounds. A run's seconds are those up to the part's last change, and those up to the end of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.layout import lay_out
from benchmarks.machine import python_and_cores

__all__ = ["Seconds", "first_photo", "measure"]

PHOTOS = ROOT / "examples" / "photos" / "demo-0000.tar"
_RAY_ALONE = """
import ray
ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
@ray.remote
class Actor:
    def ready(self):
        return True
actor = Actor.remote()
ray.get(actor.ready.remote())
print("ready", flush=True)
ray.kill(actor)
ray.shutdown()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """One process: from its start until its work was there (the part, the actor's answer), and until its end."""

    to_result: float
    to_end: float


def measure(rounds: int, trees: dict[str, Path], scratch: Path) -> dict[str, list[Seconds]]:
    """Name -> its rounds; `trees` are the checkouts, and "Ray alone" is measured beside them."""
    photo = first_photo(scratch)
    layouts = {name: lay_out(root, scratch / f"layout-{number}") for number, (name, root) in enumerate(trees.items())}
    found: dict[str, list[Seconds]] = {name: [] for name in (*trees, "Ray alone")}
    for number in range(rounds):
        found["Ray alone"].append(_ray_alone())
        names = list(trees)
        for name in names if number % 2 else reversed(names):
            output = scratch / f"out-{number}-{list(trees).index(name)}"
            found[name].append(_tokenize(photo, output, layouts[name]))
    return found


def first_photo(folder: Path) -> Path:
    """A photo of the examples, as a file of its own."""
    with tarfile.open(PHOTOS) as archive:
        member = next(each for each in archive if each.name.endswith(".jpg"))
        content = archive.extractfile(member)
        assert content is not None
        path = folder / "photo.jpg"
        path.write_bytes(content.read())
    return path


def _tokenize(photo: Path, output: Path, layout: Path) -> Seconds:
    environment = os.environ | {"PYTHONPATH": str(layout), "RAY_ADDRESS": "local"}
    command = [sys.executable, "-P", "-m", "tatok", "tokenize", str(photo), str(output)]
    began_at, began = time.time(), time.monotonic()
    done = subprocess.run(command, env=environment, cwd=layout, capture_output=True, text=True, check=False)
    to_end = time.monotonic() - began
    parts = list((output / "data").glob("part-*.parquet"))
    if done.returncode or len(parts) != 1:
        raise RuntimeError(f"{' '.join(command)} did not make one part: {done.stderr[-2000:]}")
    return Seconds(to_result=round(parts[0].stat().st_mtime - began_at, 2), to_end=round(to_end, 2))


def _ray_alone() -> Seconds:
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", _RAY_ALONE], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answered = process.stdout.readline()
        to_result = time.monotonic() - began
        process.wait()
    if not answered or process.returncode:
        raise RuntimeError(f"Ray did not start; its exit code is {process.returncode}")
    return Seconds(to_result=round(to_result, 2), to_end=round(time.monotonic() - began, 2))


def _text(name: str, rounds: Sequence[Seconds]) -> str:
    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} s ({min(values):.1f}-{max(values):.1f})"

    result, end = ([getattr(each, which) for each in rounds] for which in ("to_result", "to_end"))
    return f"{name}: {spread(result)} to its result, {spread(end)} to the end"


def main() -> int:
    """Print, and with --json write, every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="An earlier checkout.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trees = {"now": ROOT} | ({} if options.before is None else {"before": options.before})
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tatok-one-photo-") as scratch:
        found = measure(options.rounds, trees, Path(scratch))
    for name, rounds in found.items():
        print(_text(name, rounds))
    if options.json:
        document = {
            "machine": python_and_cores(),
            "load_average_before": round(load, 1),
            "seconds": {name: [asdict(each) for each in rounds] for name, rounds in found.items()},
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
