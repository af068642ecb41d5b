"""What a new user waits for, beside an earlier revision: help, version, a plan, statistics, a loader's first batch.

    make bench-first-hour BEFORE=v0.2.0

Each is a process of its own, from its start to its end. Rounds take turns: this tree and the earlier one do the same
right after each other, the first of them now the one and now the other, and a ratio is of such a pair. Each tree reads
a dataset of the demo photos that it has written itself, because datasets may differ.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.layout import lay_out
from benchmarks.machine import python_and_cores

__all__ = ["Waited", "measure", "revision"]

PHOTOS = ROOT / "examples" / "photos"
_FIRST_BATCH = """
import sys
from tatok import Packing, TokenDataset
for batch in TokenDataset(sys.argv[1]).stream(Packing(tokens=512), epochs=1):
    break
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """Seconds of each round for one thing that users do; `before` is empty without an earlier revision."""

    what: str
    now: tuple[float, ...]
    before: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Now over before, of each pair: below 1 is quicker than before."""
        return tuple(now / before for now, before in zip(self.now, self.before, strict=False))


def revision(name: str, folder: Path) -> Path:
    """The files of a git revision of this project, in that folder; raises CalledProcessError where there is none."""
    packed = subprocess.run(["git", "archive", name], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def measure(rounds: int, trees: Mapping[str, Path], scratch: Path, *, num_files: int = 10_000) -> list[Waited]:
    """What each round took; `trees` are "now" and perhaps "before". A first round, which fills caches, is left out."""
    files = _many_files(scratch / "many", num_files)
    commands = {name: _commands(tree, scratch / name, files) for name, tree in trees.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for what in commands["now"]:
            for name in sorted(trees, reverse=bool(number % 2)):
                took = _seconds(commands[name][what], scratch / name / "layout")
                if number:
                    seconds.setdefault((what, name), []).append(took)
    return [
        Waited(what=what, now=tuple(seconds[what, "now"]), before=tuple(seconds.get((what, "before"), ())))
        for what in commands["now"]
    ]


def _many_files(folder: Path, num_files: int) -> Path:
    """So many names of photos, which a plan does not open, a hundred a folder."""
    for number in range(num_files):
        path = folder / f"{number // 100:04}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def _commands(tree: Path, folder: Path, files: Path) -> dict[str, Sequence[str]]:
    layout = lay_out(tree, folder / "layout")
    dataset = str(folder / "tokens")
    tatok = (sys.executable, "-P", "-m", "tatok")
    _seconds((*tatok, "tokenize", str(PHOTOS / "demo-{0000..0002}.tar"), dataset, "--image-size", "128"), layout)
    return {
        "tatok --help": (*tatok, "--help"),
        "tatok --version": (*tatok, "--version"),
        "tatok plan": (*tatok, "plan", str(files)),
        "tatok stats": (*tatok, "stats", dataset),
        "first batch": (sys.executable, "-P", "-c", _FIRST_BATCH, dataset),
    }


def _seconds(command: Sequence[str], layout: Path) -> float:
    environment = os.environ | {"PYTHONPATH": str(layout), "RAY_ADDRESS": "local"}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=layout, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return round(took, 3)


def table(found: Sequence[Waited]) -> str:
    """A line each: medians, and the median of the pairs' ratios with the lowest and the highest."""
    lines = [f"{'seconds':<16} {'before':>8} {'now':>8} {'ratio':>7}   of pairs"]
    for each in found:
        before = f"{statistics.median(each.before):.2f}" if each.before else "-"
        ratios = each.ratios
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else ""
        lines.append(f"{each.what:<16} {before:>8} {statistics.median(each.now):>8.2f} {ratio:>7}   {spread}".rstrip())
    return "\n".join(lines)


def main() -> int:
    """Print the table, and with --json write every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="REVISION", help="A git revision to compare with.")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--files", type=int, default=10_000, help="Files that are planned.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tatok-first-hour-") as folder:
        scratch = Path(folder)
        trees = {"now": ROOT}
        if options.before:
            trees["before"] = revision(options.before, scratch / "revision")
        found = measure(options.rounds, trees, scratch, num_files=options.files)
    print(table(found))
    if options.json:
        document = {
            "machine": python_and_cores(),
            "before": options.before,
            "num_files": options.files,
            "seconds": [asdict(each) for each in found],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
