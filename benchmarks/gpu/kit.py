"""Measure tatok on one GPU in a few minutes: python3 -m benchmarks.gpu.kit --out DIR --seconds 270

Sections run one after another (index.py), each in a process of its own with a deadline, so that one that hangs or
crashes loses only itself, and of that only the measurement it was at. DIR/gpu.json has everything, a key a section,
and is complete after each; DIR/logs.txt is what they printed. DIR/running.json and DIR/running.log are those of the
section that runs. Card settings are never changed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu.index import REHEARSALS, SECTIONS, Spec, spec_of

RESERVE_S = 3.0  # for the last section's end and the table
LOG_TAIL_CHARACTERS = 3000
LINE_CHARACTERS = 150


def run_section(spec: Spec, out: Path, limit_s: float, arguments: Sequence[str]) -> dict[str, Any]:
    """What the section measured, and how its process ended."""
    partial, log = out / "running.json", out / "running.log"
    partial.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.section", spec.name]
    command += ["--out", str(partial), "--seconds", f"{limit_s:.1f}", *arguments]
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": "1"} if "--tiny" in arguments else {}),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        error = None
        try:
            code = process.wait(timeout=limit_s)
            if code:
                error = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            error = f"the deadline of {limit_s:.1f} s passed"
        finally:
            _end(process)
    result: dict[str, Any] = {"took_s": round(time.monotonic() - started, 2), "limit_s": round(limit_s, 1)}
    if error is not None:
        result |= {"error": error, "log_tail": _tail(log)}
    result |= _read(partial)
    with (out / "logs.txt").open("ab") as logs:
        logs.write(f"=== {spec.name}\n".encode() + log.read_bytes() + b"\n")
    for path in (partial, log):
        path.unlink(missing_ok=True)
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the section's process and its children, which are a process group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not end; continuing without it", flush=True)


def _tail(log: Path) -> str:
    return log.read_bytes().decode("utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]


def _read(partial: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(partial.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document


def table(document: Mapping[str, Any]) -> list[str]:
    """A line for each section, with its headlines under it and the measurements that failed."""
    lines = []
    for name, result in document["sections"].items():
        state = "skipped: " + result["skipped"] if "skipped" in result else result.get("error", "done")
        lines.append(f"{name:<11} {result.get('took_s', 0.0):6.1f} s  {state}")
        lines += [f"    {text}" for text in result.get("headlines", [])]
        for measured, value in result.get("measurements", {}).items():
            trouble = value.get("error") or value.get("skipped") if isinstance(value, dict) else None
            if trouble:
                first, *_ = str(trouble).splitlines() or [""]
                lines.append(f"    ! {measured}: {first}"[:LINE_CHARACTERS])
    return lines


def main() -> int:
    """Run the sections that fit the time; exit code 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=270.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: few images, few repetitions, small models")
    parser.add_argument("--photos", type=Path, action="append", default=[], help="a tar of JPEGs; the demo's otherwise")
    known = [spec.name for spec in (*SECTIONS, *REHEARSALS)]
    parser.add_argument("--only", nargs="+", choices=known, metavar="NAME", help=f"of {', '.join(known)}")
    options = parser.parse_args()
    ends_at = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "logs.txt").unlink(missing_ok=True)
    arguments = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    for path in options.photos or sorted((ROOT / "examples" / "photos").glob("demo-*.tar")):
        arguments += ["--photos", str(path.absolute())]
    document: dict[str, Any] = {"device": options.device, "tiny": options.tiny, "sections": {}}
    for spec in [spec_of(name) for name in options.only] if options.only else SECTIONS:
        remaining_s = ends_at - time.monotonic() - RESERVE_S
        if remaining_s < spec.least_s:
            result: dict[str, Any] = {"skipped": f"{remaining_s:.1f} s remained, it needs {spec.least_s:.1f}"}
        elif spec.needs_cuda and options.device != "cuda":
            result = {"skipped": "needs CUDA"}
        else:
            result = run_section(spec, options.out, min(spec.deadline_s, remaining_s), arguments)
        document["sections"][spec.name] = result
        beside = options.out / "gpu.json.tmp"
        beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, options.out / "gpu.json")
        print(f"[{options.seconds - (ends_at - time.monotonic()):5.1f} s] {spec.name}", flush=True)
    print("\n".join(table(document)), flush=True)
    return int(any("error" in result for result in document["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
