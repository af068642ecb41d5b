"""The frozen tokenizer beneath an adapted model: loaded by its name, onto each device when it is first asked there.

It is no module: neither its weights nor a copy of it are in a state, a checkpoint or a moving average.

Shapes: B images, h and w rows and columns of its grid, C width of its vectors, K codes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tatok.frozen.config import Over
from tatok.model.row_chunks import row_chunks
from tatok.schemas.errors import ConfigError, TatokError

__all__ = ["FrozenTokenizer"]

LoadFrozen = Callable[[str, Mapping[str, Any], str], tuple[Any, dict[str, str]]]
"""(name, options, device) -> an object with the members of `tatok.tokenizer.protocol.FixedRateTokenizer`, and all that
is its identity."""


class FrozenTokenizer:
    """Codes, vectors and pixels of a tokenizer that `over` names; safe to use from several threads.

    Where `over` has an identity, a tokenizer that says another one is refused: ConfigError names both. ConfigError,
    too, where it lacks what adapting needs: one code a position, a grid, `embed`, and a way back to pixels.
    """

    def __init__(self, over: Over, load: LoadFrozen) -> None:
        self.over = over
        self._load = load
        self._lock = threading.Lock()
        self._on: dict[torch.device, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTokenizer:
        return self  # what is frozen needs no second copy

    def on(self, device: torch.device) -> Any:
        """The user's object on a device."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        with self._lock:
            if device not in self._on:
                self._on[device] = self._checked(*self._load(self.over.tokenizer, self.over.options, str(device)))
            return self._on[device]

    @property
    def name(self) -> str:
        """As messages call it."""
        return self.over.tokenizer

    def codes(self, pixels: Tensor) -> Tensor:
        """Codes, int64 [B, h, w], of uint8 images [B, 3, H, W]."""
        inner = self.on(pixels.device)
        with _as_it_is(pixels.device):
            found = torch.as_tensor(inner.encode(pixels))
        if found.is_floating_point():
            raise TatokError(f"{self.name} returned codes of type {found.dtype}; they must be whole numbers")
        codes = found.to(pixels.device, torch.int64)
        sides = tuple(side // inner.patch_size for side in pixels.shape[2:])
        if codes.shape != (len(pixels), *sides):
            raise TatokError(
                f"{self.name} returned codes of shape {list(codes.shape)} for images {list(pixels.shape)}; adapting "
                f"needs one code for each of {sides[0]} x {sides[1]} positions"
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < inner.vocab_size:
            raise TatokError(f"{self.name} returned codes outside 0 .. {inner.vocab_size - 1}, its vocab_size")
        return codes

    def codebook(self, device: torch.device) -> Tensor:
        """The vectors of all codes, float32 [K, C]; raises ConfigError unless `embed` looks each code up by itself."""
        inner = self.on(device)
        every = torch.arange(inner.vocab_size, device=device)
        with _as_it_is(device):
            codebook_KC = torch.as_tensor(inner.embed(every[None, None])).float()[0, :, 0].T.contiguous()
            few = every[:: max(1, len(every) // 16)][:16]
            again = torch.as_tensor(inner.embed(few.flip(0)[None, :, None])).float()[0, :, :, 0].T
        if len(codebook_KC) != len(every) or not torch.allclose(again, codebook_KC[few.flip(0)], rtol=1e-3, atol=1e-5):
            raise ConfigError(
                f"{self.name}: embed must give each code the vector of its codebook, whatever codes are beside it; "
                f"it gave {list(codebook_KC.shape)} for {len(every)} codes"
            )
        return codebook_KC

    def pixels_of_vectors(self, vectors_BChw: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W]; where it decodes codes alone, of the nearest code to each vector."""
        device = vectors_BChw.device
        inner = self.on(device)
        height, width = (side * inner.patch_size for side in vectors_BChw.shape[2:])
        with _as_it_is(device):
            if hasattr(inner, "decode_embedded"):
                pixels = inner.decode_embedded(vectors_BChw)
            else:
                pixels = inner.decode(_nearest_codes(vectors_BChw, self.codebook(device)), height, width)
        pixels = torch.as_tensor(pixels)
        wanted = (len(vectors_BChw), 3, height, width)
        if pixels.dtype is not torch.uint8 or tuple(pixels.shape) != wanted:
            raise TatokError(
                f"{self.name} decoded to {pixels.dtype} {list(pixels.shape)}; expected torch.uint8 {list(wanted)}"
            )
        return pixels.to(device)

    def _checked(self, inner: Any, identity: dict[str, str]) -> Any:
        for member, why in (
            ("encode", "images -> codes"),
            ("embed", "codes -> the vectors of its codebook"),
        ):
            if not hasattr(inner, member):
                raise ConfigError(f"{self.name} has no {member} ({why}), which adapting needs; see its protocol.py")
        if getattr(inner, "codes_per_position", 1) != 1:
            raise ConfigError(
                f"{self.name} gives {inner.codes_per_position} codes a position; a tokenizer of one can be adapted"
            )
        if not (hasattr(inner, "decode") or hasattr(inner, "decode_embedded")):
            raise ConfigError(f"{self.name} has neither decode nor decode_embedded; adapting needs one of them")
        wanted = dict(self.over.identity)
        changed = [
            f"{name} {identity.get(name)!r}, was {wanted.get(name)!r}"
            for name in sorted({*identity, *wanted})
            if identity.get(name) != wanted.get(name)
        ]
        if wanted and changed:
            raise ConfigError(
                f"{self.name} is another tokenizer than the checkpoint was trained over: {'; '.join(changed)}",
                remedy="load the tokenizer that it was trained over, or run `tatok adapt` again over this one",
            )
        return inner


@contextmanager
def _as_it_is(device: torch.device) -> Iterator[None]:
    """In the precision that it was made in, and without gradients."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _nearest_codes(vectors_BChw: Tensor, codebook_KC: Tensor) -> Tensor:
    """The code, int64 [B, h, w], whose vector is nearest."""
    rows_VC = vectors_BChw.movedim(1, -1).flatten(0, 2)
    parts = row_chunks(rows_VC, len(codebook_KC))
    codes = torch.cat([torch.cdist(part, codebook_KC).argmin(1) for part in parts])
    return codes.view(len(vectors_BChw), *vectors_BChw.shape[2:])
