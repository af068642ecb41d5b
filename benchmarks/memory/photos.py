"""Peak memory of a run over large photos, of all its processes together, against a stated bound.

    make bench-memory

Two runs of `tatok tokenize` with its defaults, each on a Ray of its own: over a few small photos, which gives what the
processes take by themselves, then over 1,000 photos of 24 Mpixel. Twice a second the proportional set sizes (PSS:
shared pages count once) of the driver and of all processes below it are added up. The bound on the second run is the
sum of

    the first run's peak
    decoders x (10 bytes a pixel + twice the encoded photo)
    shards at work x resources.max_bytes_in_flight

Pillow keeps an RGB pixel in 4 bytes, and holds the whole image and its centre square at once; the rest is resizing's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import ROOT
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.job import Resources
from tests.support.photos import jpeg, tar_bytes

BYTES_A_PIXEL = 10
NUM_DECODERS = 2
_SAMPLE_EVERY_S = 0.5
_DISTINCT = 4
_RAYS_OWN = ("gcs_server", "raylet", "dashboard", "log_monitor", "monitor.py", "ray::RuntimeEnvAgent", "ray::IDLE")
_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Photos:
    """`num` photos of one size, spread over `num_shards` tars; a handful are distinct."""

    num: int
    width: int
    height: int
    num_shards: int

    @property
    def num_pixels(self) -> int:
        """Of one photo."""
        return self.width * self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Megabytes at the moment when all processes together took most, and by kind at that moment."""

    total_mb: float
    by_kind_mb: Mapping[str, float]
    first_third_mb: float
    last_third_mb: float
    num_samples: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """What the bench measured; `peak.total_mb` is to stay within `bound_mb`."""

    photos: Photos
    encoded_mb: float
    alone: Peak
    peak: Peak
    bound_mb: float
    num_rows: int
    num_rejects: int
    num_findings: int

    @property
    def holds(self) -> bool:
        """Whether the run was whole and within the bound."""
        return self.peak.total_mb <= self.bound_mb and self.num_rows == self.photos.num and self.num_findings == 0


def photo(seed: int, width: int, height: int) -> bytes:
    """A JPEG with the bytes a pixel of a camera's: smooth shapes under some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def write_photos(folder: Path, photos: Photos) -> tuple[str, int]:
    """Write the tars: one file under many names. Returns their pattern, and the size of the largest photo."""
    folder.mkdir(parents=True)
    distinct = [photo(seed, photos.width, photos.height) for seed in range(_DISTINCT)]
    per_shard = photos.num // photos.num_shards
    first = folder / "photos-0000.tar"
    first.write_bytes(tar_bytes([(f"photo-{i:04}.jpg", distinct[i % _DISTINCT]) for i in range(per_shard)]))
    for number in range(1, photos.num_shards):
        os.link(first, folder / f"photos-{number:04}.tar")
    return f"{folder}/photos-{{0000..{photos.num_shards - 1:04}}}.tar", max(map(len, distinct))


def run_measured(source: str, output: Path, arguments: Sequence[str]) -> Peak:
    """Run `tatok tokenize` in a process of its own and watch its memory. Raises RuntimeError where it fails."""
    command = [
        sys.executable,
        "-c",
        "from tatok.jobs.cli import app; app()",
        "tokenize",
        source,
        str(output),
        *arguments,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    started = time.monotonic()
    samples: list[dict[str, float]] = []
    log = output.with_suffix(".log")
    with log.open("wb") as lines:
        driver = subprocess.Popen(command, env=environment, stdout=lines, stderr=subprocess.STDOUT)
        while driver.poll() is None:
            samples.append(memory_mb(driver.pid))
            time.sleep(_SAMPLE_EVERY_S)
    if driver.returncode:
        raise RuntimeError(f"the run ended with {driver.returncode}:\n{log.read_text()[-2000:]}")
    totals = [sum(sample.values()) for sample in samples]
    most = samples[totals.index(max(totals))]
    third = max(1, len(totals) // 3)
    return Peak(
        total_mb=round(max(totals), 1),
        by_kind_mb={kind: round(most[kind], 1) for kind in sorted(most)},
        first_third_mb=round(max(totals[:third]), 1),
        last_third_mb=round(max(totals[-third:]), 1),
        num_samples=len(samples),
        seconds=round(time.monotonic() - started, 1),
    )


def memory_mb(pid: int) -> dict[str, float]:
    """PSS of a process and of all below it, added up by kind: driver, tokenizer, decoder, Ray's own."""
    found: defaultdict[str, float] = defaultdict(float)
    for each, command in _tree(pid):
        try:
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue  # it has ended
        kilobytes = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        found["driver" if each == pid else _kind(command)] += kilobytes * 1024 / _MB
    return dict(found)


def _kind(command: str) -> str:
    if "TokenizerWorker" in command:
        return "tokenizer"
    if "DecodeWorker" in command:
        return "decoder"
    return "ray" if any(name in command for name in _RAYS_OWN) else "other"


def _tree(root: int) -> Iterator[tuple[int, str]]:
    pending = [root]
    while pending:
        pid = pending.pop()
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            for thread in Path(f"/proc/{pid}/task").iterdir():
                pending += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # it has ended
        yield pid, command


def measure(photos: Photos, work: Path, arguments: Sequence[str] = ()) -> MemoryReport:
    """Both runs, and the second dataset verified against its source."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    arguments = ["--num-decoders", str(NUM_DECODERS), *arguments]
    (work / "small").mkdir()
    for number in range(NUM_DECODERS):
        (work / "small" / f"{number}.tar").write_bytes(tar_bytes([(f"{i}.jpg", jpeg(i)) for i in range(40)]))
    alone = run_measured(str(work / "small"), work / "tokens-small", arguments)
    source, encoded_bytes = write_photos(work / "large", photos)
    peak = run_measured(source, work / "tokens", arguments)
    verification = verify_output(str(work / "tokens"), [source])
    in_decoders = NUM_DECODERS * (BYTES_A_PIXEL * photos.num_pixels + 2 * encoded_bytes)
    in_flight = NUM_DECODERS * Resources().max_bytes_in_flight
    return MemoryReport(
        photos=photos,
        encoded_mb=round(encoded_bytes / _MB, 2),
        alone=alone,
        peak=peak,
        bound_mb=round(alone.total_mb + (in_decoders + in_flight) / _MB, 1),
        num_rows=verification.num_rows,
        num_rejects=verification.num_rejects,
        num_findings=len(verification.findings),
    )


def as_document(report: MemoryReport) -> dict[str, Any]:
    """For a JSON file."""
    return asdict(report) | {"holds": report.holds}


def main() -> int:
    """Exit code 1 where the bound was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--width", type=int, default=6000)
    parser.add_argument("--height", type=int, default=4000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    photos = Photos(num=options.photos, width=options.width, height=options.height, num_shards=options.shards)
    with tempfile.TemporaryDirectory() as folder:
        report = measure(photos, options.work or Path(folder) / "memory")
    print(json.dumps(as_document(report), indent=1))
    if options.json:
        options.json.write_text(json.dumps(as_document(report), indent=1) + "\n")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
