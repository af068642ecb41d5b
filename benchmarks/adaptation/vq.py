"""A fixed-rate VQ tokenizer as a user would bring it: a checkpoint without globals, by its codes alone.

    tokenizer: benchmarks.adaptation.vq:load
    tokenizer_options: {checkpoint: runs/adapt/cifar10/frozen/checkpoint}

Of the kind of the claims bench's fixed-rate rival: 2-D patch tokens at full rate, one code a patch, and a decoder that
was only ever shown all of them.
"""

from __future__ import annotations

from torch import Tensor

from tatok.model.checkpoint import load_checkpoint
from tatok.model.pixels import to_float, to_pixels
from tatok.schemas.errors import ConfigError

__all__ = ["FullRateVQ", "load"]


class FullRateVQ:
    """Images <-> one code a patch; a `FixedRateTokenizer` with both members that adapting may use."""

    covered_options = ("checkpoint",)  # whose weights' hash is the identity

    def __init__(self, checkpoint: str, device: str) -> None:
        loaded = load_checkpoint(checkpoint)
        if loaded.model.config.num_global:
            raise ConfigError(f"{checkpoint} has global tokens; this takes a checkpoint of patch tokens alone")
        self.model = loaded.model.to(device)
        self.identity = {"weights_sha256": loaded.weights_sha256}
        self.vocab_size = loaded.model.config.codebook_size
        self.patch_size = loaded.model.config.patch_size

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> codes [B, h, w]."""
        images = to_float(pixels)
        return self.model.encode(images).patches_BNC.codes.unflatten(1, self.model.grid(images))

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B, h, w] -> uint8 [B, 3, height, width]."""
        return self.decode_embedded(self.embed(codes))

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> their vectors [B, C, h, w]."""
        return self.model.patch_quantizer.decode(codes).movedim(-1, 1)

    def decode_embedded(self, vectors: Tensor) -> Tensor:
        """Vectors [B, C, h, w] -> uint8 [B, 3, H, W]."""
        grid = (vectors.shape[2], vectors.shape[3])
        vectors_BNC = vectors.flatten(2).transpose(1, 2)
        no_globals = vectors_BNC.new_zeros(len(vectors), 0, vectors_BNC.shape[2])
        every = vectors_BNC.new_ones(vectors_BNC.shape[:2]).bool()
        return to_pixels(self.model.decode(no_globals, vectors_BNC, every, self.model.base(no_globals, grid), grid))


def load(device: str, *, checkpoint: str) -> FullRateVQ:
    """The tokenizer of a checkpoint folder, on a device."""
    return FullRateVQ(checkpoint, device)
