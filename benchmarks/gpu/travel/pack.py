"""Pack training photos for a machine without a network: WebDataset tars of WebP, small enough to be carried.

    python -m benchmarks.gpu.travel.pack OUTPUT.tar TAR [TAR ...] [--quality 75] [--longest 352]
        [--validation OTHER.tar]

Photos keep their size up to `--longest` pixels of the longer side's centre; one in fifty goes to `--validation` and is
never trained on. Which one depends on the photo's name alone, so packing again gives the same split.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from tatok.training.photos import IMAGE_EXTENSIONS

__all__ = ["add", "is_kept_out", "packed", "shrunk"]

VALIDATION_SHARE = 50
QUALITY, LONGEST, SHORTEST = 75, 352, 272
AHEAD = 64  # photos that are under way


def members(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """(unique name, encoded photo) of all tars, in order."""
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                stem, _, extension = member.name.rpartition(".")
                stream = tar.extractfile(member)
                if extension.lower() in IMAGE_EXTENSIONS and stream is not None:
                    yield f"{path.stem}-{Path(stem).name}", stream.read()


def shrunk(
    name: str, payload: bytes, quality: int = QUALITY, longest: int = LONGEST, shortest: int = SHORTEST
) -> tuple[str, bytes]:
    """The photo as WebP: at most `shortest` pixels on its shorter side, the centre of its longer side."""
    with Image.open(io.BytesIO(payload)) as encoded:
        image = encoded.convert("RGB")
    scale = min(1.0, shortest / min(image.size))
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    buffer = io.BytesIO()
    image.crop((left, top, left + width, top + height)).save(buffer, "WEBP", quality=quality, method=4)
    return name, buffer.getvalue()


def packed(
    tars: Sequence[Path],
    *,
    quality: int = QUALITY,
    longest: int = LONGEST,
    shortest: int = SHORTEST,
    processes: int = 2,
) -> Iterator[tuple[str, bytes]]:
    """(name, WebP) of all photos, in order; few are read ahead, so that a reader may stop early."""
    with ProcessPoolExecutor(processes) as pool:
        pending: deque[Future[tuple[str, bytes]]] = deque()
        for name, payload in members(tars):
            pending.append(pool.submit(shrunk, name, payload, quality, longest, shortest))
            if len(pending) == AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def is_kept_out(name: str) -> bool:
    """Whether the photo is for validation."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALIDATION_SHARE == 0


def add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    """Append a file, without a date or an owner."""
    member = tarfile.TarInfo(name)
    member.size = len(payload)
    tar.addfile(member, io.BytesIO(payload))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("tars", type=Path, nargs="+")
    parser.add_argument("--quality", type=int, default=QUALITY)
    parser.add_argument("--longest", type=int, default=LONGEST)
    parser.add_argument("--shortest", type=int, default=SHORTEST)
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    counts = {False: 0, True: 0}
    with ExitStack() as stack:
        paths = {False: options.output} | ({} if options.validation is None else {True: options.validation})
        outputs = {
            kept_out: stack.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))
            for kept_out, path in paths.items()
        }
        for name, payload in packed(
            options.tars,
            quality=options.quality,
            longest=options.longest,
            shortest=options.shortest,
            processes=options.processes,
        ):
            kept_out = True in outputs and is_kept_out(name)
            add(outputs[kept_out], f"{name}.webp", payload)
            counts[kept_out] += 1
    mib = options.output.stat().st_size / 2**20
    print(f"{options.output}: {counts[False]} photos, {mib:.1f} MiB; kept out: {counts[True]}")


if __name__ == "__main__":
    main()
