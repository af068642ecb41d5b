"""What stands beside the pixels never decides over them."""

from __future__ import annotations

import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tatok.pipeline.images import beside
from tatok.schemas.errors import DecodeError
from tatok.schemas.preprocessing import Preprocessing
from tests.support.photos import EXACT, photo, pixels_of, png_chunk, reason_of, saved
from tests.support.places import ROOT

QUICK = Preprocessing(image_size=48, decoder="simplejpeg")
CLIP = Preprocessing(image_size=48, animation="clip")
Damage = Callable[[bytes], bytes]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
CLEAN = {
    "PNG": saved(photo()),
    "JPEG": saved(photo(), "JPEG", quality=90),
    "WEBP": saved(photo(), "WEBP", quality=90, exif=EXIF, xmp=b"<x/>" * 50),
    "AVIF": saved(photo(), "AVIF", quality=90, exif=EXIF, xmp=b"<x/>" * 50),
    "GIF": saved(photo(), "GIF"),
    "TIFF": saved(photo(), "TIFF"),
    "JPEG2000": saved(photo(), "JPEG2000"),
}

# --- what is put beside them ----------------------------------------------------------------------------------------


def png(*chunks: bytes, late: bool = False) -> Damage:
    """Behind the header, or `late`: before the end."""

    def put(clean: bytes) -> bytes:
        at = len(clean) - 12 if late else 33
        return clean[:at] + b"".join(chunks) + clean[at:]

    return put


def bad_checksum(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


def of_length(chunk: bytes, length: int) -> bytes:
    return struct.pack(">I", length) + chunk[4:]


def jpeg(*segments: bytes) -> Damage:
    return lambda clean: clean[:2] + b"".join(segments) + clean[2:]


def segment(marker: int, data: bytes, *, length: int | None = None) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2 if length is None else length) + data


def cut(count: int) -> Damage:
    return lambda clean: clean[:-count]


def then(data: bytes) -> Damage:
    return lambda clean: clean + data


def replaced(old: bytes, new: bytes) -> Damage:
    def put(clean: bytes) -> bytes:
        assert old in clean
        return clean.replace(old, new, 1)

    return put


def tiff_tag(tag: int, kind: int, count: int, value: int) -> Damage:
    """One more tag in the directory, which is written again behind the pixels; tags are in ascending order."""

    def put(clean: bytes) -> bytes:
        (at,) = struct.unpack_from("<I", clean, 4)
        (number,) = struct.unpack_from("<H", clean, at)
        entries = [clean[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(number)]
        entries = sorted([*entries, struct.pack("<HHII", tag, kind, count, value)], key=lambda entry: entry[:2][::-1])
        directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
        return clean[:4] + struct.pack("<I", len(clean)) + clean[8:] + directory

    return put


def next_directory(place: int) -> Damage:
    def put(clean: bytes) -> bytes:
        (at,) = struct.unpack_from("<I", clean, 4)
        end = at + 2 + 12 * struct.unpack_from("<H", clean, at)[0]
        return clean[:end] + struct.pack("<I", place) + clean[end + 4 :]

    return put


LONG = bytes(1_400_000)
EXIF_LOOP = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
THUMBNAIL = saved(photo(32, 24), "JPEG")
EXIF_WITH_THUMBNAIL = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + THUMBNAIL + bytes(40)

BESIDE: dict[str, dict[str, Damage]] = {
    "PNG": {
        "compressed text of 1.4 MB": png(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG))),
        "compressed international text of 1.4 MB": png(png_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(LONG))),
        "such text behind the pixels": png(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG)), late=True),
        "plain text of 1.4 MB": png(png_chunk(b"tEXt", b"a\0" + LONG)),
        "text of 70 MB in all": png(*[png_chunk(b"zTXt", b"a%d\0\0" % i + zlib.compress(LONG[:1_000_000]))
                                      for i in range(70)]),
        "text packed in an unknown way": png(png_chunk(b"zTXt", b"a\0\7xyz")),
        "text that does not unpack": png(png_chunk(b"zTXt", b"a\0\0xyz")),
        "text with a wrong checksum": png(bad_checksum(png_chunk(b"tEXt", b"a\0b"))),
        "a name that is no letters": png(png_chunk(b"te\xe9t", b"a\0b")),
        "a name with a dash": png(png_chunk(b"te-t", b"a\0b")),
        "a chunk that is shorter than it says": png(of_length(png_chunk(b"tEXt", b"a\0b"), 9)),
        "a chunk that is longer than it says": png(of_length(png_chunk(b"tEXt", b"a\0" + b"b" * 99), 9)),
        "a chunk of 4 GB": png(of_length(png_chunk(b"tEXt", b"a\0b"), 0xFFFFFFF0)),
        "an unknown chunk with a wrong checksum": png(bad_checksum(png_chunk(b"prVt", b"?" * 40))),
        "gamma that is cut": png(png_chunk(b"gAMA", b"\0")),
        "chromaticities that are cut": png(png_chunk(b"cHRM", bytes(7))),
        "an intent that is empty": png(png_chunk(b"sRGB", b"")),
        "a density that is cut": png(png_chunk(b"pHYs", b"\0")),
        "transparency that is cut": png(png_chunk(b"tRNS", b"\0\1")),
        "transparency with a wrong checksum": png(bad_checksum(png_chunk(b"tRNS", b"\0" * 6))),
        "a profile of 3 MB": png(png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000)))),
        "a profile packed in an unknown way": png(png_chunk(b"iCCP", b"p\0\1" + zlib.compress(SRGB))),
        "a profile without a name": png(png_chunk(b"iCCP", b"p" * 9)),
        "a profile with a wrong checksum": png(bad_checksum(png_chunk(b"iCCP", b"p\0\0" + zlib.compress(SRGB)))),
        "EXIF of noise": png(png_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff" + b"?" * 30)),
        "EXIF that leads in a circle": png(png_chunk(b"eXIf", EXIF_LOOP[6:]), late=True),
        "an animation that is none": png(png_chunk(b"acTL", b"\0\0")),
        "frames out of order": png(png_chunk(b"acTL", struct.pack(">II", 2, 0)),
                                   png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 9, 120, 90, 0, 0, 1, 9, 0, 0))),
        "a frame that is too large": png(png_chunk(b"acTL", struct.pack(">II", 2, 0)),
                                         png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 999, 90, 0, 0, 1, 9, 0, 0))),
        "no end": cut(12),
        "half of an end": cut(6),
        "text that is cut, and no end": lambda clean: clean[:-12] + png_chunk(b"tEXt", b"a\0" + b"b" * 99)[:50],
        "more behind the end": then(b"more" * 99),
    },
    "JPEG": {
        "JFIF that is cut": jpeg(segment(0xE0, b"JFIF\0\1")),
        "Adobe's segment, cut": jpeg(segment(0xEE, b"Adobe\0")),
        "a profile without a number": jpeg(segment(0xE2, b"ICC_PROFILE\0")),
        "a profile of more parts than there are": jpeg(segment(0xE2, b"ICC_PROFILE\0\1\7" + SRGB)),
        "a profile of noise": jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + b"?" * 300)),
        "a profile whose length swallows tables": jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + b"?" * 99, length=400)),
        "EXIF of noise": jpeg(segment(0xE1, b"Exif\0\0" + b"?" * 99)),
        "EXIF that leads in a circle": jpeg(segment(0xE1, EXIF_LOOP)),
        "EXIF that says more than there is of the file": jpeg(segment(0xE1, b"Exif\0\0MM", length=0xFFFF)),
        "EXIF that is longer than it says, with a thumbnail": jpeg(segment(0xE1, EXIF_WITH_THUMBNAIL, length=20)),
        "EXIF that is shorter than it says, with a thumbnail": jpeg(
            segment(0xE1, EXIF_WITH_THUMBNAIL, length=len(EXIF_WITH_THUMBNAIL) + 150)
        ),
        "a comment of no length": jpeg(b"\xff\xfe\0\0" + b"comment"),
        "XMP of noise": jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\0<<<tiff:Orientation=\"9")),
        "an index of pictures that are not there": jpeg(segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x09\0" + b"?" * 40)),
        "an index of pictures that is cut": jpeg(segment(0xE2, b"MPF\0MM")),
        "Photoshop's resources, cut": jpeg(segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0")),
        "Photoshop's resources of noise": jpeg(segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab8BIM")),
        "no end": cut(2),
        "half of an end": cut(1),
        "no end, and a segment that lies": lambda clean: jpeg(segment(0xE1, b"Exif\0\0", length=300))(clean)[:-2],
        "more behind the end": then(THUMBNAIL),
        "seven hundred comments": jpeg(*[segment(0xFE, b"?" * 40)] * 700),
    },
    "WEBP": {
        "XMP that is cut": cut(20),
        "XMP that is missing": lambda clean: clean[: clean.index(b"XMP ")],
        "EXIF that is cut": lambda clean: clean[: clean.index(b"EXIF") + 10],
        "XMP that is shorter than it says": replaced(b"XMP \xc8\0\0\0", b"XMP \xff\xff\xff\x7f"),
        "a file that says it is longer": lambda clean: clean[:4] + b"\xff\xff\xff\x00" + clean[8:],
        "EXIF of noise": replaced(b"II*\0\x08\0\0\0", b"????????"),
        "a chunk of no kind": lambda clean: clean + b"\0\0\0\0\xff\xff\xff\xff",
    },
    "AVIF": {
        "EXIF of noise": replaced(b"II*\0\x08\0\0\0", b"????????"),
        "EXIF whose start is nowhere": replaced(b"\0\0\0\6Exif\0\0II", b"\xff\xff\xff\xffExif\0\0II"),
        "a box that is cut": then(b"\0\0\x09\0uuid" + b"?" * 40),
        "a box of no length": then(b"\0\0\0\3free"),
    },
    "GIF": {
        "no end": cut(1),
        "no end of the pixels": cut(2),
        "no end of the codes": cut(3),
        "a comment of noise behind the picture": lambda clean: clean[:-1] + b"\x21\xfe\xff???",
        "noise behind the picture": lambda clean: clean[:-1] + b"?" * 40,
        "a comment": lambda clean: clean[:781] + b"\x21\xfe\3???\0" + clean[781:],
        "an unknown extension": lambda clean: clean[:781] + b"\x21\x77\3???\0" + clean[781:],
    },
    "TIFF": {
        "a tag of no type": tiff_tag(65_000, 99, 7, 8),
        "a tag that points outside": tiff_tag(305, 2, 99, 0x7FFFFFFF),
        "a tag of 4 GB": tiff_tag(700, 1, 0xFFFFFFFF, 8),
        "XMP of numbers": tiff_tag(700, 3, 1, 8),
        "a profile of numbers": tiff_tag(34_675, 4, 2, 8),
        "a profile outside": tiff_tag(34_675, 7, 3000, 0x7FFFFFFF),
        "EXIF that leads in a circle": tiff_tag(34_665, 4, 1, 8),
        "a density of nothing": tiff_tag(282, 5, 1, 0x7FFFFFF0),
        "an orientation of words": tiff_tag(274, 2, 4, 0x3F3F3F3F),
        "a page that is not there": next_directory(0x7FFFFFF0),
        "pages in a circle": next_directory(8),
    },
    "JPEG2000": {
        "no end": cut(2),
        "half of an end": cut(1),
        "a box that is cut": then(b"\0\0\x09\0uuid" + b"?" * 40),
    },
}  # fmt: skip
CASES = [(image_format, what) for image_format, kinds in BESIDE.items() for what in kinds]


@pytest.mark.parametrize(("image_format", "what"), CASES)
def test_what_stands_beside_the_pixels_does_not_decide(image_format: str, what: str) -> None:
    clean = CLEAN[image_format]
    damaged = BESIDE[image_format][what](clean)
    assert damaged != clean
    for preprocessing in (EXACT, QUICK) if image_format == "JPEG" else (EXACT,):
        assert np.array_equal(pixels_of(damaged, preprocessing), pixels_of(clean, preprocessing))


def test_a_clip_keeps_its_frames_whatever_stands_beside_them() -> None:
    others = [photo().rotate(angle) for angle in (90, 180)]
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG))
    moving = saved(photo(), "PNG", save_all=True, append_images=others, duration=40)
    assert pixels_of(moving, CLIP).shape[0] == 3
    assert np.array_equal(pixels_of(png(text)(moving), CLIP), pixels_of(moving, CLIP))
    webp = saved(photo(), "WEBP", save_all=True, append_images=others, duration=40, xmp=b"<x/>" * 50)
    assert pixels_of(webp, CLIP).shape[0] == 3
    assert np.array_equal(pixels_of(webp[:-20], CLIP), pixels_of(webp, CLIP))
    for cut_in_a_frame in (png(text)(moving)[:-60], webp[: webp.rindex(b"ANMF") + 40], webp[: webp.rindex(b"ANMF")]):
        with pytest.raises(DecodeError):
            pixels_of(cut_in_a_frame, CLIP)
        still = moving if cut_in_a_frame.startswith(b"\x89PNG") else webp
        assert np.array_equal(pixels_of(cut_in_a_frame), pixels_of(still)), "its first frame is whole"


def test_orientation_and_profile_are_kept_where_something_else_is_wrong() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    swapped = SRGB.replace(b"rXYZ", b"!XYZ").replace(b"gXYZ", b"rXYZ").replace(b"!XYZ", b"gXYZ")
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>')
    broken = png_chunk(b"zTXt", b"a\0\7?")
    clean = saved(stored, exif=exif, icc_profile=swapped)
    assert pixels_of(clean).mean((0, 2, 3))[0] != pixels_of(saved(photo())).mean((0, 2, 3))[0]
    assert np.array_equal(pixels_of(png(broken)(clean)), pixels_of(clean))
    by_xmp = png(png_chunk(b"iTXt", xmp))(saved(stored))
    assert np.array_equal(pixels_of(by_xmp), pixels_of(saved(photo()))), "Pillow heeds XMP where EXIF is silent"
    assert np.array_equal(pixels_of(png(broken)(by_xmp)), pixels_of(by_xmp))
    quick = saved(stored, "JPEG", exif=exif, icc_profile=swapped)
    damaged = jpeg(segment(0xE0, b"JFIF\0\1"))(quick)
    for preprocessing in (EXACT, QUICK):
        assert np.array_equal(pixels_of(damaged, preprocessing), pixels_of(quick, preprocessing))
    webp = saved(stored, "WEBP", lossless=True, exif=exif.tobytes(), icc_profile=swapped, xmp=b"<x/>" * 50)
    assert np.array_equal(pixels_of(webp[:-20]), pixels_of(webp))
    tiff = tiff_tag(700, 3, 1, 8)(saved(stored, "TIFF", exif=exif, icc_profile=swapped))
    assert np.array_equal(pixels_of(tiff), pixels_of(clean))


def test_a_file_that_is_refused_says_what_is_wrong_with_it_as_it_is() -> None:
    bomb = png(png_chunk(b"zTXt", b"a\0\7?"))(saved(Image.new("L", (300, 300))))
    assert reason_of(bomb, max_pixels=89_999) == "too_many_pixels", "behind text that Pillow refuses first"
    assert reason_of(png(png_chunk(b"zTXt", b"a\0\7?"))(saved(Image.new("L", (300, 3))))) == "too_small"
    assert reason_of(b"\x89PNG\r\n\x1a\n" + b"?" * 99) == "not_an_image"


def test_good_files_are_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(payload: bytes, *, animated: bool) -> None:
        raise AssertionError("nothing was wrong")

    monkeypatch.setattr(beside, "pixels_alone", refuse)
    for clean in CLEAN.values():
        pixels_of(clean)


def test_text_that_unpacks_to_a_gigabyte_takes_no_memory(tmp_path: Path) -> None:
    def packed(total: int) -> bytes:
        stream = zlib.compressobj(9)
        return b"".join([*(stream.compress(bytes(1 << 20)) for _ in range(total >> 20)), stream.flush()])

    bomb = packed(1 << 28)
    chunks = [png_chunk(b"zTXt", b"a\0\0" + bomb), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)]
    chunks += [png_chunk(b"iCCP", b"p\0\0" + bomb), png_chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb)]
    (tmp_path / "bomb.png").write_bytes(png(*chunks)(CLEAN["PNG"]))
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from tatok.pipeline.images.decode import decode_image
        from tatok.schemas.job import Limits
        from tatok.schemas.preprocessing import Preprocessing

        payload = Path(sys.argv[1]).read_bytes()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        [view] = decode_image(payload, Preprocessing(), Limits(), sample_id="s")
        print(view.width)
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
    width, grown_kib = result.stdout.split()
    assert width == "120"
    assert int(grown_kib) < 60_000
