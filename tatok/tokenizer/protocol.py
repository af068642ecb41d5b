"""What a tokenizer is: to the pipeline (`AnyTokenizer`), and to somebody who brings one (`FixedRateTokenizer`).

A tokenizer of your own is an object with the members of `FixedRateTokenizer`, made by a function of a module or file
that the job names (`tokenizer: my_tokenizer.py:load`):

    class Tokenizer:
        vocab_size, patch_size, identity = 8192, 16, "vq of May, weights 3f2a..."

        def __init__(self, device): self.model = torch.jit.load("vq.pt", device)
        def encode(self, pixels): return self.model.encode(pixels / 127.5 - 1)                    # [B, h, w]
        def decode(self, codes, height, width): return ((self.model.decode(codes) + 1) * 127.5).clamp(0, 255).byte()

    def load(device): return Tokenizer(device)

Everything else (rows, variable length, storage, resuming, checks) is the pipeline's. Where a tokenizer gives images
different numbers of tokens, it implements `AnyTokenizer` itself.

Shapes in names: B images or clips, T frames of pixels, t steps in time of the grid, h and w rows and columns of the
grid, L codes of a list, Q codes of one position, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from tatok.schemas.records import TokenSequence

__all__ = ["AnyTokenizer", "EncodesAhead", "FixedRateTokenizer", "Pending"]


class AnyTokenizer(Protocol):
    """What the pipeline calls: images or clips of one size in, one `TokenSequence` each out, in order, and back.

    It must be deterministic, give an image the same tokens whatever else is in its batch, and be safe to call from
    several threads. `tatok check-tokenizer` tries all of it.
    """

    @property
    def identity(self) -> Mapping[str, str]:
        """What fixes the tokens of given pixels, by name: texts such as a hash of the weights, and settings.

        A dataset is resumed only by a tokenizer of equal identity; it must be equal in every process and on every
        device.
        """

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of `identity`."""

    @property
    def vocab_size(self) -> int:
        """Codes are in 0 .. vocab_size - 1; at most 2**32. Up to 65,536 they are stored in two bytes, else in four."""

    @property
    def patch_size(self) -> int:
        """Pixels a step of the grid: sides of images are multiples of it."""

    @property
    def num_global(self) -> int:
        """Tokens of every image that belong to no position; 0 for most tokenizers."""

    @property
    def codes_per_position(self) -> int:
        """Q: 1, but for residual and product quantizers. A kept position has Q codes, which follow each other."""

    @property
    def has_entropy(self) -> bool:
        """Whether its sequences say entropies; where they do not, these columns are null."""

    def encode(self, pixels: Tensor) -> Sequence[TokenSequence]:
        """Images, uint8 [B, 3, H, W] in 0 .. 255, RGB."""

    def decode(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Images, uint8 [B, 3, H, W], from sequences of one grid.

        Raises ValueError where codes, positions or grids are not possible, ConfigError if the tokenizer cannot decode.
        """

    def encode_clips(self, pixels: Tensor) -> Sequence[TokenSequence]:
        """Clips, uint8 [B, T, 3, H, W]; images are clips of one frame."""

    def decode_clips(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Clips, uint8 [B, T, 3, H, W]; raises as `decode` does."""


class Pending(Protocol):
    """A batch that a device may still be working on."""

    def is_done(self) -> bool:
        """Whether `wait` would not have to wait."""

    def wait(self) -> None:
        """Return when the device has done its part; raises what went wrong there."""

    def result(self) -> Sequence[TokenSequence]:
        """The sequences, once they are there."""


@runtime_checkable
class EncodesAhead(Protocol):
    """An `AnyTokenizer` whose device can be given a batch before the last one is done; jobs then do so.

    Without it nothing else changes. Batches are started one at a time, and waited for by any thread, in any order.
    """

    def encode_clips_async(self, pixels: Tensor) -> Pending:
        """As `encode_clips`, in two steps."""


class FixedRateTokenizer(Protocol):
    """What to write to bring a tokenizer that gives every image of a size the same number of codes.

    `fixed_rate.FixedRate` makes an `AnyTokenizer` of it. These three members must be there, and one of:

    encode(pixels)                    uint8 [B, 3, H, W] -> codes [B, h, w], or [B, L] where they form no grid
    encode_clips(pixels)              uint8 [B, T, 3, H, W] -> codes [B, t, h, w], or [B, t, L]; t may be less than T

    Codes are integers in 0 .. vocab_size - 1, a tensor or an array, on any device. Pixels come on the device that the
    function which made the object was given, in inference mode, with sides that are multiples of patch_size:
    h = H / patch_size, w = W / patch_size. Without `encode`, images are clips of one frame, which must give t = 1;
    without `encode_clips`, clips are encoded frame by frame.

    These may be there:

    decode(codes, height, width)      codes as `encode` gave them, int64 -> uint8 [B, 3, height, width]
    decode_clips(codes, num_frames, height, width)
                                      codes as `encode_clips` gave them -> uint8 [B, num_frames, 3, height, width]
    codes_per_position                Q; if it is more than 1, codes have one dimension more, the last: [B, h, w, Q]
    image_size                        (height, width) of a tokenizer that takes images of one size alone; one whose
                                      codes are a list, [B, L], must have it
    entropy_bits(codes)               how surprising each position was expected to be, in bits: float [B, h, w]
    surprisal_bits(codes)             how surprising its codes are; goes with `entropy_bits`
    covered_options                   names of options of `load` of which `identity` says enough, such as the folder of
                                      weights whose hash is there: they may change between runs. Other options may not.

    Without `decode`, datasets can be made and loaded, but not shown. Members that both decode and embed, for
    `tatok adapt` alone:

    embed(codes)                      codes [B, h, w] -> their vectors, float [B, C, h, w]
    decode_embedded(vectors)          float [B, C, h, w] -> uint8 [B, 3, H, W]
    """

    @property
    def vocab_size(self) -> int:
        """Codes are in 0 .. vocab_size - 1."""

    @property
    def patch_size(self) -> int:
        """Pixels a step of the grid."""

    @property
    def identity(self) -> Mapping[str, str] | str:
        """What fixes the codes of given pixels, such as a hash of the weights.

        The text of the file or module that makes the tokenizer, its options and torch's version are noted beside it.
        """


Codes = Tensor | np.ndarray
"""What `FixedRateTokenizer`'s methods return as codes."""
