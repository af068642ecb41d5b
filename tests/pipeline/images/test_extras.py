"""HEIC and JPEG XL by extras, TGA by its name, and what is said where the extra is not installed."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tatok.pipeline.images import extras
from tatok.pipeline.images.containers.jxl_header import jxl_size
from tatok.pipeline.images.decode import BY_NAME, FORMATS, decode_image
from tatok.pipeline.images.extras import EXTRAS, extra_of, installed_versions, registered
from tatok.pipeline.readers.formats import (
    HEAD_BYTES,
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    container_of,
    is_media,
    media_of,
    missing_extra,
)
from tatok.pipeline.tokenization import fingerprint as fingerprints
from tatok.pipeline.tokenization.fingerprint import decoding_identity, run_fingerprint
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import ConfigError, DecodeError
from tatok.schemas.identity import require_equal
from tatok.schemas.job import JobConfig, Limits
from tatok.schemas.preprocessing import Preprocessing
from tests.support.photos import encoded, saved
from tests.support.places import ROOT

SMALL = Preprocessing(image_size=32)
FORMAT_OF = {"heif": "HEIF", "jxl": "JXL"}
QUICKLY: dict[str, dict[str, object]] = {"heif": {"preset": "ultrafast"}, "jxl": {"effort": 1}}


def pixels_of(payload: bytes, extension: str = "", **limits: float) -> np.ndarray:
    [view] = decode_image(payload, SMALL, Limits(**limits), sample_id="s", extension=extension)  # type: ignore[arg-type]
    assert view.pixels.shape == (1, 3, 32, 32)
    return view.pixels


def reason_of(payload: bytes, extension: str = "", **limits: float) -> str:
    with pytest.raises(DecodeError) as caught:
        pixels_of(payload, extension, **limits)
    return caught.value.reason


def photo(width: int = 80, height: int = 60) -> Image.Image:
    with Image.open(io.BytesIO(encoded(5, width, height, "PNG"))) as image:
        return image.convert("RGB")


def distance(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


@pytest.fixture(params=EXTRAS)
def extra(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    pytest.importorskip(EXTRAS[name].module)
    assert registered(name)
    return name


@pytest.fixture
def heif() -> str:
    pytest.importorskip("pillow_heif")
    assert registered("heif")
    return "heif"


@pytest.fixture
def jxl() -> str:
    pytest.importorskip("pillow_jxl")
    assert registered("jxl")
    return "jxl"


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    for cached in (extras.registered, extras._is_importable):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (extras.registered, extras._is_importable):
        cached.cache_clear()


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_a_photo_comes_out_as_the_photo(extra: str) -> None:
    found = pixels_of(saved(photo(), FORMAT_OF[extra], quality=95))
    assert distance(found, pixels_of(saved(photo()))) <= 2


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_grey_and_alpha(extra: str, mode: str) -> None:
    image = photo().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    found = pixels_of(saved(image, FORMAT_OF[extra], quality=95))
    assert distance(found, pixels_of(saved(image))) <= 3


def test_cut_short_is_a_reject(extra: str) -> None:
    whole = saved(photo(200, 160), FORMAT_OF[extra], quality=95)
    for share in (0.1, 0.5, 0.9, 0.999):
        assert reason_of(whole[: int(len(whole) * share)]) in {"truncated", "corrupt", "not_an_image"}, share


def test_sizes_are_known_before_anything_is_decoded(extra: str) -> None:
    payload = saved(Image.new("L", (300, 40)), FORMAT_OF[extra])
    assert reason_of(payload, max_pixels=11_999) == "too_many_pixels"
    assert reason_of(payload, min_side=41) == "too_small"
    assert reason_of(payload, max_aspect_ratio=7.4) == "too_elongated"
    assert pixels_of(payload, max_pixels=12_000).max() == 0


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_large_picture_takes_no_memory(extra: str, tmp_path: Path) -> None:
    pytest.importorskip(EXTRAS[extra].module)
    assert registered(extra)
    (tmp_path / "large").write_bytes(saved(Image.new("L", (3000, 3000)), FORMAT_OF[extra], **QUICKLY[extra]))
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from tatok.pipeline.images.decode import decode_image
        from tatok.pipeline.images.extras import EXTRAS, registered
        from tatok.schemas.errors import DecodeError
        from tatok.schemas.job import Limits
        from tatok.schemas.preprocessing import Preprocessing

        payload = Path(sys.argv[1]).read_bytes()
        registered(sys.argv[2])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            list(decode_image(payload, Preprocessing(), Limits(max_pixels=1 << 20), sample_id="s"))
        except DecodeError as error:
            print(error.reason)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large"), extra],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    reason, grown_kib = result.stdout.split()
    assert reason == "too_many_pixels"
    assert int(grown_kib) < 6_000, "its pixels are 9 MB"


def turned(orientation: int = 6) -> Image.Image:
    """The photo as a camera held on its side stores it, with the EXIF that says so."""
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    stored.getexif()[0x0112] = orientation
    return stored


def test_heic_is_turned_upright_once(heif: str) -> None:
    payload = saved(turned(), "HEIF", quality=95)
    assert b"irot" in payload
    [view] = decode_image(payload, SMALL, Limits(), sample_id="s")
    assert (view.width, view.height) == (80, 60)
    assert distance(view.pixels, pixels_of(saved(photo()))) <= 2


def test_a_burst_is_its_primary_picture(heif: str) -> None:
    import pillow_heif

    burst = pillow_heif.HeifFile()
    for image in (Image.new("RGB", (80, 60), "red"), photo(), Image.new("RGB", (80, 60), "blue")):
        burst.add_from_pillow(image)
    buffer = io.BytesIO()
    burst.save(buffer, quality=95, primary_index=1)
    assert distance(pixels_of(buffer.getvalue()), pixels_of(saved(photo()))) <= 2


def test_avif_stays_pillows(heif: str) -> None:
    avif = saved(photo(), "AVIF")
    for brand in (b"avif", b"mif1"):
        payload = avif[:8] + brand + avif[12:]
        with Image.open(io.BytesIO(payload), formats=(*FORMATS, "HEIF")) as image:
            assert image.format == "AVIF"
        assert np.array_equal(pixels_of(payload), pixels_of(avif))


def test_jpeg_xl_is_turned_by_its_codestream_alone(jxl: str, tmp_path: Path) -> None:
    exif = turned().getexif().tobytes()
    upright = saved(photo(), "JXL", lossless=True, exif=exif)
    [view] = decode_image(upright, SMALL, Limits(), sample_id="s")
    assert (view.width, view.height) == (80, 60), "EXIF in a JPEG XL file repeats what was done already"
    assert np.array_equal(view.pixels, pixels_of(saved(photo())))
    (tmp_path / "turned.jpg").write_bytes(saved(turned(), "JPEG", quality=95, exif=exif))
    with Image.open(tmp_path / "turned.jpg") as image, pytest.warns(UserWarning, match="reconstruction"):
        of_jpeg = saved(image, "JXL")
    [view] = decode_image(of_jpeg, SMALL, Limits(), sample_id="s")
    assert (view.width, view.height) == (80, 60), "a JPEG that was packed losslessly is a JPEG again"
    assert distance(view.pixels, pixels_of(saved(photo()))) <= 2


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (256, 256), (640, 480), (1920, 1080), (1000, 3), (7, 900), (300, 240)]
)
@pytest.mark.parametrize("in_boxes", [False, True])
def test_the_size_of_a_jpeg_xl_picture(jxl: str, size: tuple[int, int], in_boxes: bool) -> None:
    payload = saved(Image.new("L", size), "JXL", use_container=in_boxes)
    assert jxl_size(payload) == size
    assert jxl_size(payload[:2]) is None
    assert jxl_size(b"\0" * 40) is None


# --- what stands beside them ----------------------------------------------------------------------------------------

EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "what", ["EXIF of noise", "EXIF whose start is nowhere", "XMP of noise", "a box that is cut", "a box of no kind"]
)
def test_what_stands_beside_a_heic_does_not_decide(heif: str, what: str) -> None:
    clean = saved(photo(), "HEIF", exif=EXIF, xmp=b"<x/>" * 50)
    damaged = {
        "EXIF of noise": clean.replace(b"II*\0\x08\0\0\0", b"????????"),
        "EXIF whose start is nowhere": clean.replace(b"\0\0\0\6Exif\0\0II", b"\xff\xff\xff\xffExif\0\0II"),
        "XMP of noise": clean.replace(b"<x/>" * 50, b"\xff\0<<" * 50),
        "a box that is cut": clean + b"\0\0\x09\0uuid" + b"?" * 40,
        "a box of no kind": clean + b"\0\0\0\2????",
    }[what]
    assert damaged != clean
    assert np.array_equal(pixels_of(damaged), pixels_of(clean))


@pytest.mark.parametrize("what", ["EXIF of noise", "EXIF that is cut", "a box that is cut", "a box of no length"])
def test_what_stands_beside_a_jpeg_xl_picture_does_not_decide(jxl: str, what: str) -> None:
    clean = saved(photo(), "JXL", use_container=True)
    exif = b"\0\0\0\x26Exif\0\0\0\0" + EXIF[6:] + b"\0" * 12
    damaged = {
        "EXIF of noise": clean[:32] + exif.replace(b"II*\0", b"????") + clean[32:],
        "EXIF that is cut": clean + exif[:20],
        "a box that is cut": clean + b"\0\0\x09\0xml <x/>",
        "a box of no length": clean + b"\0\0\0\2jumb",
    }[what]
    assert np.array_equal(pixels_of(damaged), pixels_of(clean))


# --- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"compression": "tga_rle"}])
@pytest.mark.parametrize("extension", [*BY_NAME, "TGA", "small.tga"])
def test_tga_by_its_name_alone(extension: str, options: dict[str, str]) -> None:
    payload = saved(photo(), "TGA", **options)
    assert np.array_equal(pixels_of(payload, extension), pixels_of(saved(photo())))
    for other in ("", "jpg", "tga.jpg", "txt"):
        assert reason_of(payload, other) == "not_an_image"
    assert reason_of(payload[: len(payload) // 2], extension) == "truncated"
    assert np.array_equal(pixels_of(payload[:-26], extension), pixels_of(payload, extension)), "without its footer"


def test_a_name_decides_over_nothing_that_bytes_tell() -> None:
    for image_format in ("JPEG", "PNG", "WEBP"):
        payload = saved(photo(), image_format)
        assert np.array_equal(pixels_of(payload, "tga"), pixels_of(payload))
    assert reason_of(b"I am a text file, whatever my name.\n" * 40, "tga") == "not_an_image"
    assert reason_of(saved(Image.new("L", (300, 300)), "TGA"), "tga", max_pixels=89_999) == "too_many_pixels"


# --- names and heads ------------------------------------------------------------------------------------------------


def test_extensions_of_extras_are_images_whatever_is_installed(nothing_installed: None) -> None:
    for name, each in EXTRAS.items():
        for extension in each.extensions:
            assert extension in IMAGE_EXTENSIONS
            assert extension not in VIDEO_EXTENSIONS
            assert is_media(f"a.{extension.upper()}")
            assert media_of(f"a.{extension}") == "image"
            assert missing_extra(extension) == name
    assert [missing_extra(extension) for extension in ("jpg", "avif", "mp4", "")] == [None] * 4
    assert installed_versions() == {}


def test_no_extra_is_missing_where_it_is_installed(extra: str) -> None:
    assert [missing_extra(extension) for extension in EXTRAS[extra].extensions] == [None] * len(
        EXTRAS[extra].extensions
    )
    assert EXTRAS[extra].package in installed_versions()


def test_processes_of_a_run_agree_on_plug_ins_and_datasets_do_not_depend_on_them(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JobConfig.model_validate({"source": "a", "output": "b"})
    spec = TokenizerSpec(identity={}, fingerprint="none", vocab_size=4096, patch_size=16, num_global=16)
    package = EXTRAS[extra].package
    with_it, fingerprint = decoding_identity(job), run_fingerprint(job, spec)
    assert with_it[package] == version(package)
    monkeypatch.setattr(fingerprints, "installed_versions", dict)
    without = decoding_identity(job)
    assert package not in without
    with pytest.raises(ConfigError, match=package):
        require_equal("decoder", with_it, without)
    assert run_fingerprint(job, spec) == fingerprint, "a dataset of JPEGs is resumed with and without"


BRANDS = ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1", "msf1", "miaf", "avif", "avis")


@pytest.mark.parametrize("brand", BRANDS)
def test_a_picture_in_mp4s_container_is_no_video(brand: str) -> None:
    head = b"\0\0\0\x18ftyp" + brand.encode()
    assert len(head) == HEAD_BYTES
    assert container_of(head) is None
    assert media_of("nameless", head) == "image"
    found = extra_of(head)
    assert (found.name if found else None) == (None if brand.startswith("avi") else "heif")
    assert container_of(b"\0\0\0\x18ftypisom") == "mov"


def test_what_is_missing_is_named(nothing_installed: None) -> None:
    heads = {
        "heif": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "jxl": b"\xff\x0a\xcb\x06\x00\x13\x88\x00",
    }
    for name, head in heads.items():
        with pytest.raises(DecodeError) as caught:
            pixels_of(head + b"?" * 400, EXTRAS[name].extensions[0])
        assert caught.value.reason == "needs_extra"
        assert f"pip install 'tatok[{name}]'" in caught.value.detail
    in_boxes = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
    assert reason_of(in_boxes) == "needs_extra"
    assert np.array_equal(pixels_of(saved(photo()), "heic"), pixels_of(saved(photo()))), "bytes say what they are"
    avif = saved(photo(), "AVIF")
    assert np.array_equal(pixels_of(avif[:8] + b"mif1" + avif[12:]), pixels_of(avif)), "Pillow reads it itself"
    assert reason_of(b"I am a text file.\n" * 40, "heic") == "not_an_image"
