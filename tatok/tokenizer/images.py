"""What people call an image -> pixels as the pipeline makes them -> tokens that say what was done, and back."""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from tatok.schemas.errors import ConfigError, DecodeError, SourceError
from tatok.schemas.records import Crop, TokenSequence

if TYPE_CHECKING:  # what images alone need is imported for them: every process that loads a checkpoint comes by here
    from PIL import Image

    from tatok.schemas.preprocessing import Preprocessing

__all__ = ["ImageLike", "ImageTokens", "Kind", "Preparation", "TakesImages"]

ImageLike: TypeAlias = "Image.Image | str | PathLike[str] | bytes | np.ndarray | Tensor"
"""A picture of Pillow's; a file by its path or fsspec URL, or its bytes; a uint8 array [H, W], [H, W, C] or [C, H, W]
of C = 1, 3 or 4 channels (grey, RGB, RGB and alpha)."""

Kind = Literal["pil", "numpy", "torch"]
"""As what `decode` gives an image: Pillow's in mode RGB; an array uint8 [H, W, 3]; a tensor uint8 [3, H, W]."""

_Batch = TypeVar("_Batch", bound=Sequence[TokenSequence])
_BATCH = 16
_CHANNELS = (1, 3, 4)
_EXIF_ORIENTATION = 0x0112
_MODES = {"L": "grey", "P": "a palette", "1": "black and white", "LA": "grey", "PA": "a palette"}
_ELSEWHERE = "archives, tables, folders and videos go through tatok.tokenize(source, output)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What was done to an image before it was tokenized; as text, one line.

    `width` and `height` are the image's, upright; `crop` is the part of it that was tokenized, at `size` (width,
    height). `notes` are what else was done to it, such as a turn by EXIF or a ground under transparent pixels.
    """

    source: str
    width: int
    height: int
    crop: Crop
    size: tuple[int, int]
    notes: tuple[str, ...]
    settings: Preprocessing

    def __repr__(self) -> str:
        return f"Preparation({self})"

    def __str__(self) -> str:
        crop, whole = self.crop, (self.crop.width, self.crop.height) == (self.width, self.height)
        part = "" if whole else f", {crop.width}x{crop.height} of it from ({crop.left}, {crop.top})"
        scaled = "" if (crop.width, crop.height) == self.size else ", scaled to {}x{}".format(*self.size)
        return "; ".join([f"{self.source}: {self.width}x{self.height}{part}{scaled}", *self.notes])


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ImageTokens(TokenSequence):
    """The tokens of one image that `encode` was given, and what was done to it before."""

    preprocessing: Preparation


class TakesImages(ABC, Generic[_Batch]):
    """`encode` and `decode` of a tokenizer, for images of every kind and for batches of pixels.

    What is an image is prepared by the pipeline's own functions, so that its tokens are those that `tatok tokenize`
    writes for its file under equal settings. A batch of pixels is taken as it is.
    """

    patch_size: Any  # a property of some tokenizers, an attribute of others

    @abstractmethod
    def _encode_pixels(self, pixels: Tensor) -> _Batch: ...

    @abstractmethod
    def _decode_pixels(self, sequences: Sequence[TokenSequence]) -> Tensor: ...

    # The second kind of what arrays give is Any: how many dimensions they have is not in their types.
    @overload
    def encode(self, images: Tensor, *, preprocessing: None = None) -> _Batch | Any: ...
    @overload
    def encode(  # type: ignore[overload-overlap]  # an array can be iterated, too
        self, images: np.ndarray | Tensor, *, preprocessing: Preprocessing | Mapping[str, Any] | None = None
    ) -> ImageTokens | Any: ...
    @overload
    def encode(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self,
        images: Image.Image | str | PathLike[str] | bytes,
        *,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    ) -> ImageTokens: ...
    @overload
    def encode(
        self, images: Iterable[ImageLike], *, preprocessing: Preprocessing | Mapping[str, Any] | None = None
    ) -> list[ImageTokens]: ...
    def encode(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    ) -> Any:
        """Tokenize an image or several of any sizes, one `ImageTokens` each in order; or a batch of pixels.

        A uint8 tensor [B, 3, H, W] is a batch: it is tokenized as it is, H and W multiples of the patch, one sequence
        an image. Everything else is an image (see `ImageLike`) or several (any iterable, an array of four dimensions):
        turned upright, brought to sRGB, cropped and scaled as `preprocessing` says, by default as a job does, the
        largest centred square at 256x256. Given `preprocessing`, so is each image of a tensor.

        Raises ValueError where pixels are of another type or shape, SourceError where a file cannot be read,
        DecodeError where it is no image, ConfigError where the settings do not fit the tokenizer or leave something to
        chance.
        """
        if isinstance(images, Tensor) and images.ndim not in (2, 3) and preprocessing is None:
            return self._encode_pixels(images)
        settings = _checked(preprocessing, int(self.patch_size))
        if not _is_one(images):
            return self._encoded(enumerate(images), settings, "image {}")  # type: ignore[arg-type]  # an iterable
        [tokens] = self._encoded([(0, images)], settings, "the image")  # type: ignore[list-item]  # one of them
        return tokens

    @overload
    def decode(self, tokens: TokenSequence, *, as_: Literal["pil"] | None = None) -> Image.Image: ...
    @overload
    def decode(self, tokens: TokenSequence, *, as_: Literal["numpy"]) -> np.ndarray: ...
    @overload
    def decode(self, tokens: TokenSequence, *, as_: Literal["torch"]) -> Tensor: ...
    @overload
    def decode(  # type: ignore[overload-overlap]  # what was encoded as images comes back as images
        self, tokens: list[ImageTokens], *, as_: Literal["pil"] | None = None
    ) -> list[Image.Image]: ...
    @overload
    def decode(self, tokens: Sequence[TokenSequence], *, as_: None = None) -> Tensor: ...
    @overload
    def decode(self, tokens: Sequence[TokenSequence], *, as_: Literal["pil"]) -> list[Image.Image]: ...
    @overload
    def decode(self, tokens: Sequence[TokenSequence], *, as_: Literal["numpy"]) -> list[np.ndarray]: ...
    @overload
    def decode(self, tokens: Sequence[TokenSequence], *, as_: Literal["torch"]) -> list[Tensor]: ...
    def decode(self, tokens: TokenSequence | Sequence[TokenSequence], *, as_: Kind | None = None) -> Any:
        """Rebuild an image from a sequence, or images of any sizes from several, in order.

        They come as `as_` says. Without it, a sequence by itself and a list of what `encode` made of images give
        Pillow's; other sequences, which must be of one grid, a tensor uint8 [B, 3, H, W].

        Raises ValueError where grids differ, or codes or positions are out of range or order.
        """
        if as_ not in (None, "pil", "numpy", "torch"):
            raise ValueError(f"as_ is {as_!r}; say pil, numpy or torch")
        if isinstance(tokens, TokenSequence):
            return self._decoded([tokens], as_ or "pil")[0]
        of_images = isinstance(tokens, list) and tokens and all(isinstance(each, ImageTokens) for each in tokens)
        if as_ is None and not of_images:
            return self._decode_pixels(tokens)
        return self._decoded(tokens, as_ or "pil")

    def _encoded(
        self, images: Iterable[tuple[int, ImageLike]], settings: Preprocessing, called: str
    ) -> list[ImageTokens]:
        done: dict[int, ImageTokens] = {}
        waiting: defaultdict[tuple[int, ...], list[tuple[int, Tensor, Preparation]]] = defaultdict(list)

        def tokenize(group: list[tuple[int, Tensor, Preparation]]) -> None:
            sequences = self._encode_pixels(torch.stack([pixels for _, pixels, _ in group]))
            for (number, _, preparation), sequence in zip(group, sequences, strict=True):
                values = {field.name: getattr(sequence, field.name) for field in fields(TokenSequence)}
                done[number] = ImageTokens(**values, preprocessing=preparation)
            group.clear()

        for number, image in images:
            pixels, preparation = _prepared(image, settings, called.format(number))
            alike = waiting[tuple(pixels.shape)]
            alike.append((number, pixels, preparation))
            if len(alike) == _BATCH:
                tokenize(alike)
        for rest in waiting.values():
            if rest:
                tokenize(rest)
        return [done[number] for number in range(len(done))]

    def _decoded(self, sequences: Sequence[TokenSequence], kind: Kind) -> list[Any]:
        by_grid: defaultdict[object, list[int]] = defaultdict(list)
        for number, sequence in enumerate(sequences):
            by_grid[sequence.grid].append(number)
        images: dict[int, Tensor] = {}
        for numbers in by_grid.values():
            for first in range(0, len(numbers), _BATCH):
                some = numbers[first : first + _BATCH]
                images.update(zip(some, self._decode_pixels([sequences[number] for number in some]), strict=True))
        return [_AS[kind](images[number]) for number in range(len(images))]


def _to_numpy(image_3HW: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image_3HW.permute(1, 2, 0).cpu().numpy())


def _to_pil(image_3HW: Tensor) -> Image.Image:
    from PIL import Image

    return Image.fromarray(_to_numpy(image_3HW))


_AS: Mapping[Kind, Callable[[Tensor], Any]] = {
    "pil": _to_pil,
    "numpy": _to_numpy,
    "torch": lambda image_3HW: image_3HW,
}


def _is_one(images: object) -> bool:
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    from PIL import Image

    return isinstance(images, Image.Image | str | PathLike | bytes) or not isinstance(images, Iterable)


def _checked(preprocessing: Preprocessing | Mapping[str, Any] | None, patch_size: int) -> Preprocessing:
    """The settings, a job's defaults where there are none; raises ConfigError where they do not go with `encode`."""
    from tatok.schemas.preprocessing import Preprocessing
    from tatok.schemas.settings import validated

    if not isinstance(preprocessing, Preprocessing):
        preprocessing = validated(Preprocessing, preprocessing or {}, origin="preprocessing")
    if preprocessing.mode == "random_crop" or preprocessing.flips != "none" or preprocessing.animation == "clip":
        raise ConfigError(
            f"preprocessing has mode {preprocessing.mode}, flips {preprocessing.flips} and animation "
            f"{preprocessing.animation}; encode gives each image one sequence, always the same",
            remedy="take the modes centre_crop, resize or buckets, flips none and animation first_frame, or "
            "tatok.tokenize(source, output)",
        )
    side = preprocessing.sides_divide_by
    if side % patch_size:
        name = "side_multiple" if preprocessing.mode in ("resize", "buckets") else "image_size"
        fitting = max(side // patch_size, 1) * patch_size
        raise ConfigError(
            f"preprocessing.{name} is {side}; it must be a multiple of the tokenizer's patch of {patch_size} pixels",
            remedy=f"preprocessing={{{name!r}: {fitting}}}",
        )
    return preprocessing


def _prepared(image: ImageLike, settings: Preprocessing, name: str) -> tuple[Tensor, Preparation]:
    """Pixels, uint8 [3, H, W], as the pipeline makes them."""
    from PIL import Image

    from tatok.pipeline.images.decode import decode_image, views_of_picture
    from tatok.schemas.job import Limits

    limits, notes = Limits(), list[str]()
    try:
        if isinstance(image, str | PathLike | bytes):
            source = name if isinstance(image, bytes) else fspath(image)
            payload = image if isinstance(image, bytes) else _read(source, limits.max_sample_bytes)
            extension = source.rpartition(".")[2] if source is not name else ""
            [view] = decode_image(payload, settings, limits, sample_id="", extension=extension)
            notes += _notes_of_file(payload, settings)
        else:
            if isinstance(image, Image.Image):
                picture, source = image, f"{name}, Pillow's {image.mode}"
            else:
                picture, source = _picture_of_array(image, name)
            [view] = views_of_picture(picture, settings, limits, sample_id="")
            notes += _notes_of_picture(picture, settings)
    except DecodeError as error:
        where = source if source.startswith(name) or isinstance(image, bytes) else f"{name}, {source}"
        elsewhere = f"; {_ELSEWHERE}" if error.reason == "not_an_image" else ""
        raise DecodeError(error.reason, f"{where}: {error.detail}{elsewhere}") from error
    pixels_3HW = torch.from_numpy(view.pixels[0])
    height, width = pixels_3HW.shape[1:]
    return pixels_3HW, Preparation(
        source=source,
        width=view.width,
        height=view.height,
        crop=view.crop,
        size=(int(width), int(height)),
        notes=tuple(notes),
        settings=settings,
    )


def _read(url: str, most_bytes: int) -> bytes:
    from tatok.schemas.urls import open_to_read

    try:
        with open_to_read(url) as file:
            payload = file.read(most_bytes + 1)
    except FileNotFoundError as error:
        pattern = "; it is taken as a file's name, not as a pattern" if any(each in url for each in "*?{") else ""
        cause = f" ({error.__cause__})" if error.__cause__ else ""  # such as a server that does not answer
        raise SourceError(f"there is no file {url}{cause}{pattern}", is_permanent=True) from error
    except ImportError as error:
        raise ConfigError(f"cannot read {url}: {error}", remedy="install the scheme's fsspec package") from error
    except (IsADirectoryError, ValueError) as error:
        raise SourceError(f"cannot read {url} as an image: {error}; {_ELSEWHERE}", is_permanent=True) from error
    except Exception as error:  # every fsspec backend has exceptions of its own
        raise SourceError(f"cannot read {url}: {error}") from error
    if len(payload) > most_bytes:
        raise SourceError(f"{url} has more than {most_bytes:,} bytes; {_ELSEWHERE}", is_permanent=True)
    return payload


def _picture_of_array(array: object, name: str) -> tuple[Image.Image, str]:
    """A picture of uint8 pixels, and in words as what they were taken. Raises ValueError."""
    from PIL import Image

    if isinstance(array, Tensor):
        dtype, pixels = str(array.dtype), array.detach().cpu().numpy() if array.dtype is torch.uint8 else None
    elif isinstance(array, np.ndarray):
        dtype, pixels = str(array.dtype), array if array.dtype == np.uint8 else None
    else:
        raise ValueError(
            f"{name} is a {type(array).__name__}; expected a PIL image, a path or URL, bytes of a file, a uint8 array"
        )
    shape: list[int] = list(array.shape)
    if pixels is None:
        raise ValueError(
            f"{name} is {dtype} {shape}; expected torch.uint8 or numpy.uint8 in 0 .. 255: floats in 0 .. 1 become that "
            "by (255 * x).round() and a cast, wider integers by what their white is"
        )
    if pixels.ndim == 2:
        return Image.fromarray(pixels), f"{name}, array {shape} as grey"
    is_last, is_first = (pixels.ndim == 3 and shape[axis] in _CHANNELS for axis in (-1, 0))
    if is_last == is_first:
        what = "may have its channels first or last" if is_last else "has no axis of 1, 3 or 4 channels"
        raise ValueError(f"{name} is an array {shape} and {what}; expected uint8 [H, W], [H, W, C] or [C, H, W]")
    if is_first:
        pixels = pixels.transpose(1, 2, 0)
    order = "[channels, rows, columns]" if is_first else "[rows, columns, channels]"
    pixels = np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return Image.fromarray(pixels), f"{name}, array {shape} as {order}"


def _notes_of_file(payload: bytes, settings: Preprocessing) -> Iterator[str]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it was decoded within the limits already
        try:
            opened = Image.open(io.BytesIO(payload))
        except (OSError, ValueError, SyntaxError):
            yield "read without what is damaged beside its pixels"
            return
        with opened as picture:
            yield from _notes_of_picture(picture, settings)


def _notes_of_picture(picture: Image.Image, settings: Preprocessing) -> Iterator[str]:
    orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation != 1:
        yield f"turned upright as its EXIF block says ({orientation})"
    num_frames = getattr(picture, "n_frames", 1)
    if num_frames > 1:
        yield f"one of {num_frames} frames"
    if picture.mode != "RGB" and picture.mode != "RGBA":
        yield f"RGB out of {_MODES.get(picture.mode, picture.mode)}"
    if picture.has_transparency_data:
        yield f"transparent pixels over RGB {settings.background}"
    if picture.info.get("icc_profile") and settings.icc_profiles == "apply":
        yield "its colour profile followed to sRGB"
