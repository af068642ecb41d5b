"""Tokenizer: pixels <-> variable-length token sequences. The one seam between TaTok and the pipeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.records import TokenSequence
from tatok import clips
from tatok.checkpoint import Checkpoint, load_checkpoint
from tatok.dtf import DTFSettings, Filtered
from tatok.encoding import Encoding, FullRate, pack, sequences, to_float
from tatok.launching import Launcher, sent
from tatok.model import Codes
from tatok.precision import Precision, check_precision, computing
from tatok.prior import CodeStatistics

__all__ = ["FullRate", "PendingTokens", "Tokenizer", "to_float", "to_pixels"]


def to_pixels(images: Tensor) -> Tensor:
    """Float images, about [-1, 1] -> uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()


class PendingTokens:
    """A batch that is being tokenized (`Tokenizer.encode_async`)."""

    def __init__(self, wait: Callable[[], np.ndarray], tokenizer: Tokenizer, grid: tuple[int, int]) -> None:
        self._wait = wait
        self._tokenizer = tokenizer
        self._grid = grid

    def result(self) -> list[TokenSequence]:
        """Wait for the device, and build the sequences, one an image and in order."""
        return self._tokenizer.unpacked(self._wait(), self._grid)


class Tokenizer:
    """TaTok with Dynamic Token Filtering, ready for use; immutable, and safe to call from several threads.

    It computes in `precision` (precision.py), float32 unless said otherwise. On a CPU an image's tokens do not depend
    on the other images of its batch. They can depend on the device, and on CUDA on the batch's size (not on what is in
    it), where float noise flips a near-tie; data sets therefore store positions.
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
        if self.dtf.max_tokens is not None and self.dtf.max_tokens < self.num_global:
            raise ConfigError(
                f"dtf.max_tokens is {self.dtf.max_tokens}, but every image has {self.num_global} global tokens"
            )

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        precision: Precision = "float32",
        graphs: bool | None = None,
    ) -> Tokenizer:
        """Load a checkpoint folder, or the one that comes with tatok, onto `device` (default: CUDA if there is any).

        `graphs`: whether `encode` runs through CUDA graphs (None: yes, on CUDA, unless the environment has
        TATOK_CUDA_GRAPHS=0). Raises ConfigError where the checkpoint is missing, damaged or does not fit its
        configuration, or the device does not have the precision.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            chosen = torch.device(device)
            if chosen.type == "cuda" and not torch.cuda.is_available():
                raise ConfigError(f"device is {device!r}, but torch sees no CUDA device; use --device cpu")
        except RuntimeError as error:
            raise ConfigError(f"device is {device!r}: {error}") from error
        return cls(load_checkpoint(path), chosen, precision=precision, graphs=graphs)

    def with_dtf(self, settings: DTFSettings | None = None, **changes: float | int | None) -> Tokenizer:
        """The same weights under other DTF settings; `changes` that are None leave a setting as it is.

        Raises ConfigError where the settings do not fit together.
        """
        dtf = self.dtf if settings is None else settings
        given = {name: value for name, value in changes.items() if value is not None}
        unknown = given.keys() - asdict(dtf).keys()
        if unknown:
            raise ConfigError(f"unknown DTF settings: {', '.join(sorted(unknown))}")
        checkpoint = replace(self._checkpoint, dtf=replace(dtf, **given))  # type: ignore[arg-type]
        return Tokenizer(checkpoint, self.device, precision=self.precision, graphs=self._graphs)

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
        """Whether each global belongs to a cell of the image; temporal coding renews them cell by cell."""
        return self._model.has_cells

    @property
    def vocab_size(self) -> int:
        """Codes are in 0 .. vocab_size - 1, for global and patch tokens alike (each kind has its own codebook)."""
        return self._model.config.codebook_size

    @property
    def identity(self) -> Mapping[str, str]:
        """What fixes the tokens of given pixels, by name; `fingerprint` is its hash."""
        return {
            "weights_sha256": self._checkpoint.weights_sha256,
            "model": json.dumps(self._model.config.document(), sort_keys=True),
            "dtf": json.dumps(self.dtf.document(), sort_keys=True),
            "precision": self.precision,
            "torch": torch.__version__.partition("+")[0],
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of `identity`."""
        return hashlib.sha256(json.dumps(dict(self.identity), sort_keys=True).encode()).hexdigest()

    def encode(self, pixels: Tensor) -> list[TokenSequence]:
        """Tokenize uint8 images [B, 3, H, W]; H and W are multiples of the patch. In order, one sequence an image.

        The caller chooses B. Raises ValueError where the pixels are of another type or shape.
        """
        return self.encode_async(pixels).result()

    def encode_async(self, pixels: Tensor) -> PendingTokens:
        """As `encode`, in two steps: what it returns waits for the device and gives the sequences.

        On CUDA the device works meanwhile, on this batch and then on others that are started; on a CPU the work is done
        when this returns. The caller bounds how many are pending. Pixels that lie in pinned memory or on the device
        must not change before the result is there.
        """
        grid = self._checked_grid(pixels)
        return PendingTokens(self._launcher.launch(pixels), self, grid)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.inference_mode(), computing(self.precision, self.device):
            yield

    @torch.inference_mode()
    def decode(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Rebuild images, uint8 [B, 3, H, W], from sequences of one grid and any lengths.

        Raises ValueError where grids differ, or codes or positions are out of range or order.
        """
        if not sequences:
            return torch.empty(0, 3, 0, 0, dtype=torch.uint8, device=self.device)
        grid = sequences[0].grid
        for number, sequence in enumerate(sequences):
            if sequence.grid != grid:
                raise ValueError(f"sequence {number} has grid {tuple(sequence.grid)}, the first has {tuple(grid)}")
            if grid.frames != 1:
                raise ValueError(f"sequence {number} is a clip of {grid.frames} frames; use decode_clips")
            self.check_codes(sequence, number, num_global=self.num_global)
        codes, kept_BN, _ = self.code_grids(sequences)
        return self.rebuild_codes(codes, kept_BN, (grid.height, grid.width))

    def encode_clips(self, pixels: Tensor) -> list[TokenSequence]:
        """Tokenize uint8 clips [B, T, 3, H, W], T >= 1; H and W are multiples of the patch. One sequence a clip.

        With `dtf.temporal` a frame may follow the frame before it, so that tokens go to what changes (clips.py);
        without, every frame is coded as an image. A clip of one frame gives what `encode` gives. Frames are coded one
        after another, B at a time. Raises ValueError where the pixels are of another type or shape or have more than
        65,536 positions a clip; ConfigError where `dtf.temporal` does not go with the settings.
        """
        return clips.encode_clips(self, pixels)

    def decode_clips(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Rebuild clips, uint8 [B, T, 3, H, W], from sequences of one grid and any lengths; images are clips of T = 1.

        Raises ValueError where grids differ, or codes, positions or frames are out of range or order.
        """
        return clips.decode_clips(self, sequences)

    # --- the steps of `decode` ----------------------------------------------------------------------------------

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

    def rebuild_codes(self, codes: Codes, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images, uint8 [B, 3, H, W], from the globals and the patches at `kept_BN` (bool)."""
        with self._computing():
            return to_pixels(self._model.decode_codes(codes, kept_BN, grid))

    def rebuild_after(self, codes: Codes, kept_BN: Tensor, renewed_BM: Tensor, before: Tensor) -> Tensor:
        """Frames, uint8 [B, 3, H, W], that follow the decoded frames `before`, of the same type and shape.

        `renewed_BM` (bool) are the globals that are new; those of `codes` are the latest of each cell.
        """
        with self._computing():
            return to_pixels(self._model.decode_codes_after(codes, kept_BN, renewed_BM, to_float(before)))

    # --- the steps of `encode`, for calibration and evaluation --------------------------------------------------

    def _checked_grid(self, pixels: Tensor) -> tuple[int, int]:
        if pixels.dtype is not torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; expected torch.uint8 [B, 3, H, W]")
        return self._model.grid(pixels)

    def full_rate(self, pixels: Tensor) -> FullRate:
        """All codes of uint8 images [B, 3, H, W]."""
        self._checked_grid(pixels)
        with self._computing():
            return self._encoding.full_rate(sent(pixels, self.device))

    def full_rate_after(self, pixels: Tensor, before: Tensor, global_BM: Tensor, renewed_BM: Tensor) -> FullRate:
        """All patch codes of frames that follow the decoded frames `before`, both uint8 [B, 3, H, W].

        `global_BM` are the codes of the latest globals, of which those at `renewed_BM` (bool) are new.
        """
        with self._computing():
            return self._encoding.full_rate_after(sent(pixels, self.device), before, global_BM, renewed_BM)

    def estimate(self, full: FullRate, visible_BN: Tensor) -> CodeStatistics:
        """What the prior says of every position when the codes at `visible_BN` (bool) are known."""
        with self._computing():
            return self._encoding.estimate(full, visible_BN)

    def filter(self, full: FullRate, *, new_globals_B: Tensor | None = None) -> Filtered:
        """DTF's kept sets under this tokenizer's settings, of images, or of frames that have `new_globals_B` globals.

        The lower bound on the count is for images: it would make a frame spend tokens on nothing new.
        """
        with self._computing():
            return self._encoding.filter(full, new_globals_B)

    def rebuild(self, full: FullRate, kept_BN: Tensor) -> Tensor:
        """Images, uint8 [B, 3, H, W], from the globals and the patches at `kept_BN` (bool)."""
        return self.rebuild_codes(full.codes, kept_BN, full.grid)

    def sequences(self, full: FullRate, filtered: Filtered) -> list[TokenSequence]:
        """The token sequences of a filtered batch, with their statistics."""
        with torch.inference_mode():
            packed_BR = pack(full, filtered).cpu().numpy()
        return self.unpacked(packed_BR, full.grid)

    def unpacked(self, packed_BR: np.ndarray, grid: tuple[int, int]) -> list[TokenSequence]:
        """The token sequences of a batch that the device has packed (encoding.py)."""
        return sequences(packed_BR, num_global=self.num_global, grid=grid, vocab_size=self.vocab_size)
