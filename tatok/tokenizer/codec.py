"""The steps between pixels and codes, of whole batches: what clips, calibration and evaluation are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from tatok.model.autoencoder import Codes
from tatok.model.checkpoint import Checkpoint
from tatok.model.dtf import Filtered
from tatok.model.prior import CodeStatistics
from tatok.precision import Precision, check_precision, computing
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence
from tatok.schemas.token_batch import TokenBatch
from tatok.tokenizer.encoding import Encoding, FullRate, batch, pack
from tatok.tokenizer.following import Following
from tatok.tokenizer.launching import Launched, Launcher, sent

__all__ = ["Codec", "PendingTokens"]


class PendingTokens:
    """A batch that is being tokenized (`Codec.encode_async`)."""

    def __init__(self, launched: Launched, codec: Codec, grid: tuple[int, int]) -> None:
        self._launched = launched
        self._codec = codec
        self._grid = grid

    def is_done(self) -> bool:
        """Whether the device has done its part."""
        return self._launched.is_done()

    def wait(self) -> None:
        """Return when it has; raises what went wrong there."""
        self._launched.wait()

    def result(self) -> TokenBatch:
        """Wait for the device; one sequence an image, in order."""
        return self._codec.unpacked(self._launched.wait(), self._grid)


class Codec:
    """A checkpoint on a device, and each step of coding by itself; immutable, and safe to call from several threads.

    Everything is computed in `precision` (precision.py). Raises ConfigError where the device does not have it, or where
    `dtf.max_tokens` is below the globals that every image has.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        *,
        precision: Precision = "float32",
        graphs: bool | None = None,
    ) -> None:
        check_precision(precision, device)
        self._checkpoint = checkpoint
        self._model = checkpoint.model.to(device)
        self._prior = checkpoint.prior.to(device)
        self.device = device
        self.dtf = checkpoint.dtf
        self.precision: Precision = precision
        self._graphs = graphs
        self._encoding = Encoding(model=self._model, prior=self._prior, dtf=self.dtf)
        self._launcher = Launcher(self._encoding.packed, device, precision, graphs)
        self._following = Following(self._encoding, device, self._launcher.runs)
        if self.dtf.max_tokens is not None and self.dtf.max_tokens < self.num_global:
            raise ConfigError(
                f"dtf.max_tokens is {self.dtf.max_tokens}, but every image has {self.num_global} global tokens"
            )
        if self.dtf.texture_bits and self._model.config.factor != 1:
            raise ConfigError("dtf.texture_bits are of pixels, which this checkpoint's model does not see")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; images need sides that are multiples of it."""
        return self._model.config.patch_size

    @property
    def num_global(self) -> int:
        """Global tokens that every image gets."""
        return self._model.config.num_global

    @property
    def has_cells(self) -> bool:
        """Whether each global belongs to a cell of the image; temporal coding renews them cell by cell.

        Not over a frozen model: a frame that stays as decoded would be encoded and drawn again in each that follows.
        """
        return self._model.has_cells and self._model.config.factor == 1

    @property
    def vocab_size(self) -> int:
        """Codes are in 0 .. vocab_size - 1, for global and patch tokens alike (each kind has its own codebook)."""
        return self._model.config.codebook_size

    @property
    def codes_per_position(self) -> int:
        """Every kept patch has one code."""
        return 1

    @property
    def has_entropy(self) -> bool:
        """The prior gives every image its entropies."""
        return True

    # --- pixels -> sequences, in one piece -----------------------------------------------------------------------

    def encode_async(self, pixels: Tensor) -> PendingTokens:
        """As `Tokenizer.encode`, in two steps: what it returns waits for the device and gives the sequences.

        On CUDA the device works meanwhile, on this batch and then on others that are started; on a CPU the work is done
        when this returns. The caller bounds how many are pending. Pixels that lie in pinned memory or on the device
        must not change before the result is there.
        """
        grid = self.checked_grid(pixels)
        return PendingTokens(self._launcher.launch(pixels), self, grid)

    # --- pixels -> codes -> kept sets -> sequences ---------------------------------------------------------------

    def checked_grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches; raises ValueError unless the pixels are uint8 [B, 3, H, W] of whole patches."""
        if pixels.dtype is not torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; expected torch.uint8 [B, 3, H, W]")
        return self._model.grid_of_pixels(pixels)

    def full_rate(self, pixels: Tensor) -> FullRate:
        """All codes of uint8 images [B, 3, H, W]."""
        self.checked_grid(pixels)
        with self._computing():
            return self._encoding.full_rate(sent(pixels, self.device))

    def estimate(self, full: FullRate, visible_BN: Tensor) -> CodeStatistics:
        """What the prior says of every position when the codes at `visible_BN` (bool) are known."""
        with self._computing():
            return self._encoding.estimate(full, visible_BN)

    def filter(self, full: FullRate) -> Filtered:
        """DTF's kept sets of images under this tokenizer's settings."""
        with self._computing():
            return self._encoding.filter(full)

    def sequences(self, full: FullRate, filtered: Filtered) -> TokenBatch:
        """The token sequences of a filtered batch, with their statistics."""
        with torch.inference_mode():
            packed_BR = pack(full, filtered).cpu().numpy()
        return self.unpacked(packed_BR, full.grid)

    def unpacked(self, packed_BR: np.ndarray, grid: tuple[int, int]) -> TokenBatch:
        """The token sequences of a batch that the device has packed (encoding.py)."""
        return batch(packed_BR, num_global=self.num_global, grid=grid, vocab_size=self.vocab_size)

    # --- sequences -> codes -> pixels -----------------------------------------------------------------------------

    def check_codes(self, sequence: TokenSequence, number: int, *, num_global: int) -> None:
        """Raise ValueError, naming the sequence by its number, unless its codes and positions can be decoded."""
        codes, positions = sequence.codes, sequence.positions
        if sequence.num_global != num_global or len(codes) != num_global + len(positions):
            raise ValueError(
                f"sequence {number} has {len(codes)} codes, {sequence.num_global} of them global, and {len(positions)} "
                f"positions; expected {num_global} global codes and one code a position"
            )
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
            raise ValueError(f"sequence {number} has codes outside 0 .. {self.vocab_size - 1}")
        wide, num_positions = positions.astype(np.int64), sequence.grid.num_positions
        if len(wide) and (wide[0] < 0 or wide[-1] >= num_positions or (np.diff(wide) <= 0).any()):
            raise ValueError(f"sequence {number}: positions must ascend within 0 .. {num_positions - 1}")

    def code_grids(self, frames: Sequence[TokenSequence]) -> tuple[Codes, Tensor, Tensor]:
        """Codes of images or frames of one grid, 0 where there is none; which patches, and which globals, have one.

        The last two are bool [B, N] and [B, M].
        """
        host = np.full((len(frames), self.num_global + frames[0].grid.num_positions), -1, np.int64)
        codes_BM, codes_BN = np.split(host, [self.num_global], axis=1)
        for row, frame in enumerate(frames):
            cells = np.arange(frame.num_global) if frame.global_cells is None else frame.global_cells
            codes_BM[row, cells], codes_BN[row, frame.positions] = np.split(frame.codes, [frame.num_global])
        codes = sent(torch.from_numpy(host), self.device)
        new_BM, kept_BN = (codes >= 0).split([self.num_global, codes_BN.shape[1]], dim=1)
        return Codes(*codes.clamp_min(0).split([self.num_global, codes_BN.shape[1]], dim=1)), kept_BN, new_BM

    def rebuild(self, full: FullRate, kept_BN: Tensor) -> Tensor:
        """Images, uint8 [B, 3, H, W], from the globals and the patches at `kept_BN` (bool)."""
        return self.rebuild_codes(full.codes, kept_BN, full.grid)

    def rebuild_codes(self, codes: Codes, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images, uint8 [B, 3, H, W], from the globals and the patches at `kept_BN` (bool)."""
        with self._computing():
            return self._encoding.rebuild(codes, kept_BN, grid)

    def rebuild_after(self, codes: Codes, kept_BN: Tensor, renewed_BM: Tensor, before: Tensor) -> Tensor:
        """Frames, uint8 [B, 3, H, W], that follow the decoded frames `before`, of the same type and shape.

        `renewed_BM` (bool) are the globals that are new; those of `codes` are the latest of each cell.
        """
        with self._computing():
            return self._encoding.rebuild_after(codes, kept_BN, renewed_BM, before)

    # --- frames of clips ------------------------------------------------------------------------------------------

    @property
    def following(self) -> Following:
        """The coding of frames that follow others (clips.py); where `has_cells` only."""
        return self._following

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.inference_mode(), computing(self.precision, self.device):
            yield
