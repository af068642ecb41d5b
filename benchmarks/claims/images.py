"""The claims bench's images: any Parquet, folder or tars of images, as labelled WebDataset tars."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq

from tatok.schemas.errors import ConfigError, SourceError
from tatok.training.photos import IMAGE_EXTENSIONS, expand_sources

__all__ = ["Example", "as_tars"]

Example = tuple[str, bytes, str | None]
"""Extension, encoded image, and label if there is one."""

ROWS_A_TAR = 10_000


def _from_parquet(path: str) -> Iterator[Example]:
    file = pq.ParquetFile(path)
    columns = [name for name in ("image", "label") if name in file.schema_arrow.names]
    if "image" not in columns:
        raise SourceError(f"{path} has no column 'image' (of bytes, or of {{bytes, path}})")
    for batch in file.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            extension = "png" if data.startswith(b"\x89PNG") else "jpg"
            label = row.get("label")
            yield extension, data, None if label is None else str(label)


def _from_folder(folder: Path) -> Iterator[Example]:
    """Images under a folder; in subfolders, the first one's name is the label."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
    for path in paths:
        parts = path.relative_to(folder).parts
        yield path.suffix.lower().lstrip("."), path.read_bytes(), parts[0] if len(parts) > 1 else None


def as_tars(source: str, folder: Path, limit: int | None = None) -> list[str]:
    """Tars of the images behind `source`, the first `limit` of them; made in `folder` unless they are tars already.

    What was made is not made again. Raises ConfigError where there is nothing, or a limit on given tars.
    """
    if os.path.isdir(source):
        examples, origin = _from_folder(Path(source)), source
    else:
        files = expand_sources([source])
        if all(path.endswith(".tar") for path in files):
            if limit is not None:
                raise ConfigError(f"{source}: tars are used whole; give fewer of them")
            return files
        examples, origin = (example for path in files for example in _from_parquet(path)), ", ".join(files)
    done = folder / "done"
    if not done.exists():
        num = _write(examples, folder, limit)
        if not num:
            raise ConfigError(f"there is no image in {origin}")
        done.write_text(f"{num} images of {origin}\n")
    return sorted(map(str, folder.glob("*.tar")))


def _write(examples: Iterator[Example], folder: Path, limit: int | None) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    num = 0
    with ExitStack() as stack:
        for num, (extension, data, label) in enumerate(examples, 1):
            if (num - 1) % ROWS_A_TAR == 0:
                stack.close()
                tar = stack.enter_context(tarfile.open(folder / f"{(num - 1) // ROWS_A_TAR:05}.tar", "w"))
            _add(tar, f"{num - 1:08}.{extension}", data)
            if label is not None:
                _add(tar, f"{num - 1:08}.cls", label.encode())
            if num == limit:
                break
    return num


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
