"""TaTokConfig: all that fixes the shapes of a model's weights, and what a checkpoint's identity is made of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from tatok.autoencoders.frozen import LatentSpace
from tatok.schemas.errors import ConfigError

__all__ = ["TaTokConfig"]

Filler = Literal["learned", "zeros"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaTokConfig:
    """Everything that fixes the shapes of the weights and what they mean; the paper gives none of these numbers.

    `cell_size` is the side in pixels of the thumbnail cells that anchor the globals (None: the patch's). It,
    `anchored`, `filler`, and `num_global` 0 make the fixed-rate tokenizers that TaTok is compared with: 0 globals leave
    2-D patch tokens alone; globals that are not anchored are free learned queries (1-D tokens, as TiTok's,
    arXiv 2406.07550). `filler` is what the decoder sees where a patch was filtered out. `prior_width` is the width of
    the prior (None: the model's), with heads of the same size; with `prior_rank` its head goes through so many
    dimensions, since a full one costs as much as two layers.

    `has_stem` embeds patches by convolutions instead of one linear map, and `pixel_width` (None: no such decoder) puts
    a convolutional pixel decoder of that width behind the transformer's (pixel_layers.py): without both, no code can
    express texture. `learned_dim` of the code's dimensions have no direction in pixel space; what they mean is learned.
    `decoder_width` is the width of both decoders (None: the encoder's), with heads of the same size.

    `latents` are those of a frozen autoencoder that the model works on in place of pixels (canvas.py). Sizes stay in
    pixels; a patch and a cell are whole latents.
    """

    patch_size: int = 16
    num_global: int = 16
    codebook_size: int = 4096
    code_dim: int = 16
    width: int = 192
    num_heads: int = 3
    num_trunk_layers: int = 2
    num_base_layers: int = 2
    num_refiner_layers: int = 2
    num_decoder_layers: int = 4
    num_prior_layers: int = 3
    cell_size: int | None = None
    anchored: bool = True
    filler: Filler = "learned"
    prior_width: int | None = None
    prior_rank: int | None = None
    has_stem: bool = False
    pixel_width: int | None = None
    learned_dim: int = 0
    decoder_width: int | None = None
    latents: LatentSpace | None = None

    def __post_init__(self) -> None:
        if self.width % self.num_heads or (self.width // self.num_heads) % 4:
            raise ConfigError(
                f"width {self.width} over {self.num_heads} heads: each head needs a multiple of 4 dimensions "
                "(two axes of rotary pairs)"
            )
        head_dim = self.width // self.num_heads
        if self.prior_width is not None and (self.prior_width < 1 or self.prior_width % head_dim):
            raise ConfigError(f"prior_width is {self.prior_width}; it must be a multiple of a head's {head_dim}")
        if self.decoder_width is not None and (self.decoder_width < 1 or self.decoder_width % head_dim):
            raise ConfigError(f"decoder_width is {self.decoder_width}; it must be a multiple of a head's {head_dim}")
        if self.prior_rank is not None and self.prior_rank < 1:
            raise ConfigError(f"prior_rank is {self.prior_rank}; it must be at least 1")
        if not 0 <= self.learned_dim < self.code_dim:
            raise ConfigError(
                f"learned_dim is {self.learned_dim}; it must be in 0 .. code_dim - 1 = {self.code_dim - 1}"
            )
        for name, side in (("patch_size", self.patch_size), ("cell_size", self.cell_size)):
            if side is not None and side % self.factor:
                raise ConfigError(f"{name} is {side}; it must be a multiple of the {self.factor} pixels of a latent")
        is_power = self.patch_side >= 4 and not self.patch_side & (self.patch_side - 1)
        if (self.has_stem or self.pixel_width is not None) and not is_power:
            latents = f" latents of {self.factor} pixels" if self.latents else ""
            raise ConfigError(
                f"patch_size is {self.patch_size}; with convolutions it must be a power of two from 4{latents} on"
            )
        if self.pixel_width is not None and (self.pixel_width < 8 or self.pixel_width % 8):
            raise ConfigError(f"pixel_width is {self.pixel_width}; it must be a multiple of 8")
        if self.num_global < 0:
            raise ConfigError(f"num_global is {self.num_global}; it must be at least 0")
        if self.filler not in get_args(Filler):
            raise ConfigError(f"filler is {self.filler!r}; it must be one of {', '.join(get_args(Filler))}")

    @property
    def channels(self) -> int:
        """Channels of the canvas, A: 3 of pixels."""
        return 3 if self.latents is None else self.latents.channels

    @property
    def factor(self) -> int:
        """Pixels of one place of the canvas, each way."""
        return 1 if self.latents is None else self.latents.factor

    @property
    def patch_side(self) -> int:
        """Side of a patch on the canvas."""
        return self.patch_size // self.factor

    @property
    def patch_pixels(self) -> int:
        """Numbers in one patch, P."""
        return self.channels * self.patch_side**2

    @property
    def cell_side(self) -> int:
        """Side of a thumbnail cell on the canvas."""
        return self.patch_side if self.cell_size is None else self.cell_size // self.factor

    @property
    def cell_pixels(self) -> int:
        """Numbers in one thumbnail cell, Q."""
        return self.channels * self.cell_side**2

    def has_tokenizer_of(self, other: TaTokConfig) -> bool:
        """Whether the two differ in nothing but the prior."""
        priors = {name: getattr(self, name) for name in _PRIOR_FIELDS}
        return replace(other, **priors) == self

    def document(self) -> dict[str, Any]:
        """As JSON-ready values; fields that came later are there only where they differ from their default.

        A tokenizer's identity is made of this: a checkpoint keeps its fingerprint when a new kind of model is added.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.latents is not None:
            values["latents"] = self.latents.document()
        later = {field.name: field.default for field in fields(self) if field.name in _LATER_FIELDS}
        return {name: value for name, value in values.items() if name not in later or value != later[name]}

    def identity(self) -> dict[str, Any]:
        """What of the document tokens depend on."""
        return self.document()


_PRIOR_FIELDS = ("num_prior_layers", "prior_width", "prior_rank")
_LATER_FIELDS = (
    "cell_size",
    "anchored",
    "filler",
    "prior_width",
    "prior_rank",
    "has_stem",
    "pixel_width",
    "learned_dim",
    "decoder_width",
    "latents",
)
