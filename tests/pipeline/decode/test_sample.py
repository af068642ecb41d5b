from __future__ import annotations

import io
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tatok.pipeline.decode.sample import decode_sample
from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.records import Clip, Crop, Reject, Sample
from tests.support.photos import encoded, jpeg, png_bomb, png_chunk, saved
from tests.support.places import ROOT

SMALL = Preprocessing(image_size=32)
LIMITS = Limits()


def decode(
    payload: bytes,
    preprocessing: Preprocessing = SMALL,
    *,
    limits: Limits = LIMITS,
    attachments: Mapping[str, bytes] | None = None,
    extension: str = "jpg",
) -> Clip | Reject:
    sample = Sample(
        key="k", uri="u", index=7, media="image", extension=extension, payload=payload, attachments=attachments or {}
    )
    [result] = decode_sample(sample, preprocessing, limits)
    return result


def clip_of(payload: bytes, preprocessing: Preprocessing = SMALL, **options: object) -> Clip:
    clip = decode(payload, preprocessing, **options)  # type: ignore[arg-type]
    assert isinstance(clip, Clip), clip
    return clip


def reason_of(payload: bytes, **options: object) -> str:
    reject = decode(payload, **options)  # type: ignore[arg-type]
    assert isinstance(reject, Reject), reject
    assert (reject.key, reject.uri, reject.index, reject.stage) == ("k", "u", 7, "decode")
    assert reject.detail
    return reject.reason


def test_pixels_are_the_centred_square() -> None:
    clip = clip_of(jpeg(0, width=100, height=60))
    assert clip.pixels.shape == (1, 3, 32, 32)
    assert clip.pixels.dtype == np.uint8
    assert clip.pixels.flags.c_contiguous
    assert (clip.width, clip.height) == (100, 60)
    assert clip.crop == Crop(left=20, top=0, width=60, height=60)
    with Image.open(io.BytesIO(jpeg(0, width=100, height=60))) as image:
        expected = image.crop((20, 0, 80, 60)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(clip.pixels[0].transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_formats(image_format: str) -> None:
    reference = clip_of(encoded(3, 48, 48, "PNG")).pixels.astype(int)
    difference = np.abs(clip_of(encoded(3, 48, 48, image_format)).pixels.astype(int) - reference)
    assert difference.mean() < 16


def test_the_extension_decides_only_where_bytes_cannot() -> None:
    tga = saved(Image.new("RGB", (48, 48), (10, 200, 30)), "TGA")
    assert np.array_equal(clip_of(tga, extension="tga").pixels[0, :, 5, 5], (10, 200, 30))
    assert reason_of(tga) == reason_of(tga, extension="png") == "not_an_image"
    assert np.array_equal(clip_of(jpeg(0), extension="tga").pixels, clip_of(jpeg(0)).pixels)


def test_what_stands_beside_the_pixels_is_in_the_hash_alone() -> None:
    plain = saved(Image.new("RGB", (48, 48), (10, 200, 30)))
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_400_000)))
    told = clip_of(plain[:33] + text + plain[33:])
    assert np.array_equal(told.pixels, clip_of(plain).pixels)
    assert told.sha256 != clip_of(plain).sha256, "it is that of the bytes as they came"


def test_resample_filter_matters() -> None:
    pixels = {
        name: clip_of(jpeg(0, 200, 200), Preprocessing(image_size=32, resample=name)).pixels.tobytes()
        for name in ("bicubic", "bilinear", "lanczos")
    }
    assert len(set(pixels.values())) == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = Image.fromarray(np.arange(40 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 64, 3))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if undo is None else upright.transpose(undo)
    clip = clip_of(saved(stored, exif=exif))
    assert (clip.width, clip.height) == (64, 40)
    assert clip.crop == Crop(left=12, top=0, width=40, height=40)
    assert np.array_equal(clip.pixels, clip_of(saved(upright)).pixels)


def test_transparency_shows_the_background() -> None:
    red = Preprocessing(image_size=32, background=(255, 0, 0))
    clear = Image.new("RGBA", (40, 40), (0, 0, 255, 0))
    assert np.array_equal(clip_of(saved(clear), red).pixels[0, :, 5, 5], (255, 0, 0))
    half = Image.new("LA", (40, 40), (0, 128))
    assert abs(int(clip_of(saved(half), red).pixels[0, 0, 5, 5]) - 127) <= 1
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    assert np.array_equal(clip_of(saved(palette, transparency=1), red).pixels[0, :, 5, 5], (255, 0, 0))
    assert np.array_equal(clip_of(saved(palette), red).pixels[0, :, 5, 5], (0, 255, 0))


def test_grey_cmyk_and_sixteen_bits() -> None:
    deep = Image.fromarray(np.full((40, 40), 0x8080, dtype=np.uint16))
    assert np.all(clip_of(saved(deep)).pixels == 0x80)
    assert np.all(clip_of(saved(deep, "TIFF")).pixels == 0x80)
    assert np.all(clip_of(saved(Image.new("L", (40, 40), 77))).pixels == 77)
    assert np.all(clip_of(saved(Image.new("1", (40, 40), 1))).pixels == 255)
    cyan = clip_of(saved(Image.new("CMYK", (40, 40), (255, 0, 0, 0)), "TIFF")).pixels[0, :, 5, 5]
    assert np.array_equal(cyan, (0, 255, 255))


def test_attachments() -> None:
    attachments = {"txt": "\ufeff a cat \n".encode(), "cls": b"7\n", "json": b'{"a": 1}'}
    clip = clip_of(jpeg(0), attachments=attachments)
    assert (clip.caption, clip.label, clip.metadata) == ("a cat", "7", '{"a": 1}')
    bare = clip_of(jpeg(0))
    assert (bare.caption, bare.label, bare.metadata) == (None, None, None)
    assert bare.sha256 == clip.sha256
    assert clip_of(jpeg(0), attachments={"txt": b"caf\xe9"}).caption == "caf\ufffd"


@pytest.mark.parametrize("text", ["{not json", "[NaN]", "[" * 100_000, ""])
def test_metadata_always_parses(text: str) -> None:
    import json

    metadata = clip_of(jpeg(0), attachments={"json": text.encode()}).metadata
    assert metadata is not None
    assert json.loads(metadata) == text


def test_hostile_images_are_rejects() -> None:
    good = jpeg(0, 200, 200)
    assert reason_of(b"") == "empty"
    assert reason_of(b"I am a text file.\n" * 100) == "not_an_image"
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n") == "not_an_image"
    assert reason_of(good[: len(good) // 2]) == "truncated"
    assert reason_of(good[:300] + b"\xff\xd8\xff\xd9" * 50) in {"truncated", "corrupt", "not_an_image"}
    png = encoded(0, 64, 64, "PNG")
    assert reason_of(png[: len(png) // 2]) == "truncated"
    assert reason_of(png[:100] + bytes(50) + png[150:]) == "corrupt"
    assert reason_of(saved(Image.new("RGB", (1, 1)))) == "too_small"
    assert reason_of(saved(Image.new("RGB", (5000, 10)))) == "too_small"
    assert reason_of(saved(Image.new("F", (40, 40)), "TIFF")) == "unsupported_mode"


@pytest.mark.parametrize("side", [101, 300])
def test_more_pixels_than_allowed(side: int) -> None:
    # Pillow warns above its limit and raises above twice as many; both are the same reject here.
    assert reason_of(saved(Image.new("L", (side, side))), limits=Limits(max_pixels=10_000)) == "too_many_pixels"
    assert Image.MAX_IMAGE_PIXELS == 89_478_485, "Pillow's own limit is put back"


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "out_of_memory"), (AttributeError("plug-in bug"), "decoder_error")]
)
def test_whatever_a_plugin_raises_is_a_reject(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert reason_of(b"x") == reason


def test_bomb_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_bomb(30_000))
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from tatok.pipeline.decode.sample import decode_sample
        from tatok.schemas.job import Limits, Preprocessing
        from tatok.schemas.records import Sample

        payload = Path(sys.argv[1]).read_bytes()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sample = Sample(key="k", uri="u", index=0, media="image", extension="png", payload=payload)
        [reject] = decode_sample(sample, Preprocessing(), Limits())
        print(reject.reason)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bomb.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    reason, grown_kib = result.stdout.split()
    assert reason == "too_many_pixels"
    assert int(grown_kib) < 50_000
