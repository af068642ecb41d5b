"""An encoder and a decoder as TorchScript, `encoder.jit` and `decoder.jit`: NVIDIA Cosmos' discrete tokenizers.

TorchScript is code: it is loaded only where `trust_torchscript: true` says that one trusts where it comes from.

    images (DI)    encoder: [B, 3, H, W] -> indices [B, h, w]          decoder: indices -> [B, 3, H, W]
    clips (DV)     encoder: [B, 3, T, H, W] -> indices [B, t, h, w]    decoder: indices -> [B, 3, T, H, W]

Pixels are in [-1, 1], an encoder may return more behind its indices, and clips are causal: a first frame, and then
groups of four or eight. Pixels a step and frames a step are found out by encoding a grey image or clip. A script keeps
the number type that it was saved with (Cosmos' are bfloat16) unless `dtype` says otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tatok.adapters.saved_model import SavedModel, checked_device, open_saved_model
from tatok.model.pixels import to_float, to_pixels
from tatok.precision import computing
from tatok.schemas.errors import ConfigError

__all__ = ["ScriptedClips", "ScriptedImages", "load"]

_COSMOS_CODES = 8 * 8 * 8 * 5 * 5 * 5  # finite scalar quantization at these levels
_GREY_SIDE, _GREY_FRAMES = 64, 9
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Scripts:
    """What tokenizers of images and of clips share; raises ConfigError where the encoder gives no codes."""

    covered_options = ("path", "revision", "subfolder", "trust_torchscript")

    def __init__(self, encoder: Any, decoder: Any, vocab_size: int, identity: Mapping[str, str], grey: Tensor) -> None:
        """`grey` is an image or a clip of 64 pixels a side, as the encoder takes it."""
        self.identity = identity
        self.vocab_size = vocab_size
        self._encoder = encoder
        self._decoder = decoder
        self._type = next((each.dtype for each in encoder.parameters() if each.is_floating_point()), torch.float32)
        try:
            codes = self._codes(grey)
        except RuntimeError as error:
            raise ConfigError(
                f"the encoder does not take a tensor of {list(grey.shape)}: {str(error).strip().splitlines()[-1]}",
                remedy="set tokenizer_options.video: true for one of clips, false for one of images",
            ) from error
        if codes.is_floating_point() or codes.ndim != grey.ndim - 1:
            raise ConfigError(
                f"the encoder returns {codes.dtype} {list(codes.shape)}, which are no codes",
                remedy="take a discrete tokenizer, Cosmos' DI or DV; CI and CV are continuous",
            )
        self.patch_size = _GREY_SIDE // codes.shape[-1]
        self._grey_steps = int(codes.shape[1])

    def _codes(self, floats: Tensor) -> Tensor:
        with torch.inference_mode(), computing("float32", floats.device):
            found = self._encoder(floats.to(self._type))
        return found[0] if isinstance(found, tuple | list) else found

    def _pixels(self, codes: Tensor) -> Tensor:
        with torch.inference_mode(), computing("float32", codes.device):
            return to_pixels(self._decoder(codes.int()).float())  # as int32, the type that encoders return


class ScriptedImages(_Scripts):
    """A tokenizer of images."""

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> codes [B, h, w]."""
        return self._codes(to_float(pixels))

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B, h, w] -> uint8 [B, 3, height, width]."""
        return self._pixels(codes)


class ScriptedClips(_Scripts):
    """A causal tokenizer of clips, to which an image is a clip of one frame."""

    def __init__(self, encoder: Any, decoder: Any, vocab_size: int, identity: Mapping[str, str], grey: Tensor) -> None:
        super().__init__(encoder, decoder, vocab_size, identity, grey)
        later_frames, later_steps = grey.shape[2] - 1, self._grey_steps - 1
        if not 1 <= later_steps <= later_frames or later_frames % later_steps:
            raise ConfigError(
                f"the encoder gives {self._grey_steps} steps for {grey.shape[2]} frames; a causal one gives one for "
                "the first frame, and one for each group of those behind it"
            )
        self._frames_a_step = later_frames // later_steps

    def encode_clips(self, pixels: Tensor) -> Tensor:
        """uint8 [B, T, 3, H, W] -> codes [B, t, h, w]; raises ConfigError where T is not 1 and groups of frames."""
        num_frames, step = pixels.shape[1], self._frames_a_step
        if (num_frames - 1) % step:
            raise ConfigError(
                f"clips have {num_frames} frames; this tokenizer takes 1 + a multiple of {step}",
                remedy=f"set video.frames_per_clip to {1 + -(-(num_frames - 1) // step) * step}",
            )
        return self._codes(to_float(pixels).transpose(1, 2))

    def decode_clips(self, codes: Tensor, num_frames: int, height: int, width: int) -> Tensor:
        """Codes [B, t, h, w] -> uint8 [B, num_frames, 3, height, width]."""
        return self._pixels(codes).transpose(1, 2)


def load(
    device: str,
    *,
    path: str,
    revision: str | None = None,
    subfolder: str = "",
    trust_torchscript: bool = False,
    video: bool = False,
    vocab_size: int = _COSMOS_CODES,
    dtype: str | None = None,
) -> ScriptedImages | ScriptedClips:
    """The scripts in a folder, or in a repository of the hub (`owner/name`), onto a device.

    Raises ConfigError where nobody said that the code is trusted, or the scripts cannot be read, or the encoder gives
    no codes.
    """
    if trust_torchscript is not True:
        raise ConfigError(
            f"{path}: TorchScript is code, which runs here as you",
            remedy="set tokenizer_options.trust_torchscript: true if you trust those who made it",
        )
    if dtype not in (None, *_TYPES):
        raise ConfigError(f"tokenizer_options.dtype is {dtype!r}; it is one of {', '.join(_TYPES)}")
    chosen = checked_device(device)
    saved = open_saved_model(path, revision, subfolder)
    encoder, sha256 = _script(saved, "encoder.jit", chosen, dtype)
    decoder, _ = _script(saved, "decoder.jit", chosen, dtype)
    identity = {"encoder_sha256": sha256, "dtype": dtype or "as saved"}
    sides = (_GREY_SIDE, _GREY_SIDE)
    grey = torch.zeros(1, 3, *((_GREY_FRAMES, *sides) if video else sides), device=chosen)
    return (ScriptedClips if video else ScriptedImages)(encoder, decoder, vocab_size, identity, grey)


def _script(saved: SavedModel, name: str, device: torch.device, dtype: str | None) -> tuple[Any, str]:
    """A script in eval mode, and the SHA-256 of its file."""
    if name not in saved.names:
        raise ConfigError(f"{saved.place} has no {name}; it has {', '.join(sorted(saved.names)[:8]) or 'nothing'}")
    file = saved.fetch(name)
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        script = torch.jit.load(file, map_location=device).eval()
    except RuntimeError as error:
        raise ConfigError(
            f"{saved.place}: {name} is damaged or no TorchScript: {str(error).splitlines()[0]}"
        ) from error
    return (script.to(_TYPES[dtype]) if dtype else script), sha256
