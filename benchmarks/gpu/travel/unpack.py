"""Unpack what calls of phase.sh brought home.

    python -m benchmarks.gpu.travel.unpack FOLDER [FOLDER ...] --checkpoint OUT
        --results docs/results/gpu-h100.json --training docs/results/gpu-training.jsonl

The last folder with pieces of a checkpoint gives the checkpoint, with the config.json (and its calibrated threshold)
of the last folder that has one; the last with a train.tgz gives the figures of training. A folder's gpu.json is told
as "bundled in 0.1.0" and gpu-new.json as "new"; with LABEL=FOLDER gpu.json is told as LABEL. Results lose what only
helps to find faults: log tails, long kernel names, paths.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tatok.model.checkpoint import load_checkpoint
from tatok.schemas.errors import TatokError

__all__ = ["DamagedError", "joined", "main", "trimmed", "unpack_checkpoint"]

PIECE = "checkpoint.tar."
SUMS = "checkpoint.sha256"
METRICS = "train/metrics.jsonl"
BUNDLED, NEW = "bundled in 0.1.0", "new"
KERNEL_CHARACTERS = 60
MESSAGE_LINES = 1
UNTOLD = ("log_tail", "took_s", "tools", "allow_tf32_override", "load_takes", "rows_that_differ", "bases")
ABSOLUTE_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.+-]+/)+")


class DamagedError(Exception):
    """What was brought home is not whole; the message names the file."""


def joined(folder: Path) -> bytes:
    """The pieces of the checkpoint's tar, in order.

    Raises DamagedError where one is missing, or differs from its sum in checkpoint.sha256.
    """
    found = {int(path.name.removeprefix(PIECE)): path for path in folder.glob(PIECE + "[0-9][0-9]")}
    sums: dict[str, str] = {}
    if (folder / SUMS).exists():
        for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            sums[name] = digest
    last = max([*found, *(int(name.removeprefix(PIECE)) for name in sums)], default=0)
    pieces = []
    for number in range(last + 1):
        name = f"{PIECE}{number:02}"
        if number not in found:
            raise DamagedError(f"{folder / name} is missing")
        pieces.append(found[number].read_bytes())
        if name in sums and hashlib.sha256(pieces[-1]).hexdigest() != sums[name]:
            raise DamagedError(f"{folder / name} is damaged: its SHA-256 is not that of {SUMS}")
        if (number < last and len(pieces[-1]) != len(pieces[0])) or len(pieces[-1]) > len(pieces[0]):
            raise DamagedError(f"{folder / name} is damaged: {len(pieces[-1])} bytes; the first has {len(pieces[0])}")
    return b"".join(pieces)


def _extracted(payload: bytes, folder: Path, source: Path) -> None:
    """The tar's files, none of which may lie elsewhere; an end that is cut off is an error, not the end."""
    try:
        with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
            tar.extractall(folder, filter="data")
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise DamagedError(f"{source}: {error}") from error
    if end > len(payload) or payload[end : end + 512].strip(b"\0") or len(payload) < end + 512:
        raise DamagedError(f"{source} ends too early: a piece after it is missing, or it is cut off")


def unpack_checkpoint(folder: Path, out: Path, config: Path | None = None) -> str:
    """Join, extract and load the checkpoint, then put it at `out`; returns the SHA-256 of its weights."""
    payload = joined(folder)
    last = max(folder.glob(PIECE + "[0-9][0-9]"))
    with tempfile.TemporaryDirectory() as temporary:
        _extracted(payload, Path(temporary), last)
        made = Path(temporary) / "checkpoint"
        if config is not None:
            documents = [json.loads((each).read_text(encoding="utf-8")) for each in (config, made / "config.json")]
            if documents[0]["model"] != documents[1]["model"]:
                raise DamagedError(f"{config} is of another model than the checkpoint")
            shutil.copyfile(config, made / "config.json")
        try:
            loaded = load_checkpoint(made)
        except (TatokError, OSError, ValueError, KeyError) as error:
            raise DamagedError(f"the checkpoint of {folder} cannot be loaded: {error}") from error
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(made.iterdir(), reverse=True):  # the weights first, as tatok writes them
            shutil.copyfile(file, out / file.name)
    return loaded.weights_sha256


def trimmed(value: Any, key: str = "") -> Any:
    """Without what `UNTOLD` names, with messages of a line, kernels of a few words, and files without their folders."""
    if isinstance(value, dict):
        if key == "longest_kernels_us":
            return _kernels(value)
        return {name: trimmed(each, name) for name, each in value.items() if name not in UNTOLD}
    if isinstance(value, list):
        return [trimmed(each) for each in value]
    if isinstance(value, str):
        lines = ABSOLUTE_PATH.sub("", value).splitlines()
        return "\n".join(lines[:MESSAGE_LINES])
    return value


def _kernels(times_us: dict[str, float]) -> dict[str, float]:
    """Names cut; those that are then equal are told apart by a number."""
    told: dict[str, float] = {}
    for name, us in times_us.items():
        short = name.removeprefix("void ").replace("at::native::", "").replace("(anonymous namespace)::", "")
        short = short[:KERNEL_CHARACTERS].rstrip()
        number = sum(each.split(" #")[0] == short for each in told) + 1
        told[short if number == 1 else f"{short} #{number}"] = us
    return told


def results_of(folders: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    """The folders' measurements by label; of a section that was measured twice, the later."""
    told: dict[str, Any] = {}
    for label, folder in folders:
        for name, file in ((label, folder / "gpu.json"), (NEW, folder / "gpu-new.json")):
            if file.exists():
                document = trimmed(json.loads(file.read_text(encoding="utf-8")))
                before = told.setdefault(name, {**document, "sections": {}})
                before["sections"] |= document["sections"]
    return told


def metrics_of(path: Path) -> str:
    """The lines of training's figures; each is checked to be JSON."""
    try:
        with tarfile.open(path) as tar:
            stream = tar.extractfile(METRICS)
            assert stream is not None
            text = stream.read().decode("utf-8")
        for line in text.splitlines():
            json.loads(line)
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise DamagedError(f"{path}: no figures of training in it: {error}") from error
    return text


def _labelled(text: str) -> tuple[str, Path]:
    label, sign, folder = text.rpartition("=")
    return (label if sign else BUNDLED), Path(folder)


def main() -> int:
    """Unpack; exit code 1 where something is damaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=_labelled, nargs="+", metavar="[LABEL=]FOLDER")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--training", type=Path)
    options = parser.parse_args()

    def last_with(pattern: str) -> Path | None:
        return next((folder for _, folder in reversed(options.folders) if any(folder.glob(pattern))), None)

    try:
        pieces = last_with("checkpoint.*")
        if options.checkpoint is not None and pieces is not None:
            configured = last_with("config.json")
            config = None if configured is None else configured / "config.json"
            print(f"{options.checkpoint}: weights {unpack_checkpoint(pieces, options.checkpoint, config)}")
        if options.results is not None:
            results = results_of(options.folders)
            options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            told = (f"{label} ({', '.join(document['sections'])})" for label, document in results.items())
            print(f"{options.results}: {'; '.join(told)}")
        trained = last_with("train.tgz")
        if options.training is not None and trained is not None:
            text = metrics_of(trained / "train.tgz")
            options.training.write_text(text, encoding="utf-8")
            print(f"{options.training}: {len(text.splitlines())} lines")
    except DamagedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
