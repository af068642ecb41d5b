"""Every format, in every way that photos are stored, becomes the same photo (docs/reference/image-formats.md)."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.images import simplejpeg
from tatok.pipeline.images.decode import BY_NAME, FORMATS, View, decode_image
from tatok.pipeline.images.extras import EXTRAS
from tatok.pipeline.images.simplejpeg import plain_size, resized
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits
from tatok.schemas.preprocessing import Preprocessing
from tests.support.photos import encoded, tar_bytes
from tests.support.places import ROOT, TESTS
from tests.support.real_data import write_real_data

SMALL = Preprocessing(image_size=32)
EXACT = {"PNG", "TIFF", "BMP", "DIB", "PPM", "ICO", "PCX", "SGI", "QOI", "DDS", "PSD"}
WRITTEN_BY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "AVIF": {"quality": 95}}


def view_of(payload: bytes, preprocessing: Preprocessing = SMALL, **limits: float) -> View:
    [view] = decode_image(payload, preprocessing, Limits(**limits), sample_id="s")  # type: ignore[arg-type]
    return view


def reason_of(payload: bytes, preprocessing: Preprocessing = SMALL, **limits: float) -> str:
    with pytest.raises(DecodeError) as caught:
        view_of(payload, preprocessing, **limits)
    return caught.value.reason


def saved(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photo(width: int = 64, height: int = 48) -> Image.Image:
    coarse = np.random.default_rng(5).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def psd(image: Image.Image) -> bytes:
    """The smallest PSD that Pillow reads: header, three empty blocks, raw planes."""
    header = b"8BPS\0\1" + bytes(6) + (3).to_bytes(2, "big")
    header += image.height.to_bytes(4, "big") + image.width.to_bytes(4, "big") + b"\0\x08\0\x03"
    return header + bytes(12) + b"\0\0" + b"".join(plane.tobytes() for plane in image.split())


def stored(image: Image.Image, image_format: str) -> bytes:
    if image_format == "PSD":
        return psd(image)
    options = {"sizes": [image.size]} if image_format == "ICO" else WRITTEN_BY.get(image_format, {})
    return saved(image, image_format, **options)


def mean_difference(left: View, right: View) -> float:
    return float(np.abs(left.pixels.astype(int) - right.pixels.astype(int)).mean())


@pytest.mark.parametrize("image_format", FORMATS)
def test_formats(image_format: str) -> None:
    expected, found = view_of(saved(photo())), view_of(stored(photo(), image_format))
    assert (found.width, found.height, found.crop) == (64, 48, expected.crop)
    assert mean_difference(found, expected) <= (0 if image_format in EXACT else 16 if image_format == "GIF" else 4)


@pytest.mark.parametrize("image_format", FORMATS)
def test_formats_cut_short(image_format: str) -> None:
    whole = stored(photo(200, 160), image_format)
    assert reason_of(whole[: len(whole) // 2]) in {"truncated", "corrupt", "not_an_image"}


def test_two_pictures_in_one_jpeg() -> None:
    both = saved(photo(), "MPO", save_all=True, append_images=[photo(32, 24)], quality=95)
    assert mean_difference(view_of(both), view_of(saved(photo()))) <= 4


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation(image_format: str) -> None:
    others = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    moving = saved(photo(), image_format, save_all=True, append_images=others)
    assert mean_difference(view_of(moving), view_of(saved(photo()))) <= (16 if image_format == "GIF" else 8)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_as_a_clip(image_format: str) -> None:
    clips = Preprocessing(image_size=32, animation="clip", max_frames=3, flips="both")
    colours = ["red", "lime", "blue", "white"]
    first, *others = [Image.new("RGB", (64, 48), colour) for colour in colours]
    moving = saved(first, image_format, save_all=True, append_images=others, duration=[100, 200, 50, 100])
    plain, mirrored = decode_image(moving, clips, Limits(), sample_id="s")
    assert plain.frame_pts_s == pytest.approx((0.0, 0.1, 0.3), abs=0.011)
    assert plain.pixels.shape == (3, 3, 32, 32), "the fourth frame is one too many"
    assert np.abs(plain.pixels[:, :, 9, 9].astype(int) - [[255, 0, 0], [0, 255, 0], [0, 0, 255]]).max() <= 8
    assert np.array_equal(mirrored.pixels, plain.pixels[..., ::-1])
    still = saved(photo(), image_format)
    [alone, _] = decode_image(still, clips, Limits(), sample_id="s")
    assert alone.frame_pts_s is None
    assert np.array_equal(alone.pixels, view_of(still).pixels)
    with pytest.raises(DecodeError):
        list(decode_image(moving[: len(moving) // 2], clips, Limits(), sample_id="s"))


def test_a_clip_of_an_animation_becomes_a_row(tmp_path: Path) -> None:
    others = [photo().rotate(10 * i) for i in (1, 2, 3)]
    moving = saved(photo(), "GIF", save_all=True, append_images=others, duration=40)
    (tmp_path / "moving.tar").write_bytes(tar_bytes([("moving.gif", moving), ("still.png", saved(photo()))]))
    output = str(tmp_path / "out")
    write_real_data(output, (f"{tmp_path}/moving.tar",), image_size=64, animation="clip")
    rows = TokenizedData.open(output).read_all().to_pylist()
    columns = ("key", "media", "num_frames", "grid_frames", "clip_start_s", "frame_pts_s")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("moving", "video", 4, 4, 0.0, [0.0, 0.04, 0.08, 0.12]),
        ("still", "image", 1, 1, None, None),
    ]
    assert verify_output(output, [f"{tmp_path}/moving.tar"]).findings == ()


KINDS = {
    "palette": (lambda: photo().quantize(64), "PNG", {}, 12),
    "palette of 2 bits": (lambda: Image.new("P", (64, 48), 1), "PNG", {"bits": 2}, None),
    "palette with alpha": (lambda: photo().quantize(64), "PNG", {"transparency": 0}, 60),
    "grey": (lambda: photo().convert("L"), "JPEG", {"quality": 95}, None),
    "grey with alpha": (lambda: photo().convert("LA"), "PNG", {}, None),
    "one bit": (lambda: photo().convert("1"), "TIFF", {}, None),
    "16-bit grey PNG": (lambda: Image.fromarray(np.asarray(photo().convert("L")).astype("<u2") * 257), "PNG", {}, None),
    "16-bit grey TIFF": (
        lambda: Image.fromarray(np.asarray(photo().convert("L")).astype("<u2") * 257),
        "TIFF",
        {"compression": "tiff_deflate"},
        None,
    ),
    "CMYK TIFF": (lambda: photo().convert("CMYK"), "TIFF", {}, 1),
    "YCbCr TIFF": (lambda: photo().convert("YCbCr"), "TIFF", {}, 2),
    "Lab TIFF": (
        lambda: ImageCms.profileToProfile(
            photo(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        ),
        "TIFF",
        {},
        3,
    ),
    "opaque alpha": (lambda: photo().convert("RGBA"), "PNG", {}, 0),
    "progressive JPEG": (photo, "JPEG", {"quality": 95, "progressive": True}, 4),
    "JPEG of whole chroma": (photo, "JPEG", {"quality": 95, "subsampling": 0}, 3),
    "JPEG with restarts": (photo, "JPEG", {"quality": 95, "restart_marker_rows": 1}, 4),
    "lossless WebP": (photo, "WEBP", {"lossless": True}, 0),
    "WebP with alpha": (lambda: photo().convert("RGBA"), "WEBP", {"lossless": True}, 0),
    "AVIF with alpha": (lambda: photo().convert("RGBA"), "AVIF", {"quality": 95}, 4),
    "lossless JPEG 2000": (photo, "JPEG2000", {}, 0),
    "LZW TIFF": (photo, "TIFF", {"compression": "tiff_lzw"}, 0),
    "JPEG TIFF": (photo, "TIFF", {"compression": "jpeg", "quality": 95}, 4),
    "big TIFF": (photo, "TIFF", {"big_tiff": True}, 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_kinds_of_pixels(kind: str, decoder: str) -> None:
    make, image_format, options, at_most = KINDS[kind]
    image = make()
    preprocessing = Preprocessing(image_size=48, decoder=decoder)  # type: ignore[arg-type]
    found = view_of(saved(image, image_format, **options), preprocessing)
    if at_most is not None:
        assert mean_difference(found, view_of(saved(photo()), preprocessing)) <= at_most
        return
    # Compared with what Pillow itself makes of the pixels; 16 bits are 257 times 8 here.
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    assert mean_difference(found, view_of(saved(image.convert("RGB")), preprocessing)) <= 3


def test_cmyk_jpegs_with_and_without_adobes_inversion() -> None:
    cmyk = photo().convert("CMYK")
    adobe = saved(cmyk, "JPEG", quality=95)
    marker = adobe.index(b"\xff\xee")
    length = int.from_bytes(adobe[marker + 2 : marker + 4], "big")
    assert adobe[marker + 4 : marker + 9] == b"Adobe"
    inverted = saved(ImageChops.invert(cmyk), "JPEG", quality=95)
    plain = inverted[:marker] + inverted[marker + 2 + length :]
    expected = view_of(saved(photo()))
    assert mean_difference(view_of(adobe), expected) <= 4
    assert mean_difference(view_of(plain), expected) <= 4


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "AVIF", "ICO", "GIF", "QOI", "DDS", "SGI"])
def test_alpha_shows_the_background(image_format: str, colour: tuple[int, int, int]) -> None:
    clear = Image.new("RGBA", (48, 48), (0, 0, 255, 0))
    pixels = view_of(stored(clear, image_format), Preprocessing(image_size=32, background=colour)).pixels
    assert np.abs(pixels[0, :, 9, 9].astype(int) - colour).max() <= 3


def test_the_document_names_formats_and_tests_that_are() -> None:
    text = (ROOT / "docs" / "reference" / "image-formats.md").read_text(encoding="utf-8")
    table = text[: text.index("What is in a file decides")]
    of_extras = {extra.image_format for extra in EXTRAS.values()}
    assert set(re.findall(r"`([A-Z0-9]+)`", table)) == {*FORMATS, *BY_NAME.values(), *of_extras}
    defined = "".join(path.read_text(encoding="utf-8") for path in (TESTS / "pipeline").rglob("test_*.py"))
    named = set(re.findall(r"\b(test_\w+)`", text)) - {"test_decode"}
    assert len(named) >= 12
    for name in named:
        assert f"def {name}(" in defined, name
    for path in re.findall(r"`tests/([\w/]+\.py)", text):
        assert (TESTS / path).exists(), path


# --- colour profiles ------------------------------------------------------------------------------------------------


def swapped_profile() -> bytes:
    """An sRGB profile in which the red and the green colorants have changed places."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12):
        name = bytes(profile[at : at + 4])
        profile[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    return bytes(profile)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ],
)
def test_profiles_are_followed(image_format: str, options: dict[str, object]) -> None:
    red = saved(Image.new("RGB", (48, 48), (255, 0, 0)), image_format, icc_profile=swapped_profile(), **options)
    found = view_of(red).pixels[0, :, 9, 9].astype(int)
    assert np.abs(found - (0, 255, 0)).max() <= 12, "red by this profile is green"
    ignoring = view_of(red, Preprocessing(image_size=32, icc_profiles="ignore")).pixels[0, :, 9, 9].astype(int)
    assert np.abs(ignoring - (255, 0, 0)).max() <= 3
    clear = Image.new("RGBA", (48, 48), (255, 0, 0, 0))
    if image_format not in ("JPEG",):
        blank = view_of(saved(clear, image_format, icc_profile=swapped_profile(), **options)).pixels
        assert blank.min() >= 252, "the background is sRGB already"


def test_profiles_that_say_nothing_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    whole = swapped_profile()
    plain = view_of(saved(photo()))
    for profile in (b"no profile", whole[: len(whole) // 2], whole[:128] + bytes(len(whole) - 128), b"\0" * 500):
        assert mean_difference(view_of(saved(photo(), icc_profile=profile)), plain) == 0, "a damaged profile"
    assert mean_difference(view_of(saved(photo(), icc_profile=srgb)), plain) <= 1
    grey = photo().convert("L")
    of_other_channels = view_of(saved(grey, icc_profile=whole))
    assert mean_difference(of_other_channels, view_of(saved(grey))) == 0


# --- what is filtered -----------------------------------------------------------------------------------------------


def test_sizes_and_shapes_are_filtered_unread() -> None:
    assert reason_of(encoded(0, 300, 40, "PNG"), min_side=41) == "too_small"
    assert reason_of(encoded(0, 300, 40, "PNG"), max_aspect_ratio=7.4) == "too_elongated"
    assert view_of(encoded(0, 300, 40, "PNG"), max_aspect_ratio=7.5).width == 300
    assert reason_of(encoded(0, 40, 300, "JPEG"), max_aspect_ratio=7.4) == "too_elongated"
    assert reason_of(encoded(0, 300, 40, "PNG"), max_pixels=11_999) == "too_many_pixels"
    endless = Preprocessing(image_size=256, mode="resize", side_multiple=1)
    assert reason_of(encoded(0, 4000, 16, "PNG"), endless) == "too_elongated"


# --- the fast path --------------------------------------------------------------------------------------------------

MAX_DIFFERENCE, MAX_MEAN_DIFFERENCE = 3, 0.1  # of 255, for a photo; the fast path's stated tolerance


@pytest.mark.corpus
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_the_fast_path_gives_pillows_pixels(corpus: Path, resample: str) -> None:
    slow, fast = (
        Preprocessing(image_size=256, decoder=decoder, resample=resample)  # type: ignore[arg-type]
        for decoder in ("pillow", "simplejpeg")
    )
    worst = 0
    with tarfile.open(corpus / "photos-raw-0000.tar") as tar:
        photos = [member for member in tar if member.name.endswith(".jpg")][:40]
        assert len(photos) == 40
        for member in photos:
            file = tar.extractfile(member)
            assert file is not None
            payload = file.read()
            difference = np.abs(view_of(payload, slow).pixels.astype(int) - view_of(payload, fast).pixels)
            assert difference.max() <= MAX_DIFFERENCE, member.name
            assert difference.mean() <= MAX_MEAN_DIFFERENCE, member.name
            worst = max(worst, int(difference.max()))
    assert worst > 0, "torch's rounding is not Pillow's: were it, this was not the fast path"


def test_the_fast_path_turns_upright_and_leaves_damage_to_pillow() -> None:
    quick = Preprocessing(image_size=32, decoder="simplejpeg")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(photo(), "JPEG", exif=exif, quality=95)
    assert (view_of(turned, quick).width, view_of(turned, quick).height) == (48, 64)
    assert mean_difference(view_of(turned, quick), view_of(turned)) <= MAX_MEAN_DIFFERENCE
    whole = saved(photo(200, 160), "JPEG", quality=95)
    assert reason_of(whole[: len(whole) // 2], quick) == reason_of(whole[: len(whole) // 2]) == "truncated"
    dented = bytearray(whole)
    dented[len(whole) // 2 : len(whole) // 2 + 40] = bytes(40)
    assert outcome(bytes(dented), quick) == outcome(bytes(dented), SMALL)


def jpegs() -> dict[str, bytes]:
    """One of every kind whose header says something, by name; "plain" ones need nothing but decoding."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kinds = {
        "plain": saved(photo(), "JPEG"),
        "plain, progressive": saved(photo(), "JPEG", progressive=True),
        "plain, full chroma": saved(photo(), "JPEG", subsampling=0),
        "plain, restarts": saved(photo(), "JPEG", restart_marker_blocks=2),
        "plain, comment": saved(photo(), "JPEG", comment=b"a comment"),
        "turned": saved(photo(), "JPEG", exif=exif),
        "profile": saved(photo(), "JPEG", icc_profile=profile),
        "grey": saved(photo().convert("L"), "JPEG"),
        "CMYK": saved(photo().convert("CMYK"), "JPEG"),
        "RGB": saved(photo(), "JPEG", keep_rgb=True),
    }
    at = kinds["plain"].index(b"\xff\xdb")
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"  # says that the channels are red, green and blue
    return kinds | {"Adobe": kinds["plain"][:at] + adobe + kinds["plain"][at:]}


def test_only_plain_jpegs_pass_pillow_by() -> None:
    for name, payload in jpegs().items():
        if name != "RGB":  # by its component names alone, which the decoder heeds
            assert plain_size(payload) == ((64, 48) if name.startswith("plain") else None), name
    whole = jpegs()["plain"]
    assert [plain_size(whole[:length]) for length in (0, 1, 2, 20, 180)] == [None] * 5


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(jpegs())),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    in_header=st.booleans(),
)
def test_passing_pillow_by_changes_nothing(name: str, places: list[tuple[float, int]], in_header: bool) -> None:
    payload = bytearray(jpegs()[name])
    for share, value in places:
        payload[int(share * (min(len(payload), 700) if in_header else len(payload)))] = value
    quick = Preprocessing(image_size=32, decoder="simplejpeg")
    limits = Limits(max_pixels=1 << 20)
    found = []
    for by_pillow in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if by_pillow:
                patch.setattr(simplejpeg, "plain_size", lambda payload: None)
            try:
                views = decode_image(bytes(payload), quick, limits, sample_id="s")
                found.append([view.pixels.tobytes() for view in views])
            except DecodeError as error:
                found.append([error.reason.encode()])
    assert found[0] == found[1]


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_what_has_its_size_already_is_what_resizing_would_give(resample: str) -> None:
    for height, width in ((64, 64), (17, 33), (1, 5)):
        pixels_HWC = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
        torchs = torch.nn.functional.interpolate(pixels_1CHW, (height, width), mode=resample, antialias=True)
        assert np.array_equal(torchs[0].permute(1, 2, 0).numpy(), pixels_HWC)
        assert resized(pixels_HWC, (width, height), resample) is pixels_HWC
        assert resized(pixels_HWC, (width + 1, height), resample).shape == (height, width + 1, 3)


def outcome(payload: bytes, preprocessing: Preprocessing) -> str:
    """The reason, or the pixels but for their last bits."""
    try:
        view = view_of(payload, preprocessing)
    except DecodeError as error:
        return error.reason
    return (view.pixels.astype(int).mean((0, 2, 3)) // 4).tolist().__repr__()
