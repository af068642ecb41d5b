"""Tokenizer: pixels <-> variable-length token sequences. The one seam between TaTok and the pipeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from tatok.frozen.config import FillSettings
from tatok.frozen.model import AdaptedTaTok
from tatok.model.dtf import DTFSettings
from tatok.precision import Precision
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence
from tatok.schemas.token_batch import TokenBatch
from tatok.tokenizer import clips
from tatok.tokenizer.beneath import any_checkpoint
from tatok.tokenizer.codec import Codec, PendingTokens
from tatok.tokenizer.images import TakesImages

__all__ = ["Tokenizer"]


class Tokenizer(Codec, TakesImages[TokenBatch]):
    """TaTok with Dynamic Token Filtering, ready for use; immutable, and safe to call from several threads.

    `encode` takes images of every kind and batches of pixels, and `decode` gives them back (images.py).

    It computes in `precision` (precision.py), float32 unless said otherwise. On a CPU an image's tokens do not depend
    on the other images of its batch. They can depend on the device, and on CUDA on the batch's size (not on what is in
    it), where float noise flips a near-tie; datasets therefore store positions.
    """

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        precision: Precision = "float32",
        graphs: bool | None = None,
    ) -> Tokenizer:
        """Load a checkpoint folder, or the bundled checkpoint, onto `device` (default: CUDA if there is any).

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
        checkpoint = any_checkpoint(path)
        if isinstance(checkpoint.model, AdaptedTaTok):
            checkpoint.model.canvas.frozen.on(chosen)  # refused now, if at all
            graphs = False  # it is a user's code: what it does need not be the same each time
        return cls(checkpoint, chosen, precision=precision, graphs=graphs)

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

    def with_fill(self, settings: FillSettings) -> Tokenizer:
        """The same tokenizer, over a frozen one, with other vectors where codes were dropped; tokens are the same.

        Raises ConfigError where it is over no frozen tokenizer: then a decoder that was trained for it fills.
        """
        model = self._checkpoint.model
        if not isinstance(model, AdaptedTaTok):
            raise ConfigError("fill is of checkpoints that `tatok adapt` wrote; this one's own decoder fills")
        checkpoint = replace(self._checkpoint, model=model.filled_by(settings))
        return Tokenizer(checkpoint, self.device, precision=self.precision, graphs=self._graphs)

    @property
    def identity(self) -> Mapping[str, str]:
        """What fixes the tokens of given pixels, by name; `fingerprint` is its hash."""
        return {
            "weights_sha256": self._checkpoint.weights_sha256,
            "model": json.dumps(self._model.config.identity(), sort_keys=True),
            "dtf": json.dumps(self.dtf.document(), sort_keys=True),
            "precision": self.precision,
            "torch": torch.__version__.partition("+")[0],
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of `identity`."""
        return hashlib.sha256(json.dumps(dict(self.identity), sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        dtf, name = self.dtf, self._checkpoint.weights_sha256[:8]
        return (
            f"Tokenizer({name}: {self.num_global} globals and kept patches of {self.patch_size}x{self.patch_size}, "
            f"{self.vocab_size:,} codes; DTF by {dtf.criterion} at {dtf.threshold:.4g}; {self.device}, "
            f"{self.precision})"
        )

    def _encode_pixels(self, pixels: Tensor) -> TokenBatch:
        return self.encode_async(pixels).result()

    @torch.inference_mode()
    def _decode_pixels(self, sequences: Sequence[TokenSequence]) -> Tensor:
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

    def encode_clips(self, pixels: Tensor) -> TokenBatch:
        """Tokenize uint8 clips [B, T, 3, H, W], T >= 1; H and W are multiples of the patch. One sequence a clip.

        With `dtf.temporal` a frame may follow the frame before it, so that tokens go to what changes (clips.py);
        without, every frame is coded as an image. A clip of one frame gives what `encode` gives. Frames are coded one
        after another, B at a time. Raises ValueError where the pixels are of another type or shape or have more than
        65,536 positions a clip; ConfigError where `dtf.temporal` does not go with the settings.
        """
        return self.encode_clips_async(pixels).result()

    def encode_clips_async(self, pixels: Tensor) -> PendingTokens | clips.DoneTokens:
        """As `encode_clips`, in two steps, as `encode_async`; clips of several frames are done when this returns."""
        return clips.encode_clips_async(self, pixels)

    def decode_clips(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Rebuild clips, uint8 [B, T, 3, H, W], from sequences of one grid and any lengths; images are clips of T = 1.

        Raises ValueError where grids differ, or codes, positions or frames are out of range or order.
        """
        return clips.decode_clips(self, sequences)
