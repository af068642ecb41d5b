"""Tokenizers of both of protocol.py's tiers as the pipeline wants them, and for images of every kind."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatok.schemas.errors import ConfigError, TatokError
from tatok.schemas.records import Grid, TokenSequence, count_text
from tatok.schemas.token_batch import EntropyColumns, TokenBatch
from tatok.schemas.tokens import MAX_POSITIONS, code_dtype
from tatok.tokenizer.images import TakesImages
from tatok.tokenizer.launching import sent
from tatok.tokenizer.protocol import AnyTokenizer, Codes, EncodesAhead, FixedRateTokenizer

__all__ = ["FixedRate", "WithIdentity", "WrongCodes"]


class WrongCodes(TatokError):
    """What a user's tokenizer returned are no codes of the pixels; `is_range`: they are, but for their values."""

    def __init__(self, message: str = "", *, is_range: bool = False) -> None:
        super().__init__(message)
        self.is_range = is_range


class FixedRate(TakesImages[TokenBatch]):
    """An `AnyTokenizer` of a `FixedRateTokenizer`: no globals, every position kept, its codes in raster order.

    What the object returns is checked as to shape and range: WrongCodes says what is wrong, and calls it `name`.
    Raises ConfigError where the object lacks a member, or has one that cannot be.
    """

    def __init__(
        self,
        inner: FixedRateTokenizer,
        device: str | torch.device = "cpu",
        *,
        name: str = "the tokenizer",
        also: Mapping[str, str] | None = None,
    ) -> None:
        """`also` are further entries of the identity, of which the object's own must have none."""
        self.device = torch.device(device)
        self._inner: Any = inner
        self._name = name
        for member in ("vocab_size", "patch_size", "identity"):
            if not hasattr(inner, member):
                raise ConfigError(f"{name} has no {member}; tatok.tokenizer.protocol says what it must have")
        self.vocab_size = self._count("vocab_size", inner.vocab_size)
        self.patch_size = self._count("patch_size", inner.patch_size)
        self.num_global = 0
        self.codes_per_position = self._count("codes_per_position", getattr(inner, "codes_per_position", 1))
        self._dtype = code_dtype(self.vocab_size)
        self._image_size = _sides(getattr(inner, "image_size", None), name)
        if not (hasattr(inner, "encode") or hasattr(inner, "encode_clips")):
            raise ConfigError(f"{name} has neither encode nor encode_clips; it needs one of them")
        self.has_entropy = hasattr(inner, "entropy_bits")
        if self.has_entropy != hasattr(inner, "surprisal_bits"):
            raise ConfigError(f"{name} has one of entropy_bits and surprisal_bits; write both, or neither")
        self.identity = self._identity_with({"torch": torch.__version__.partition("+")[0], **(also or {})})
        self.fingerprint = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._name

    @property
    def inner(self) -> FixedRateTokenizer:
        """The object that it was made of."""
        inner: FixedRateTokenizer = self._inner
        return inner

    @property
    def can_decode(self) -> bool:
        """Whether there is any way back to pixels."""
        return hasattr(self._inner, "decode") or hasattr(self._inner, "decode_clips")

    def __repr__(self) -> str:
        codes = f", {self.codes_per_position} a position" if self.codes_per_position > 1 else ""
        return (
            f"FixedRate({self._name}: every patch of {self.patch_size}x{self.patch_size}, "
            f"{self.vocab_size:,} codes{codes}; {self.device})"
        )

    def _encode_pixels(self, pixels: Tensor) -> TokenBatch:
        if pixels.ndim != 4:
            raise ValueError(f"pixels are {list(pixels.shape)}; expected [B, 3, H, W]")
        return self.encode_clips(pixels.unsqueeze(1))

    def encode_clips(self, pixels: Tensor) -> TokenBatch:
        """Tokenize uint8 clips [B, T, 3, H, W], T >= 1; frame by frame where the tokenizer knows images alone.

        Raises ValueError where the pixels are of another type or shape, WrongCodes where the codes are.
        """
        return self.encode_clips_async(pixels).result()

    @torch.inference_mode()
    def encode_clips_async(self, pixels: Tensor) -> _PendingCodes:
        """As `encode_clips`, in two steps: on CUDA the device may still be at work when this returns.

        It is done where the codes are no tensor on CUDA, and where the object is asked for their entropies, too. Pixels
        in pinned memory must not change meanwhile.
        """
        self._check_pixels(pixels)
        on_device = sent(pixels, self.device)
        are_frames = hasattr(self._inner, "encode") and (
            pixels.shape[1] == 1 or not hasattr(self._inner, "encode_clips")
        )
        codes = self._asked("encode", on_device.flatten(0, 1)) if are_frames else self._asked("encode_clips", on_device)
        pending = _PendingCodes(self, codes, pixels.shape, are_frames=are_frames)
        if self.has_entropy:
            pending.result()
        return pending

    @torch.inference_mode()
    def sequences(self, codes: np.ndarray, shape: Sequence[int], *, are_frames: bool) -> TokenBatch:
        """What the object returned for clips [B, T, 3, H, W] of that shape, or for all their frames, as sequences."""
        num_clips, num_frames = shape[:2]
        if are_frames:
            self._require(len(codes) == num_clips * num_frames, codes, count_text(num_clips * num_frames, "image"))
            codes = codes.reshape(num_clips, num_frames, *codes.shape[1:])
        else:
            self._require(len(codes) == num_clips, codes, count_text(num_clips, "clip"))
        grid = self._grid(codes, shape)
        self._check_range(codes)
        num_positions = grid.num_positions
        places = np.repeat(np.arange(num_positions, dtype=np.uint16), self.codes_per_position)
        empty = None if grid.frames == 1 else np.empty(0, np.uint16)
        offsets = np.arange(num_clips + 1, dtype=np.int64) * len(places)
        return TokenBatch(
            codes=codes.astype(self._dtype).reshape(-1),
            code_offsets=offsets,
            positions=np.tile(places, num_clips),
            position_offsets=offsets,
            num_global_B=np.zeros(num_clips, np.int64),
            grid=grid,
            entropy=self._entropy(codes, num_positions) if self.has_entropy else None,
            global_frames=empty,
            global_cells=empty,
            num_frames=None if num_frames == grid.frames else num_frames,
        )

    def _decode_pixels(self, sequences: Sequence[TokenSequence]) -> Tensor:
        for number, sequence in enumerate(sequences):
            if sequence.grid.frames != 1 or sequence.num_frames not in (None, 1):
                raise ValueError(f"sequence {number} is a clip; use decode_clips")
        return self.decode_clips(sequences).flatten(0, 1)

    @torch.inference_mode()
    def decode_clips(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Rebuild clips, uint8 [B, T, 3, H, W], from sequences of one grid.

        Raises ValueError where grids differ, codes are out of range or a position is missing; ConfigError where the
        tokenizer cannot decode; TatokError where it returns something else.
        """
        if not len(sequences):
            return torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8)
        grid, told_frames = sequences[0].grid, sequences[0].num_frames
        codes = self._checked_codes(sequences, grid, told_frames)
        num_frames = grid.frames if told_frames is None else told_frames
        height, width = self._pixels_of(grid)
        inner, shape = self._inner, codes.shape
        if hasattr(inner, "decode") and (num_frames == 1 or not hasattr(inner, "decode_clips")):
            if num_frames != grid.frames:
                raise ConfigError(f"{self._name} has no decode_clips, and its codes are not of single frames")
            rebuilt = self._asked("decode", codes.flatten(0, 1), height, width)
            wanted: tuple[int, ...] = (shape[0] * num_frames, 3, height, width)
        elif hasattr(inner, "decode_clips"):
            rebuilt = self._asked("decode_clips", codes, num_frames, height, width)
            wanted = (shape[0], num_frames, 3, height, width)
        else:
            raise ConfigError(f"{self._name} has no decode, so that its tokens cannot be shown as pixels")
        rebuilt = torch.as_tensor(rebuilt)
        if rebuilt.dtype != torch.uint8 or tuple(rebuilt.shape) != wanted:
            raise TatokError(
                f"{self._name} decoded to {rebuilt.dtype} {list(rebuilt.shape)}; expected torch.uint8 {list(wanted)}"
            )
        return rebuilt.reshape(shape[0], num_frames, 3, height, width)

    def _asked(self, member: str, *arguments: Any) -> Any:
        """What a member of the object returns; what it raises says the object's name, and where in its code."""
        try:
            return getattr(self._inner, member)(*arguments)
        except (
            RuntimeError,
            TatokError,
        ):  # a device's memory or its end, which the pipeline knows by what torch raises
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise TatokError(
                f"{self._name}, {member}: {type(error).__name__}: {error} ({Path(frame.filename).name}, line "
                f"{frame.lineno})"
            ) from error

    def _count(self, member: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self._name} has {member} {value!r}; it must be a whole number of at least 1")
        return value

    def _identity_with(self, also: Mapping[str, str]) -> dict[str, str]:
        identity = self._inner.identity
        entries = {"identity": identity} if isinstance(identity, str) else dict(identity)
        wrong = [name for name, text in entries.items() if not isinstance(text, str) or name in also]
        if wrong:
            raise ConfigError(
                f"{self._name}: identity has {', '.join(map(str, wrong))}; entries are texts, and not {', '.join(also)}"
            )
        return {**entries, **also}

    def _check_pixels(self, pixels: Tensor) -> None:
        if pixels.dtype is not torch.uint8 or pixels.ndim != 5 or pixels.shape[2] != 3 or not pixels.shape[1]:
            raise ValueError(f"clips are {pixels.dtype} {list(pixels.shape)}; expected torch.uint8 [B, T, 3, H, W]")
        height, width = pixels.shape[3:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"images of {width}x{height} pixels; sides must be multiples of {self.patch_size}")
        if self._image_size not in (None, (height, width)):
            tall, wide = self._image_size
            raise TatokError(
                f"{self._name} takes images of {wide}x{tall} pixels alone, and these are {width}x{height}; set "
                f"preprocessing.image_size to {wide}"
            )

    def _require(self, is_so: bool, codes: np.ndarray, of: str) -> None:
        if not is_so:
            raise WrongCodes(f"{self._name} returned codes of shape {list(codes.shape)} for {of}")

    def _grid(self, codes: np.ndarray, shape: Sequence[int]) -> Grid:
        """The grid of codes [B, t, h, w] or [B, t, L], either with Q at the end where there are several."""
        num_frames, height, width = shape[1], *shape[3:]
        what = f"clips of {num_frames} frames of {width}x{height} pixels"
        *sides, last = codes.shape[1:] if self.codes_per_position > 1 else (*codes.shape[1:], 1)
        self._require(last == self.codes_per_position, codes, f"{self.codes_per_position} codes a position")
        self._require(len(sides) in (2, 3) and 1 <= sides[0] <= num_frames, codes, what)
        if len(sides) == 2:
            if self._image_size is None:
                raise WrongCodes(f"{self._name} gives lists of codes, which have no grid; give it image_size")
            grid = Grid(sides[0], 1, sides[1])
        else:
            grid = Grid(*sides)
            wanted = (height // self.patch_size, width // self.patch_size)
            self._require(grid[1:] == wanted, codes, f"{what}; patch_size {self.patch_size} makes {wanted} of them")
        if not 1 <= grid.num_positions <= MAX_POSITIONS:
            raise TatokError(f"{self._name}: {what} have {grid.num_positions:,} positions; at most {MAX_POSITIONS:,}")
        return grid

    def _check_range(self, codes: np.ndarray) -> None:
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
            raise WrongCodes(
                f"{self._name} returned codes in {codes.min()} .. {codes.max()}; its vocab_size is {self.vocab_size}",
                is_range=True,
            )

    def _entropy(self, codes: np.ndarray, num_positions: int) -> EntropyColumns:
        on_device = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        found = {}
        for member in ("entropy_bits", "surprisal_bits"):
            bits = torch.as_tensor(self._asked(member, on_device)).cpu().double().numpy()
            if bits.size != len(codes) * num_positions or not (np.isfinite(bits) & (bits >= 0)).all():
                raise TatokError(f"{self._name}: {member} must give a number of bits for each of the positions")
            found[member] = bits.reshape(len(codes), num_positions)
        entropy_BN = found["entropy_bits"]
        total_B = entropy_BN.sum(1)
        return EntropyColumns(
            entropy_bits=total_B,
            kept_entropy_bits=total_B,
            residual_bits=np.zeros(len(codes)),
            surprisal_bits=found["surprisal_bits"].sum(1),
            entropy_mean_bits=total_B / num_positions,
            entropy_max_bits=entropy_BN.max(1),
            patch_entropy_bits_BN=entropy_BN.astype(np.float32),
        )

    def _checked_codes(self, sequences: Sequence[TokenSequence], grid: Grid, num_frames: int | None) -> Tensor:
        """Codes as the tokenizer gave them, int64 on its device."""
        places = np.repeat(np.arange(grid.num_positions), self.codes_per_position)
        for number, sequence in enumerate(sequences):
            if (sequence.grid, sequence.num_frames) != (grid, num_frames):
                raise ValueError(f"sequence {number} has grid {tuple(sequence.grid)}, the first has {tuple(grid)}")
            if sequence.num_global or not np.array_equal(sequence.positions, places):
                raise ValueError(f"sequence {number} does not have {self.codes_per_position} codes at every position")
            codes = sequence.codes
            if len(codes) != len(places) or not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
                raise ValueError(f"sequence {number} has codes outside 0 .. {self.vocab_size - 1}, or too few")
        sides = [grid.frames, grid.width] if self._is_list(grid) else list(grid)
        if self.codes_per_position > 1:
            sides.append(self.codes_per_position)
        stacked = np.stack([sequence.codes for sequence in sequences]).astype(np.int64)
        return torch.from_numpy(stacked.reshape(len(sequences), *sides)).to(self.device)

    def _is_list(self, grid: Grid) -> bool:
        if self._image_size is None:
            return False
        height, width = self._image_size
        return grid[1:] != (height // self.patch_size, width // self.patch_size)

    def _pixels_of(self, grid: Grid) -> tuple[int, int]:
        if self._image_size is not None:
            return self._image_size
        return grid.height * self.patch_size, grid.width * self.patch_size


class _PendingCodes:
    """What a `FixedRate`'s object returned, on its way from the device; a `Pending`."""

    def __init__(self, tokenizer: FixedRate, codes: Codes, shape: Sequence[int], *, are_frames: bool) -> None:
        self._tokenizer = tokenizer
        self._shape = shape  # of the pixels, which need not stay for it
        self._are_frames = are_frames
        self._codes, self._arrived = codes, None
        self._batch: TokenBatch | None = None
        if isinstance(codes, Tensor) and codes.device.type == "cuda":
            self._codes = torch.empty(codes.shape, dtype=codes.dtype, pin_memory=True)
            self._codes.copy_(codes, non_blocking=True)
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record(torch.cuda.current_stream(codes.device))

    def is_done(self) -> bool:
        return self._arrived is None or bool(self._arrived.query())

    def wait(self) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()

    def result(self) -> TokenBatch:
        if self._batch is None:
            self.wait()
            codes = _as_array(self._codes, self._tokenizer.name)
            self._batch = self._tokenizer.sequences(codes, self._shape, are_frames=self._are_frames)
        return self._batch


class WithIdentity(TakesImages[Sequence[TokenSequence]]):
    """A tokenizer of the upper tier, whose identity also says by which code and options it was made."""

    def __init__(self, tokenizer: AnyTokenizer, also: Mapping[str, str], name: str) -> None:
        self._name = name
        twice = sorted(set(also) & set(tokenizer.identity))
        if twice:
            raise ConfigError(f"{name}: identity has {', '.join(twice)}, which tatok notes itself; leave it out")
        self._tokenizer = tokenizer
        self.identity = {**tokenizer.identity, **also}
        self.fingerprint = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        self.vocab_size = tokenizer.vocab_size
        self.patch_size = tokenizer.patch_size
        self.num_global = tokenizer.num_global
        self.codes_per_position = tokenizer.codes_per_position
        self.has_entropy = tokenizer.has_entropy
        if isinstance(tokenizer, EncodesAhead):
            self.encode_clips_async = tokenizer.encode_clips_async

    def __repr__(self) -> str:
        return f"{type(self._tokenizer).__name__}({self._name}: {self.vocab_size:,} codes, patch {self.patch_size})"

    def _encode_pixels(self, pixels: Tensor) -> Sequence[TokenSequence]:
        return self._tokenizer.encode(pixels)

    def _decode_pixels(self, sequences: Sequence[TokenSequence]) -> Tensor:
        return self._tokenizer.decode(sequences)

    def encode_clips(self, pixels: Tensor) -> Sequence[TokenSequence]:
        """As the tokenizer does."""
        return self._tokenizer.encode_clips(pixels)

    def decode_clips(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """As the tokenizer does."""
        return self._tokenizer.decode_clips(sequences)


def _as_array(codes: Codes, name: str) -> np.ndarray:
    array = codes.detach().cpu().numpy() if isinstance(codes, Tensor) else np.asarray(codes)
    if not np.issubdtype(array.dtype, np.integer):
        raise WrongCodes(f"{name} returned codes of type {array.dtype}; they must be whole numbers")
    return array


def _sides(size: object, name: str) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else size
    if not (isinstance(sides, Sequence) and len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides)):
        raise ConfigError(f"{name} has image_size {size!r}; it must be (height, width), in pixels")
    return int(sides[0]), int(sides[1])
