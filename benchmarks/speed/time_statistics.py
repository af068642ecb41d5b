"""How long `tatok stats` and `tatok query` take, as a user sees it: whole commands, process start included.

python tests/support/synthetic_tokens.py /tmp/million --rows 1000000
python -m benchmarks.speed.time_statistics /tmp/million
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import typer

RICHEST = "SELECT * FROM tokens ORDER BY num_tokens DESC LIMIT 100"
COMMANDS = {
    "stats": (["stats"], 2.0),
    "stats --by label": (["stats", "--by", "label"], 2.0),
    "query: the 100 richest, every column": (["query", RICHEST, "--format", "json"], 3.0),
    "query: tokens by label": (
        ["query", "SELECT label, avg(num_tokens), quantile_cont(entropy_bits, 0.95) FROM tokens GROUP BY label"],
        3.0,
    ),
    "query: uses of each patch code": (
        [
            "query",
            "SELECT code, count(*) AS uses FROM (SELECT unnest(tokens[num_global_tokens + 1:]) AS code FROM tokens) "
            "GROUP BY code ORDER BY uses DESC LIMIT 10",
        ],
        None,
    ),
}


def main(data: str, repeats: int = 5, check: bool = False) -> None:
    """Print the fastest and the median run of each command; with --check, fail where the median misses its target."""
    print(f"{'command':40} {'fastest s':>9} {'median s':>9} {'target s':>9}   load {os.getloadavg()[0]:.2f}")
    missed = False
    for name, (arguments, target_s) in COMMANDS.items():
        command = [sys.executable, "-m", "tatok.jobs.cli", arguments[0], data, *arguments[1:]]
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
        seconds.sort()
        median_s = seconds[len(seconds) // 2]
        missed |= target_s is not None and median_s > target_s
        target = "" if target_s is None else f"{target_s:.1f}"
        print(f"{name:40} {seconds[0]:9.2f} {median_s:9.2f} {target:>9}")
    raise typer.Exit(int(check and missed))


if __name__ == "__main__":
    typer.run(main)
