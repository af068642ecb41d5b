"""Encoded photos and tars of them, small and different for each seed."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tatok.pipeline.images.decode import decode_image
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits
from tatok.schemas.preprocessing import Preprocessing

EXACT = Preprocessing(image_size=48)
Members = Sequence[tuple[str, bytes]]


def jpeg(seed: int, width: int = 80, height: int = 64, **options: object) -> bytes:
    """A small smooth JPEG that differs for each seed."""
    return encoded(seed, width, height, "JPEG", quality=90, **options)


def encoded(seed: int, width: int, height: int, image_format: str, **options: object) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, image_format, **options)
    return buffer.getvalue()


def endless_jpeg(side: int = 4000, num_scans: int = 20_000) -> bytes:
    """A valid progressive JPEG that decodes for minutes: its last scan, which changes nothing, comes many times."""
    data = saved(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * num_scans + data[end:]


def tar_bytes(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def photo_members(first: int, count: int) -> list[tuple[str, bytes]]:
    """`count` photos with captions, labels and metadata; photo i has width 64 + i % 40."""
    members = []
    for i in range(first, first + count):
        members += [
            (f"photo-{i:04}.jpg", jpeg(i, width=64 + i % 40)),
            (f"photo-{i:04}.txt", f" caption {i} \n".encode()),
            (f"photo-{i:04}.cls", str(i % 10).encode()),
            (f"photo-{i:04}.json", f'{{"number": {i}}}'.encode()),
        ]
    return members


def write_photo_shards(folder: Path, num_shards: int, photos_per_shard: int) -> str:
    """Write tars of good photos; returns the brace pattern that names them."""
    (folder / "source").mkdir(exist_ok=True)
    for shard in range(num_shards):
        data = tar_bytes(photo_members(shard * photos_per_shard, photos_per_shard))
        (folder / "source" / f"photos-{shard:04}.tar").write_bytes(data)
    return f"{folder}/source/photos-{{0000..{num_shards - 1:04}}}.tar"


def saved(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A valid grey PNG of side x side black pixels, built without holding them."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    compressor = zlib.compressobj(9)
    start = compressor.compress(bytes(side + 1)) + compressor.flush(zlib.Z_FULL_FLUSH)
    row = compressor.compress(bytes(side + 1)) + compressor.flush(zlib.Z_FULL_FLUSH)
    # After a full flush equal rows compress to equal bytes; the end is an empty last block and Adler-32 of the zeros.
    adler = (side * (side + 1) % 65521) << 16 | 1
    data = start + row * (side - 1) + b"\x03\x00" + struct.pack(">I", adler)
    assert side > 1000 or zlib.decompress(data) == bytes(side * (side + 1))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def write_flawed_shards(folder: Path, *, num_shards: int = 8, photos_a_shard: int = 12) -> str:
    """Shards of small photos; every third one has a broken sample or two. Returns the pattern that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_shards):
        members = list(photo_members(photos_a_shard * number, photos_a_shard))
        if number % 3 == 0:
            members.insert(8, (f"cut-{number}.jpg", jpeg(number)[:200]))
            members.append((f"text-{number}.png", b"no image"))
        if number % 3 == 1:
            members.append((f"tiny-{number}.png", encoded(number, 2, 2, "PNG")))
        (folder / f"photos-{number:04}.tar").write_bytes(tar_bytes(members))
    return f"{folder}/photos-{{0000..{num_shards - 1:04}}}.tar"


def photo(width: int = 120, height: int = 90) -> Image.Image:
    """One with texture, in RGB."""
    with Image.open(io.BytesIO(encoded(5, width, height, "PNG"))) as image:
        return image.convert("RGB")


def pixels_of(payload: bytes, preprocessing: Preprocessing = EXACT, **limits: int) -> np.ndarray:
    """The first view of an encoded image, uint8 [T, 3, H, W]."""
    return next(iter(decode_image(payload, preprocessing, Limits(**limits), sample_id="s"))).pixels  # type: ignore[arg-type]


def reason_of(payload: bytes, preprocessing: Preprocessing = EXACT, **limits: int) -> str:
    """Why an encoded image is refused."""
    with pytest.raises(DecodeError) as caught:
        pixels_of(payload, preprocessing, **limits)
    return caught.value.reason


def write_odd_images(folder: Path) -> list[Path]:
    """An image of each kind that takes more than decoding: turns, alpha, palettes, grey, CMYK, profiles, frames."""
    folder.mkdir(parents=True, exist_ok=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = photo().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    palette = photo().convert("P")
    deep = Image.fromarray(np.linspace(0, 65535, 90 * 120).astype(np.uint16).reshape(90, 120))
    images = {
        "plain.jpg": saved(photo(), "JPEG", quality=95),
        "turned.jpg": saved(photo(), "JPEG", quality=95, exif=turned),
        "clear.png": saved(clear),
        "grey-and-clear.png": saved(clear.convert("LA")),
        "palette.png": saved(palette),
        "palette-and-clear.gif": saved(palette, "GIF", transparency=palette.getpixel((60, 45))),
        "grey.jpg": saved(photo().convert("L"), "JPEG"),
        "deep-grey.png": saved(deep),
        "bits.png": saved(photo().convert("1")),
        "cmyk.jpg": saved(photo().convert("CMYK"), "JPEG"),
        "wrong-profile.jpg": saved(photo(), "JPEG", icc_profile=wide.tobytes()),
        "frames.gif": saved(photo(), "GIF", save_all=True, append_images=[photo(120, 90).rotate(90)]),
        "narrow.webp": saved(photo(160, 48), "WEBP", lossless=True),
        "small.png": saved(photo(20, 17)),
    }
    for name, payload in images.items():
        (folder / name).write_bytes(payload)
    return [folder / name for name in images]
