"""Images of every kind in, tokens out, and back: the same pixels as the pipeline's, one for one and list for list."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tatok import ImageTokens, Tokenizer, TokenSequence, load_tokenizer
from tatok.pipeline.decode.sample import decode_sample
from tatok.schemas.errors import ConfigError, DecodeError, SourceError, TatokError
from tatok.schemas.job import JobConfig, Limits
from tatok.schemas.preprocessing import Preprocessing
from tatok.schemas.records import Clip, Sample
from tatok.schemas.token_batch import TokenBatch
from tests.support.photos import photo, saved, write_odd_images
from tests.support.tiny_checkpoint import SIDE, tiny_images, tiny_tokenizer
from tests.support.tokenizers import own

TINY = Preprocessing(image_size=SIDE)
MODES = [TINY, Preprocessing(mode="resize", image_size=SIDE, side_multiple=4),
         Preprocessing(mode="buckets", image_size=SIDE, side_multiple=4, background=(9, 99, 0))]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_odd_images(tmp_path_factory.mktemp("odd"))


def same(one: TokenSequence, other: TokenSequence) -> bool:
    return (
        one.grid == other.grid
        and np.array_equal(one.codes, other.codes)
        and np.array_equal(one.positions, other.positions)
    )


def as_the_pipeline(path: Path, tokenizer: Tokenizer, preprocessing: Preprocessing) -> TokenSequence:
    sample = Sample(
        key=path.stem, uri=str(path), index=0, media="image", extension=path.suffix[1:], payload=path.read_bytes()
    )
    [clip] = decode_sample(sample, preprocessing, Limits())
    assert isinstance(clip, Clip), clip
    [sequence] = tokenizer.encode_clips(torch.from_numpy(clip.pixels)[None])
    return sequence


@pytest.mark.parametrize("preprocessing", MODES, ids=lambda each: each.mode)
def test_a_file_gets_the_tokens_that_the_pipeline_gives_it(
    tokenizer: Tokenizer, odd: list[Path], preprocessing: Preprocessing
) -> None:
    """By path, URL and bytes, and opened by Pillow; all at once, of different sizes, in order."""
    expected = [as_the_pipeline(path, tokenizer, preprocessing) for path in odd]
    assert len({one.codes.tobytes() for one in expected}) > 8
    for images in (
        odd,
        [str(path) for path in odd],
        [f"file://{path}" for path in odd],
        [path.read_bytes() for path in odd],
        (Image.open(BytesIO(path.read_bytes())) for path in odd),
    ):
        found = tokenizer.encode(images, preprocessing=preprocessing)
        assert [same(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(odd)


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "Pillow": Image.fromarray,
    "rows, columns, channels": lambda array: array,
    "channels first": lambda array: array.transpose(2, 0, 1),
    "a tensor, channels first": lambda array: torch.from_numpy(array).permute(2, 0, 1),
    "a tensor, channels last": torch.from_numpy,
    "opaque alpha": lambda array: np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
    "not contiguous": lambda array: np.asfortranarray(array)[::-1][::-1],
    "bytes of a PNG": lambda array: saved(Image.fromarray(array)),
}


@settings(max_examples=12)
@given(width=st.integers(16, 70), height=st.integers(16, 70), seed=st.integers(0, 99))
def test_an_image_in_every_form_has_the_same_tokens(tokenizer: Tokenizer, width: int, height: int, seed: int) -> None:
    array = tiny_images(1, seed=seed, side=70)[0].permute(1, 2, 0).numpy()[:height, :width]
    found = {name: tokenizer.encode(form(array), preprocessing=TINY) for name, form in FORMS.items()}
    assert {name: same(one, found["Pillow"]) for name, one in found.items()} == dict.fromkeys(FORMS, True)
    several = tokenizer.encode([form(array) for form in FORMS.values()], preprocessing=TINY)
    assert all(same(one, found["Pillow"]) for one in several)
    assert {(one.preprocessing.width, one.preprocessing.height) for one in several} == {(width, height)}


def test_by_default_an_image_is_prepared_as_a_job_prepares_it(tokenizer: Tokenizer) -> None:
    picture = photo(300, 260)
    tensor = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    for form in (picture, tensor, tensor[0], np.asarray(picture)):
        assert tokenizer.encode(form).preprocessing.size == (256, 256)
        assert tokenizer.encode(form).preprocessing.settings == JobConfig(source=("a",), output="b").preprocessing


def test_grey_arrays(tokenizer: Tokenizer) -> None:
    grey = np.asarray(photo().convert("L"))
    forms = [grey, grey[:, :, None], grey[None], torch.from_numpy(grey.copy()), np.dstack([grey] * 3)]
    first, *others = tokenizer.encode(forms, preprocessing=TINY)
    assert all(same(first, other) for other in others)
    assert all(same(first, tokenizer.encode(form, preprocessing=TINY)) for form in forms)


def test_one_for_one_and_list_for_list(tokenizer: Tokenizer, odd: list[Path]) -> None:
    one = tokenizer.encode(odd[0], preprocessing=TINY)
    assert isinstance(one, ImageTokens)
    assert isinstance(tokenizer.decode(one), Image.Image)
    assert [type(each) for each in tokenizer.encode([odd[0]], preprocessing=TINY)] == [ImageTokens]
    assert tokenizer.encode([], preprocessing=TINY) == []
    assert tokenizer.decode([]).shape[0] == 0
    arrays = np.stack([np.asarray(photo()), np.asarray(photo().rotate(90))])
    several = tokenizer.encode(arrays, preprocessing=TINY)
    assert [same(*pair) for pair in zip(several, tokenizer.encode(list(arrays), preprocessing=TINY), strict=True)]
    assert [isinstance(picture, Image.Image) for picture in tokenizer.decode(several)] == [True, True]


def test_a_batch_of_pixels_stays_what_it_was(tokenizer: Tokenizer) -> None:
    pixels = tiny_images(3)
    batch = tokenizer.encode(pixels)
    assert isinstance(batch, TokenBatch)
    rebuilt = tokenizer.decode(batch)
    assert isinstance(rebuilt, torch.Tensor)
    assert rebuilt.shape == (3, 3, SIDE, SIDE)
    # Images of the size that is tokenized are not changed by being prepared.
    prepared = tokenizer.encode(pixels, preprocessing=TINY)
    assert [same(*pair) for pair in zip(prepared, batch, strict=True)] == [True] * 3
    odd_sides = torch.zeros(1, 3, SIDE, 2 * SIDE, dtype=torch.uint8)
    assert (
        tokenizer.encode(odd_sides)[0].grid.width == 2 * tokenizer.encode(odd_sides, preprocessing=TINY)[0].grid.width
    )


def test_images_come_back_as_asked(tokenizer: Tokenizer, odd: list[Path]) -> None:
    """Of different sizes, in order, and equal to what a batch of them gives."""
    tokens = tokenizer.encode(odd, preprocessing=MODES[1])
    assert len({one.grid for one in tokens}) >= 3
    pictures = tokenizer.decode(tokens)
    assert [picture.size for picture in pictures] == [one.preprocessing.size for one in tokens]
    arrays, tensors = tokenizer.decode(tokens, as_="numpy"), tokenizer.decode(tokens, as_="torch")
    for one, picture, array, tensor in zip(tokens, pictures, arrays, tensors, strict=True):
        alone = tokenizer.decode([one], as_=None)[0]
        assert np.array_equal(np.asarray(picture), array)
        assert np.array_equal(array, tensor.permute(1, 2, 0).numpy())
        assert int(np.abs(np.asarray(alone).astype(int) - array).max()) <= 1  # alone, not in a batch
    with pytest.raises(ValueError, match="as_ is 'jpeg'; say pil, numpy or torch"):
        tokenizer.decode(tokens, as_="jpeg")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="grid"):
        tokenizer.decode(tuple(tokens))  # not the list that encode gave: a batch of one size


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("turned.jpg", "90x120, 90x90 of it from (0, 15), scaled to 32x32; turned upright as its EXIF block says (6)"),
        ("clear.png", "transparent pixels over RGB (255, 255, 255)"),
        ("palette-and-clear.gif", "RGB out of a palette; transparent pixels over"),
        ("grey.jpg", "RGB out of grey"),
        ("cmyk.jpg", "RGB out of CMYK"),
        ("frames.gif", "one of 2 frames"),
        ("wrong-profile.jpg", "colour profile"),
        ("small.png", "small.png: 20x17, 17x17 of it from (1, 0), scaled to 32x32"),
    ],
)  # fmt: skip
def test_what_was_done_is_said(tokenizer: Tokenizer, odd: list[Path], name: str, said: str) -> None:
    [path] = [path for path in odd if path.name == name]
    tokens = tokenizer.encode(path, preprocessing=TINY)
    assert said in str(tokens.preprocessing)
    assert tokens.preprocessing.settings == TINY
    with Image.open(path) as opened:
        again = tokenizer.encode(opened, preprocessing=TINY).preprocessing
    assert again.notes == tokens.preprocessing.notes


def test_a_plain_array_says_as_what_it_was_taken(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(np.zeros((3, 40, 50), np.uint8), preprocessing=TINY)
    assert "the image, array [3, 40, 50] as [channels, rows, columns]: 50x40" in str(tokens.preprocessing)
    assert not tokens.preprocessing.notes


REFUSED: dict[str, tuple[object, type[Exception], str]] = {
    "floats": (np.zeros((40, 40, 3), np.float32), ValueError, r"float32 \[40, 40, 3\]; expected .*\(255 \* x\).round"),
    "integers": (torch.zeros(3, 40, 40, dtype=torch.int64), ValueError, "expected torch.uint8 or numpy.uint8"),
    "booleans": (np.zeros((40, 40), bool), ValueError, r"bool \[40, 40\]"),
    "either way round": (np.zeros((3, 300, 3), np.uint8), ValueError, "channels first or last"),
    "two channels": (np.zeros((40, 40, 2), np.uint8), ValueError, "no axis of 1, 3 or 4 channels"),
    "one axis": (np.zeros(40, np.uint8), ValueError, "no axis"),
    "a number": (7, ValueError, "the image is a int; expected a PIL image, a path"),
    "None within": ([photo(), None], ValueError, "image 1 is a NoneType"),
    "no file": ("nowhere.jpg", SourceError, "there is no file nowhere.jpg"),
    "a pattern": ("photos/*.jpg", SourceError, "not as a pattern"),
    "a folder": ("/tmp", SourceError, "tatok.tokenize"),
    "no such scheme": ("s4://bucket/a.jpg", SourceError, "s4"),
    "no server": ("http://127.0.0.1:9/a.jpg", SourceError, r"a\.jpg \(Cannot connect to host"),
    "no module for it": ("dvc://a/b.jpg", ConfigError, "cannot read dvc://a/b.jpg"),
    "text": (b"not an image", DecodeError, "the image: no image format .* go through tatok.tokenize"),
    "no bytes": ([b""], DecodeError, "image 0: the member has no bytes"),
    "half a JPEG": (saved(photo(), "JPEG")[:700], DecodeError, "truncated"),
    "too small": (photo(15, 40), DecodeError, "15 x 40 pixels; a side has at least 16"),
    "floats of Pillow": (Image.new("F", (40, 40)), DecodeError, "floating-point"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(tokenizer: Tokenizer, what: str) -> None:
    image, kind, said = REFUSED[what]
    with pytest.raises(kind, match=said):
        tokenizer.encode(image, preprocessing=TINY)  # type: ignore[call-overload]


def test_a_file_that_is_no_image_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DecodeError, match=r"image 1, .*notes\.txt: no image format"):
        tokenizer.encode([photo(), tmp_path / "notes.txt"], preprocessing=TINY)


@pytest.mark.parametrize(
    ("preprocessing", "said"),
    [
        ({"image_size": 30}, r"image_size is 30; .* patch of 4 pixels"),
        ({"imagesize": 32}, "did you mean image_size"),
        ({"image_size": 32, "flips": "random"}, "always the same"),
        ({"image_size": 32, "mode": "random_crop"}, "random_crop"),
        ({"image_size": 32, "animation": "clip"}, "one sequence"),
    ],
)
def test_settings_that_do_not_go_with_it(tokenizer: Tokenizer, preprocessing: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tokenizer.encode(photo(), preprocessing=preprocessing)


def test_a_users_picture_stays_as_it_is(tokenizer: Tokenizer) -> None:
    picture = photo().convert("RGBA")
    before = picture.tobytes(), picture.mode, picture.size
    tokenizer.encode(picture, preprocessing=TINY)
    assert (picture.tobytes(), picture.mode, picture.size) == before


def test_any_tokenizer_that_is_loaded_takes_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both tiers: a user's own encode sees nothing but batches of pixels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(Path(own.__file__).read_text())
    (tmp_path / "upper.py").write_text(
        "from tests.support.fake_tokenizer import FakeTokenizer\n\ndef load():\n    return FakeTokenizer()\n"
    )
    for name in ("mine.py:load", "upper.py:load"):
        tokenizer = load_tokenizer(name)
        picture = photo(64, 64)
        one = tokenizer.encode(picture, preprocessing={"image_size": 64})
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
        assert same(one, tokenizer.encode(pixels)[0])
        assert isinstance(one, ImageTokens)
        assert name in repr(tokenizer)
        assert len(repr(tokenizer)) <= 120


def test_an_error_with_a_remedy_shows_it_in_a_traceback() -> None:
    assert TatokError("no", remedy="yes").__notes__ == ["remedy: yes"]
    assert not hasattr(TatokError("no"), "__notes__")
