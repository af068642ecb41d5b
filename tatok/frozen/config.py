"""AdaptedConfig: the sizes of a TaTok over a frozen tokenizer, and which tokenizer that is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from tatok.model.config import TaTokConfig
from tatok.schemas.errors import ConfigError

__all__ = ["AdaptedConfig", "Fill", "FillSettings", "Over"]

Fill = Literal["mean", "nearest", "mode", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FillSettings:
    """What the frozen tokenizer's decoder is given where a code was dropped.

    mean      the vector that the prior expects; by its nearest code, where the tokenizer decodes codes alone
    nearest   the code nearest to that vector
    mode      the most probable code
    constant  the mean vector of the photos that it was trained on, whatever the picture; to compare with

    With `rounds` R > 1 the surest positions are filled first, a share of 1/R a round, by their most probable codes, and
    the rest is predicted anew given these. It is no part of a tokenizer's identity: tokens do not depend on it.
    """

    kind: Fill = "mean"
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Fill):
            raise ConfigError(f"fill.kind is {self.kind!r}; it must be one of {', '.join(get_args(Fill))}")
        if self.rounds < 1:
            raise ConfigError(f"fill.rounds is {self.rounds}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """The frozen tokenizer: the name that loads it, the options it is loaded with, and what it said it is."""

    tokenizer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON-ready values; the same whatever the order of options."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), sort_keys=True))
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedConfig(TaTokConfig):
    """Sizes as TaTokConfig's, but of patches that are vectors of the frozen tokenizer's codebook.

    `patch_size` and `codebook_size` are that tokenizer's; `code_dim` is the width of its vectors, and of the globals'.
    The cells that anchor the globals are of whole positions: `cell_size` is a multiple of `patch_size`.
    """

    over: Over
    fill: FillSettings = FillSettings()

    def __post_init__(self) -> None:
        TaTokConfig.__post_init__(self)
        if not self.anchored:
            raise ConfigError("globals over a frozen tokenizer are anchored; leave anchored: true")
        if self.has_stem or self.pixel_width is not None or self.learned_dim or self.latents is not None:
            raise ConfigError("has_stem, pixel_width, learned_dim and latents are of other models; leave them out")

    @property
    def channels(self) -> int:
        """Numbers at one position: a vector's."""
        return self.code_dim

    @property
    def factor(self) -> int:
        """Pixels of a position: a patch is one position."""
        return self.patch_size

    def document(self) -> dict[str, Any]:
        """As JSON-ready values; see TaTokConfig."""
        own = {each.name for each in fields(AdaptedConfig)} - {each.name for each in fields(TaTokConfig)}
        values = {name: value for name, value in TaTokConfig.document(self).items() if name not in own}
        return {**values, "over": self.over.document(), "fill": asdict(self.fill)}

    def identity(self) -> dict[str, Any]:
        """What of the document tokens depend on: not where the tokenizer was found, and not how gaps are filled."""
        values = {name: value for name, value in self.document().items() if name != "fill"}
        return {**values, "over": dict(self.over.identity)}
