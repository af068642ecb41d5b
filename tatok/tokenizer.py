"""Tokenizer: pixels <-> variable-length token sequences. The one seam between TaTok and the pipeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.records import EntropyStatistics, Grid, TokenSequence
from tatok import clips
from tatok.checkpoint import Checkpoint, load_checkpoint
from tatok.dtf import DTFSettings, Filtered, filter_tokens
from tatok.model import Codes
from tatok.prior import CodeStatistics

__all__ = ["FullRate", "Tokenizer", "to_float", "to_pixels"]


def to_float(pixels: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Float images, about [-1, 1] -> uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRate:
    """A batch with all its codes, before filtering: B images, M globals, N patches of P pixels."""

    codes: Codes
    globals_BMC: Tensor
    patches_BNC: Tensor
    base_BNP: Tensor
    grid: tuple[int, int]


class Tokenizer:
    """TaTok with Dynamic Token Filtering, ready for use; immutable, and safe to call from several threads.

    `encode` and `decode` compute in float32. An image's tokens do not depend on the other images of its batch. They can
    depend on the device where float noise flips a near-tie; data sets therefore store positions.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._model = checkpoint.model.to(device)
        self._prior = checkpoint.prior.to(device)
        self.device = device
        self.dtf = checkpoint.dtf
        if self.dtf.max_tokens is not None and self.dtf.max_tokens < self.num_global:
            raise ConfigError(
                f"dtf.max_tokens is {self.dtf.max_tokens}, but every image has {self.num_global} global tokens"
            )

    @classmethod
    def load(cls, path: str | Path | None = None, device: str | torch.device | None = None) -> Tokenizer:
        """Load a checkpoint folder, or the one that comes with tatok, onto `device` (default: CUDA if there is any).

        Raises ConfigError where the checkpoint is missing, damaged or does not fit its configuration.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            chosen = torch.device(device)
            if chosen.type == "cuda" and not torch.cuda.is_available():
                raise ConfigError(f"device is {device!r}, but torch sees no CUDA device; use --device cpu")
        except RuntimeError as error:
            raise ConfigError(f"device is {device!r}: {error}") from error
        return cls(load_checkpoint(path), chosen)

    def with_dtf(self, settings: DTFSettings | None = None, **changes: float | int | None) -> Tokenizer:
        """The same weights under other DTF settings; `changes` that are None leave a setting as it is.

        Raises ConfigError where the settings do not fit together.
        """
        dtf = self.dtf if settings is None else settings
        given = {name: value for name, value in changes.items() if value is not None}
        unknown = given.keys() - asdict(dtf).keys()
        if unknown:
            raise ConfigError(f"unknown DTF settings: {', '.join(sorted(unknown))}")
        return Tokenizer(replace(self._checkpoint, dtf=replace(dtf, **given)), self.device)  # type: ignore[arg-type]

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
            "precision": "float32",
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
        full = self.full_rate(pixels)
        return self.sequences(full, self.filter(full))

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
        codes_BM = np.zeros((len(frames), self.num_global), np.int64)
        codes_BN = np.zeros((len(frames), frames[0].grid.num_positions), np.int64)
        new_BM, kept_BN = np.zeros(codes_BM.shape, bool), np.zeros(codes_BN.shape, bool)
        for row, frame in enumerate(frames):
            cells = np.arange(frame.num_global) if frame.global_cells is None else frame.global_cells
            codes_BM[row, cells], codes_BN[row, frame.positions] = np.split(frame.codes, [frame.num_global])
            new_BM[row, cells], kept_BN[row, frame.positions] = True, True
        tensors = [torch.from_numpy(array).to(self.device) for array in (codes_BM, codes_BN, kept_BN, new_BM)]
        return Codes(*tensors[:2]), tensors[2], tensors[3]

    @torch.inference_mode()
    def rebuild_codes(self, codes: Codes, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images, uint8 [B, 3, H, W], from the globals and the patches at `kept_BN` (bool)."""
        return to_pixels(self._model.decode_codes(codes, kept_BN, grid))

    @torch.inference_mode()
    def rebuild_after(self, codes: Codes, kept_BN: Tensor, renewed_BM: Tensor, before: Tensor) -> Tensor:
        """Frames, uint8 [B, 3, H, W], that follow the decoded frames `before`, of the same type and shape.

        `renewed_BM` (bool) are the globals that are new; those of `codes` are the latest of each cell.
        """
        return to_pixels(self._model.decode_codes_after(codes, kept_BN, renewed_BM, to_float(before)))

    # --- the steps of `encode`, for calibration and evaluation --------------------------------------------------

    @torch.inference_mode()
    def full_rate(self, pixels: Tensor) -> FullRate:
        """All codes of uint8 images [B, 3, H, W]."""
        if pixels.dtype is not torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; expected torch.uint8 [B, 3, H, W]")
        images = to_float(pixels.to(self.device))
        encoded = self._model.encode(images)
        return FullRate(
            codes=Codes(encoded.globals_BMC.codes, encoded.patches_BNC.codes),
            globals_BMC=encoded.globals_BMC.vectors,
            patches_BNC=encoded.patches_BNC.vectors,
            base_BNP=encoded.base_BNP,
            grid=self._model.grid(images),
        )

    @torch.inference_mode()
    def full_rate_after(self, pixels: Tensor, before: Tensor, global_BM: Tensor, renewed_BM: Tensor) -> FullRate:
        """All patch codes of frames that follow the decoded frames `before`, both uint8 [B, 3, H, W].

        `global_BM` are the codes of the latest globals, of which those at `renewed_BM` (bool) are new.
        """
        images, shown = to_float(pixels.to(self.device)), to_float(before)
        globals_BMC = self._model.global_quantizer.decode(global_BM)
        base_BNP = self._model.base_after(globals_BMC, renewed_BM, shown)
        patches = self._model.encode_after(images, globals_BMC, base_BNP)
        return FullRate(
            codes=Codes(global_BM, patches.codes),
            globals_BMC=globals_BMC,
            patches_BNC=patches.vectors,
            base_BNP=base_BNP,
            grid=self._model.grid(images),
        )

    @torch.inference_mode()
    def estimate(self, full: FullRate, visible_BN: Tensor) -> CodeStatistics:
        """What the prior says of every position when the codes at `visible_BN` (bool) are known."""
        coordinates = self._model.coordinates(full.grid)
        return self._prior.statistics(
            full.globals_BMC,
            full.base_BNP,
            full.patches_BNC,
            visible_BN,
            coordinates,
            codes_BN=full.codes.patch_BN,
            codebook_KC=self._model.patch_quantizer.codebook_KC,
        )

    @torch.inference_mode()
    def filter(self, full: FullRate, *, new_globals_B: Tensor | None = None) -> Filtered:
        """DTF's kept sets under this tokenizer's settings, of images, or of frames that have `new_globals_B` globals.

        The lower bound on the count is for images: it would make a frame spend tokens on nothing new.
        """
        num_images, num_positions = full.codes.patch_BN.shape
        return filter_tokens(
            lambda visible: self.estimate(full, visible),
            num_images=num_images,
            num_positions=num_positions,
            num_global=self.num_global if new_globals_B is None else new_globals_B,
            settings=self.dtf if new_globals_B is None else replace(self.dtf, min_tokens=0),
            device=self.device,
        )

    @torch.inference_mode()
    def rebuild(self, full: FullRate, kept_BN: Tensor) -> Tensor:
        """Images, uint8 [B, 3, H, W], from the globals and the patches at `kept_BN` (bool)."""
        return self.rebuild_codes(full.codes, kept_BN, full.grid)

    def sequences(self, full: FullRate, filtered: Filtered) -> list[TokenSequence]:
        """The token sequences of a filtered batch, with their statistics."""
        kept = filtered.kept_BN.cpu().numpy()
        codes_BM, codes_BN = full.codes.global_BM.cpu().numpy(), full.codes.patch_BN.cpu().numpy()
        first = filtered.first.entropy.double().cpu().numpy()
        when_kept = filtered.entropy_when_kept_BN.double().cpu().numpy()
        surprisal = filtered.first.surprisal.double().cpu().numpy().sum(1)
        kept_bits, residual_bits = (when_kept * kept).sum(1), (when_kept * ~kept).sum(1)
        code_dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        grid = Grid(1, *full.grid)
        return [
            TokenSequence(
                codes=np.concatenate([codes_BM[row], codes_BN[row, kept[row]]]).astype(code_dtype),
                positions=kept[row].nonzero()[0].astype(np.uint16),
                num_global=self.num_global,
                grid=grid,
                entropy=EntropyStatistics(
                    entropy_bits=float(first[row].sum()),
                    kept_entropy_bits=float(kept_bits[row]),
                    residual_bits=float(residual_bits[row]),
                    surprisal_bits=float(surprisal[row]),
                    entropy_mean_bits=float(first[row].mean()),
                    entropy_max_bits=float(first[row].max()),
                    patch_entropy_bits_N=first[row].astype(np.float32),
                ),
            )
            for row in range(len(kept))
        ]
