"""Ratios of this checkout against those on record: `tatok bench` over the demo photos; warns, and never fails.

    make bench-quick            # compares
    make bench-quick RECORD=--record     # writes docs/results/bench-quick.json

Times differ from machine to machine; ratios of one run do so less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import ROOT

RECORD = ROOT / "docs" / "results" / "bench-quick.json"
TOLERANCE = 0.25
_NUM_SHARDS = 12
_WORSE_IF = {
    "share_of_speed_of_light": "lower",
    "filtering_share_of_encoding": "higher",
    "decoding_share_of_encoding": "higher",
}


def ratios_of(told: Mapping[str, Any]) -> dict[str, float]:
    """The ratios out of what `tatok bench --json` prints; without the share where that says that it means nothing."""
    rates = {stage["name"]: stage["items_per_s"] for stage in told["stages"]}
    share = {} if told["doubt"] else {"share_of_speed_of_light": told["share_of_speed_of_light"]}
    return share | {
        "filtering_share_of_encoding": told["filtering_share_of_encoding"],
        "decoding_share_of_encoding": round(rates["encode"] / rates["decode"], 3),
    }


def warnings_of(now: Mapping[str, float], recorded: Mapping[str, float]) -> Iterator[str]:
    """A line for each ratio that is worse than its record by more than the tolerance, or was not to be had."""
    for name, direction in _WORSE_IF.items():
        if name not in now:
            yield f"warning: there is no {name}: the machine was busy"
            continue
        change = now[name] / recorded[name] - 1
        if (change < -TOLERANCE) if direction == "lower" else (change > TOLERANCE):
            yield f"warning: {name} is {now[name]:.3f}; on record is {recorded[name]:.3f} ({change:+.0%})"


def measure() -> dict[str, float]:
    """One `tatok bench` over the demo photos, several times under other names."""
    photos = sorted((ROOT / "examples" / "photos").glob("demo-*.tar"))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_NUM_SHARDS):
            (Path(folder) / f"photos-{number:02}.tar").symlink_to(photos[number % len(photos)])
        command = [sys.executable, "-c", "from tatok.jobs.cli import app; app()", "bench", folder, "--json"]
        command += ["--set", "device=cpu", "--seconds", "2", "--run-seconds", "20"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
        told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return ratios_of(json.loads(told))


def main() -> int:
    """Print the ratios, and a warning for each that has become worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)} instead of comparing")
    options = parser.parse_args()
    now = measure()
    print(json.dumps(now, indent=1))
    if options.record and len(now) < len(_WORSE_IF):
        print("not recorded: a ratio is missing, because the machine was busy", file=sys.stderr)
        return 1
    if options.record:
        RECORD.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    for warning in warnings_of(now, json.loads(RECORD.read_text())):
        print(warning)
    return 0


if __name__ == "__main__":
    sys.exit(main())
