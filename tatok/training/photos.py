"""Photos for training and evaluation: tars, Parquet files or folders of encoded images -> square uint8 crops."""

from __future__ import annotations

import glob
import io
import itertools
import os
import random
import tarfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import braceexpand
import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset as wds
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.urls import filesystem_of, open_to_read

__all__ = [
    "IMAGE_EXTENSIONS",
    "SOURCE_EXTENSIONS",
    "EncodedPhoto",
    "RandomCrops",
    "centre_crops",
    "decoding",
    "encoded_photos",
    "expand_sources",
    "random_of",
    "shorter_side",
    "this_stream",
]

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
SOURCE_EXTENSIONS = ("tar", "parquet", *IMAGE_EXTENSIONS)
"""Of the files that a folder stands for."""


_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


class EncodedPhoto(NamedTuple):
    """A photo's bytes, its file, and its number in that."""

    data: bytes
    path: str
    number: int


_GIVEN = (EncodedPhoto(b"", "", 0), (0, 0, 0))  # in the place of a photo that is no longer held


def _extension(path: str) -> str:
    return path.rpartition(".")[2].lower()


def _files_of_folder(folder: str, extensions: Sequence[str]) -> list[str]:
    """Files of these kinds in a folder and below it, sorted, without hidden ones."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(parent, name) for name in names if not name.startswith(".") and _extension(name) in extensions
        ]
    return sorted(found)


def expand_sources(patterns: Sequence[str], extensions: Sequence[str] = SOURCE_EXTENSIONS) -> list[str]:
    """Files behind paths, folders, globs (of URLs, too) and brace patterns, sorted within a folder or glob.

    A local folder stands for the files of these `extensions` in it and below it.
    Raises ConfigError where a pattern matches nothing or names a local file that does not exist, SourceError where a
    store does not say what matches.
    """
    files: list[str] = []
    for pattern in patterns:
        found: list[str] = []
        for path in braceexpand.braceexpand(pattern):
            if os.path.isdir(path):
                found += _files_of_folder(path, extensions)
            elif glob.has_magic(path):
                found += _matching_urls(path) if "://" in path else sorted(glob.glob(path))
            elif "://" in path or os.path.exists(path):
                found.append(path)
            else:
                raise ConfigError(f"{path} does not exist (from {pattern!r}); check the path")
        if not found:
            if tuple(extensions) != SOURCE_EXTENSIONS:
                raise ConfigError(f"no file matches {pattern!r}; name files, or a folder of .{', .'.join(extensions)}")
            raise ConfigError(
                f"no file matches {pattern!r}; photos are WebDataset tars, Parquet files with images, or a folder of "
                f"{', '.join(IMAGE_EXTENSIONS)} files; videos are files"
            )
        files += found
    return files


def _matching_urls(pattern: str) -> list[str]:
    try:
        fs, inner = filesystem_of(pattern)
        return sorted(fs.unstrip_protocol(path) for path in fs.glob(inner))
    except Exception as error:  # every fsspec backend has exceptions of its own
        said = str(error) or type(error).__name__
        raise SourceError(f"cannot list {pattern}: {said}", remedy="check the URL and your permissions") from error


def encoded_photos(path: str) -> Generator[bytes, None, None]:
    """The encoded images of one file, in its order.

    A tar (members with an image's extension), a Parquet file (column `image`: bytes or {bytes, path}), or an image.
    """
    try:
        with open_to_read(path) as stream:
            if _extension(path) in IMAGE_EXTENSIONS:
                yield stream.read()
            elif path.endswith(".parquet"):
                table = pq.ParquetFile(stream)
                if "image" not in table.schema_arrow.names:
                    names = ", ".join(table.schema_arrow.names)
                    raise SourceError(
                        f"{path} has no column `image` (bytes, or a struct with `bytes`); it has {names}",
                        is_permanent=True,
                    )
                for batch in table.iter_batches(batch_size=256, columns=["image"]):
                    for value in batch.column(0):
                        cell = value.as_py()
                        yield (cell.get("bytes") if isinstance(cell, dict) else cell) or b""
            else:
                for member in wds.tariterators.tar_file_iterator(stream):
                    if _extension(member["fname"]) in IMAGE_EXTENSIONS:
                        yield member["data"]
    except SourceError:
        raise
    except tarfile.TarError as error:
        said = f"as a tar it is damaged or cut off ({error})"
        if not path.lower().endswith(_TARS):
            said = f"it is no tar, no .parquet file and no image of .{', .'.join(IMAGE_EXTENSIONS)}"
        raise SourceError(f"cannot read photos from {path}: {said}", is_permanent=True) from error
    except Exception as error:  # every fsspec backend has exceptions of its own
        said = str(error) or type(error).__name__
        raise SourceError(f"cannot read photos from {path}: {said}") from error


@contextmanager
def decoding(path: str, number: int) -> Iterator[None]:
    """Raise what decoding the photo of this number in a file raises as a SourceError that names it."""
    try:
        yield
    except Exception as error:  # Pillow's plugins raise whatever they come upon
        said = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            said = "these bytes are no image that Pillow knows"
        raise SourceError(
            f"photo {number} of {path} cannot be decoded: {said}; take it out", is_permanent=True
        ) from error


def _square(payload: bytes, image_size: int, side: float, left: float, top: float) -> Image.Image:
    """The square at (left, top), fractions of the free room, whose side is a fraction of the shorter side."""
    with Image.open(io.BytesIO(payload)) as encoded:
        image = encoded.convert("RGB")
        length = max(1.0, min(image.size) * side)
        x, y = (image.width - length) * left, (image.height - length) * top
        box = (x, y, x + length, y + length)
        return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def centre_crops(paths: Sequence[str], image_size: int, limit: int | None = None) -> Iterator[Tensor]:
    """Centre crops, uint8 [3, S, S], of all photos in file order (the first `limit`).

    Raises SourceError, naming the file and the photo's number in it, where a photo cannot be decoded.
    """
    remaining = limit
    for path in paths:
        for number, payload in enumerate(encoded_photos(path)):
            if remaining == 0:
                return
            with decoding(path, number):
                crop = _square(payload, image_size, 1.0, 0.5, 0.5)
            yield _pixels(crop)
            remaining = None if remaining is None else remaining - 1


def shorter_side(paths: Sequence[str]) -> int:
    """Pixels of the shorter side of the first photo; raises SourceError where there is none, or it is no image."""
    for path in paths:
        for payload in encoded_photos(path):
            try:
                with Image.open(io.BytesIO(payload)) as image:
                    return min(image.size)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise SourceError(f"the first photo of {path} cannot be decoded: {error}") from error
    raise SourceError(f"no image in {', '.join(paths)}")


def random_of(*what: object) -> random.Random:
    """The random numbers of one thing among all that a run draws for, such as a crop: whoever asks gets the same."""
    return random.Random(" ".join(map(str, what)))


def this_stream() -> tuple[int, int]:
    """The number of this data loader's worker, and how many there are; 0 of 1 where there is no such worker."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


class _FewPhotos:
    """The encoded images of files, kept after the first reading as long as all of them are `most` at most.

    A handful of photos would else be read dozens of times for the first block alone.
    """

    def __init__(self, most: int) -> None:
        self._room = most
        self._known: dict[str, list[bytes]] = {}

    def of(self, path: str) -> Iterator[bytes]:
        """Those of one file, in its order."""
        if path in self._known:
            yield from self._known[path]
            return
        found: list[bytes] = []
        for payload in encoded_photos(path):
            self._room -= 1
            if self._room >= 0:
                found.append(payload)
            else:
                found.clear()
                self._known.clear()
            yield payload
        if self._room >= 0:
            self._known[path] = found


class RandomCrops(IterableDataset[Tensor]):
    """An endless stream of random crops and mirror images, uint8 [3, S, S].

    Files are visited in a new order each pass, and photos are mixed within blocks of `shuffle_buffer` encoded images,
    which may span files and passes; where a block has room for all photos, each file is read once. A crop's side is
    drawn from `smallest_crop` .. 1 of the photo's shorter side.
    The same (seed, number of workers) gives the same stream; each `rank` of a run on several processes has its own.

    `placed` resumes a stream at a place that it reported: (block, photos of it that were given, then where the block
    begins: pass, file in the pass's order, photo in the file). It reads at most two blocks to be there.
    """

    START: tuple[int, ...] = (0, 0, 0, 0, 0)

    def __init__(
        self,
        paths: Sequence[str],
        image_size: int,
        seed: int,
        *,
        smallest_crop: float = 0.7,
        shuffle_buffer: int = 1000,
        rank: int = 0,
    ) -> None:
        self.paths = list(paths)
        self.image_size = image_size
        self.smallest_crop = smallest_crop
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.rank = rank

    def stream_name(self, stream: int, num_streams: int) -> str:
        """What the random numbers of one worker's stream on this rank are drawn by."""
        return f"{self.seed} rank {self.rank} stream {stream} of {num_streams}"

    def _photos(self, name: str, place: tuple[int, int, int]) -> Iterator[tuple[EncodedPhoto, tuple[int, int, int]]]:
        """Photos without end from a place on, each with its own place."""
        first_pass, first_file, first_photo = place
        few = _FewPhotos(self.shuffle_buffer)
        for number in itertools.count(first_pass):
            is_whole, num_seen = not (first_file or first_photo), 0
            order = random_of(name, "pass", number).sample(self.paths, len(self.paths))
            for file in range(first_file, len(order)):
                for photo, payload in enumerate(few.of(order[file])):
                    num_seen += 1
                    if photo >= first_photo:
                        yield EncodedPhoto(payload, order[file], photo), (number, file, photo)
                first_photo = 0
            first_file = 0
            if is_whole and not num_seen:
                raise SourceError(f"no image in {', '.join(self.paths)}")

    def payloads(self, name: str, place: Sequence[int]) -> Iterator[tuple[EncodedPhoto, tuple[int, ...]]]:
        """Encoded photos without end, mixed, each with the place of the stream after it."""
        number, num_given, *begin = place
        source = self._photos(name, (begin[0], begin[1], begin[2]))
        block = list(itertools.islice(source, self.shuffle_buffer))
        while True:
            begins, order = block[0][1], list(range(len(block)))
            random_of(name, "block", number).shuffle(order)
            following = []
            for given, index in enumerate(order, 1):
                photo, block[index] = block[index][0], _GIVEN
                if given > num_given:
                    yield photo, (number, given, *begins)
                following.append(next(source))
            block, number, num_given = following, number + 1, 0

    def placed(self, stream: int, num_streams: int, place: Sequence[int]) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Crops of one worker's stream from a place on, each with the place after it."""
        name = self.stream_name(stream, num_streams)
        for photo, after in self.payloads(name, place):
            rng = random_of(name, "crop", *after[:2])
            square = rng.uniform(self.smallest_crop, 1), rng.random(), rng.random()
            with decoding(photo.path, photo.number):
                image = _square(photo.data, self.image_size, *square)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            yield _pixels(image), after

    def __iter__(self) -> Iterator[Tensor]:
        return (crop for crop, _ in self.placed(*this_stream(), self.START))
