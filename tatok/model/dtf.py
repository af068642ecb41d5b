"""Dynamic Token Filtering: which patch tokens are worth keeping, from what the prior says. Pure functions.

DTF orders the patches by how many bits each still holds, given all that is kept, and keeps the shortest prefix after
which the bits that are dropped, summed up, are within the threshold (docs/explanation/method.md). Bits are counted in
integer multiples of 1/1024, so that float noise between devices and batch sizes seldom reorders near-ties, and sums are
exact.

Shapes: B batch, N patch positions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tatok.model.prior import CodeStatistics
from tatok.schemas.errors import ConfigError

__all__ = ["Criterion", "DTFSettings", "Filtered", "filter_tokens", "keep_most", "position_bits"]

Criterion = Literal["entropy", "surprisal", "content", "distance", "residual"]
Threshold = Literal["residual_bits", "fraction", "distortion"]

UNITS_PER_BIT = 1024
_LEAST_ENERGY = 1e-30  # for the logarithm of none
_BY_DISTORTION = ("content", "distance", "residual")
UNBOUNDED = 1 << 40  # units; stands for "keep me" at a distortion of zero, and N of them still fit an int64


@dataclass(frozen=True, slots=True, kw_only=True)
class DTFSettings:
    """How DTF decides; the paper gives neither its estimator nor its threshold.

    criterion  bits of a position                                   threshold_kind
    entropy    h_i, the code's conditional entropy (the paper)      residual_bits or fraction
    surprisal  s_i, of the true code (encoder-side)                 residual_bits or fraction
    content    max(0, 1/2 log2(variance_i / threshold))             distortion
    distance   max(0, 1/2 log2(distance_i / threshold)) (encoder)   distortion
    residual   max(0, 1/2 log2(residual_i / threshold)) (encoder)   distortion

    residual_i is the squared difference of the patch's own pixels and what is in the base image's place: what the
    picture loses without a token, where distance_i is the part of it that the code can say.
    residual_bits: at most `threshold` bits are dropped from an image. fraction: at most (1 - threshold) of its bits.
    distortion: no position that holds bits at this distortion is dropped (reverse water-filling); the threshold is
    squared pixel error in [-1, 1] units summed over a patch.
    A threshold of 0 bits or 0 distortion keeps every patch; so does a fraction of 1.
    texture_bits: under a distortion, a patch of an image is kept, too, if what the globals leave of it has more texture
    than so many bits a pixel value (patches.texture_bits); it then holds these bits less the limit, or the criterion's,
    whichever are more. Squared error alone is blind to what no code can say: noise, and much of grass. 0: not looked
    at. It is not of the paper.
    `rounds` = R: entropies are estimated anew after each of R rounds. `min_tokens` and `max_tokens` bound an image's
    count, globals included; in a clip, `max_tokens` that of each frame, `min_tokens` that of frames with globals.
    `temporal`: frames of a clip may follow the frame before them (clips.py); else each is coded as an image.
    """

    criterion: Criterion = "entropy"
    threshold_kind: Threshold = "residual_bits"
    threshold: float = 0.0
    rounds: int = 1
    min_tokens: int = 0
    max_tokens: int | None = None
    temporal: bool = True
    texture_bits: float = 0.0

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise ConfigError(
                f"dtf.criterion is {self.criterion!r}; it must be one of {', '.join(get_args(Criterion))}"
            )
        by_distortion = self.criterion in _BY_DISTORTION
        if self.threshold_kind not in get_args(Threshold) or by_distortion != (self.threshold_kind == "distortion"):
            fitting = "distortion" if by_distortion else "residual_bits or fraction"
            raise ConfigError(f"dtf.threshold_kind is {self.threshold_kind!r}; for {self.criterion!r} it is {fitting}")
        if not self.threshold >= 0 or (self.threshold_kind == "fraction" and self.threshold > 1):
            raise ConfigError(f"dtf.threshold is {self.threshold}; it must be at least 0, and at most 1 for a fraction")
        if not 0 <= self.texture_bits < math.inf:
            raise ConfigError(f"dtf.texture_bits is {self.texture_bits}; it must be at least 0, which turns it off")
        if self.texture_bits and not by_distortion:
            raise ConfigError(
                f"dtf.texture_bits is {self.texture_bits:g}, which goes with a distortion alone: criterion "
                f"{', '.join(_BY_DISTORTION[:-1])} or {_BY_DISTORTION[-1]}; this one is {self.criterion!r}"
            )
        if self.rounds < 1:
            raise ConfigError(f"dtf.rounds is {self.rounds}; it must be at least 1")
        if self.max_tokens is not None and not self.min_tokens <= self.max_tokens:
            raise ConfigError(f"dtf.max_tokens {self.max_tokens} is below dtf.min_tokens {self.min_tokens}")

    def document(self) -> dict[str, Any]:
        """As JSON-ready values; settings that came later are there where they matter: fingerprints stay the same."""
        values = asdict(self)
        if self.temporal:
            del values["temporal"]
        if not self.texture_bits:
            del values["texture_bits"]
        return values

    @property
    def needs_positions(self) -> bool:
        """Whether the kept set carries information that the globals do not: it is not a function of them alone."""
        return self.rounds > 1 or self.criterion in ("surprisal", "distance", "residual") or self.texture_bits > 0

    def with_threshold(self, threshold: float) -> DTFSettings:
        """The same settings with another threshold."""
        return replace(self, threshold=threshold)

    def with_criterion(self, criterion: Criterion | None) -> DTFSettings:
        """The same bounds and rounds under another criterion (None: this one), whose threshold is still to be found."""
        if criterion is None or criterion == self.criterion:
            return self
        by_distortion = criterion in _BY_DISTORTION
        kind: Threshold = "distortion" if by_distortion else "residual_bits"
        texture = self.texture_bits if by_distortion else 0.0
        return replace(self, criterion=criterion, threshold_kind=kind, threshold=0.0, texture_bits=texture)

    def ranking_all(self) -> DTFSettings:
        """The same ranking by the criterion alone, in which no position is cut off at 0 bits."""
        if self.threshold_kind != "distortion":
            return self
        return replace(self, threshold=1e-6, texture_bits=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """The kept set of each image, and what the prior said before and after.

    `first` are the statistics given the globals alone; `entropy_when_kept_BN` holds h_i given what was kept before
    position i's round, for kept positions, and h_i under the last estimate for dropped ones. `worth_BN`, float32 and at
    least 0, is what the first round ranks by: the bits of each position under the criterion. Under a distortion a
    position is worth more than 0 exactly where it is kept, as long as no bound on the count interferes; a threshold of
    0 prices nothing, and worth is then told at a threshold of 1.
    """

    kept_BN: Tensor
    first: CodeStatistics
    entropy_when_kept_BN: Tensor
    worth_BN: Tensor


def position_bits(
    statistics: CodeStatistics,
    settings: DTFSettings,
    residual_BN: Tensor | None = None,
    texture_BN: Tensor | None = None,
) -> Tensor:
    """What each position holds under the criterion, int64 [B, N] in units of 1/1024 bit, at least 0.

    `residual_BN`, float [B, N], is needed by the criterion `residual` alone: each patch's squared difference from what
    is in the base image's place, in [-1, 1] pixel units summed over the patch. `texture_BN`, float [B, N], is needed
    where there is a limit to the texture: the texture bits of that difference. Without them ValueError is raised.
    """
    if settings.criterion in ("entropy", "surprisal"):
        bits = statistics.entropy if settings.criterion == "entropy" else statistics.surprisal
        return (bits.double() * UNITS_PER_BIT).round().long().clamp_min(0)
    energy = statistics.variance if settings.criterion == "content" else statistics.distance
    if settings.criterion == "residual":
        if residual_BN is None:
            raise ValueError("the criterion residual needs residual_BN")
        energy = residual_BN
    if settings.threshold == 0:
        return torch.full_like(energy, UNBOUNDED, dtype=torch.int64)
    # A threshold near 0 would make the quotient infinite, which is no number of units.
    quotient = (energy.double() / settings.threshold).clamp(_LEAST_ENERGY / settings.threshold, sys.float_info.max)
    bits = 0.5 * torch.log2(quotient)
    if settings.texture_bits:
        if texture_BN is None:
            raise ValueError("a limit to the texture needs texture_BN")
        bits = bits.maximum(texture_BN.double() - settings.texture_bits)
    return (bits * UNITS_PER_BIT).round().long().clamp_min(0)


def keep_most(units_BN: Tensor, num_kept_B: Tensor) -> Tensor:
    """The `num_kept_B` positions of each image that hold most, bool [B, N]; ties go to the earlier position."""
    return _first_of(units_BN.sort(dim=1, descending=True, stable=True).indices, num_kept_B)


def _first_of(order_BN: Tensor, num_kept_B: Tensor) -> Tensor:
    in_prefix = torch.arange(order_BN.shape[1], device=order_BN.device) < num_kept_B[:, None]
    return torch.zeros_like(in_prefix).scatter(1, order_BN, in_prefix)


def _num_needed(held_BN: Tensor, target_B: Tensor | int) -> Tensor:
    """Length of the shortest prefix after which at most `target_B` units remain, int64 [B]; most units come first."""
    remaining_before_BN = held_BN.sum(1, keepdim=True) - held_BN.cumsum(1) + held_BN
    target = target_B if isinstance(target_B, int) else target_B[:, None]
    return (remaining_before_BN > target).sum(1)


def _bounds(num_positions: int, num_global: int | Tensor, settings: DTFSettings) -> tuple[Any, Any]:
    """Least and most patches of an image, both int or int64 [B]."""
    most = num_positions if settings.max_tokens is None else settings.max_tokens - num_global
    if isinstance(num_global, int):
        low = min(max(settings.min_tokens - num_global, 0), num_positions)
        return low, min(max(most, low), num_positions)
    low_B = (settings.min_tokens - num_global).clamp(0, num_positions)
    most_B = torch.full_like(low_B, most) if isinstance(most, int) else most.clamp_max(num_positions)
    return low_B, most_B.maximum(low_B)


def filter_tokens(
    estimate: Callable[[Tensor], CodeStatistics],
    *,
    num_images: int,
    num_positions: int,
    num_global: int | Tensor,
    settings: DTFSettings,
    device: torch.device,
    residual_BN: Tensor | None = None,
    texture_BN: Tensor | None = None,
) -> Filtered:
    """Choose the kept patches of a batch.

    `estimate(visible_BN)` gives the prior's statistics where the codes at `visible_BN` (bool) are known; it is called
    once a round. `num_global` globals, of every image or int64 [B], count towards the bounds. `residual_BN` and
    `texture_BN` are what `position_bits` takes. An image's result does not depend on the other images of the batch.
    """
    kept = torch.zeros(num_images, num_positions, dtype=torch.bool, device=device)
    first = statistics = estimate(kept)
    low, high = _bounds(num_positions, num_global, settings)
    entropy_when_kept = first.entropy
    keeps_all = settings.threshold == (1.0 if settings.threshold_kind == "fraction" else 0.0)
    target: int | Tensor = 0
    if settings.threshold_kind == "residual_bits":
        target = round(settings.threshold * UNITS_PER_BIT)
    for round_ in range(settings.rounds):
        if round_:
            statistics = estimate(kept)
            entropy_when_kept = torch.where(kept, entropy_when_kept, statistics.entropy)
        units = position_bits(statistics, settings, residual_BN, texture_BN)
        if not round_:
            worth = units
            if settings.threshold_kind == "distortion" and settings.threshold == 0:
                worth = position_bits(first, settings.with_threshold(1.0), residual_BN, texture_BN)
        if settings.threshold_kind == "fraction" and not round_:
            target = (units.sum(1).double() * (1 - settings.threshold)).floor().long()
        # Kept positions sort last: they hold 0 units, and -1 puts them behind unkept positions that hold 0 as well.
        held, order = units.masked_fill(kept, -1).sort(dim=1, descending=True, stable=True)
        num_kept = kept.sum(1)
        needed = num_positions if keeps_all else _num_needed(held.clamp_min(0), target)
        wanted = (num_kept + needed).clamp(low, high) - num_kept
        rounds_left = settings.rounds - round_
        quota = wanted.clamp_min(0)
        if rounds_left > 1:
            quota = torch.div(quota + rounds_left - 1, rounds_left, rounding_mode="floor")
        kept = kept | _first_of(order, quota)
    worth = worth.float() / UNITS_PER_BIT
    return Filtered(kept_BN=kept, first=first, entropy_when_kept_BN=entropy_when_kept, worth_BN=worth)
