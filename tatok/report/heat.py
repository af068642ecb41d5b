"""Heat maps: what each patch is worth to DTF, or its entropy, in colours, with the kept patches outlined.

Shapes: N patches of a grid of h rows and w columns, C pixels of a patch's side in a map.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tatok.schemas.records import TokenSequence

__all__ = ["HEAT", "HeatKind", "HeatScale", "heat_colours", "heat_map", "heat_scale", "heat_values"]

HeatKind = Literal["worth", "entropy"]

# Dark violet to yellow, readable in grey and to colour-blind eyes.
HEAT = np.array([(13, 8, 60), (94, 20, 130), (178, 48, 110), (232, 96, 64), (250, 170, 50), (245, 240, 140)], float)
UNKNOWN = (226, 226, 230)
# Light within the kept patches, dark around them: one of the two shows on any colour.
_INSIDE, _OUTSIDE = (255, 255, 255), (0, 0, 0)
_CELLS_A_LINE = 8  # pixels of a patch's side for each pixel of the outline's width

_BY_WORTH = "Warm patches hold more bits than the globals tell; those above the threshold (outlined) are kept."
_BY_RANK = "Warm patches hold more bits than the globals tell; DTF keeps those that hold most (outlined)."
_BY_ENTROPY = "Warm patches are those that the prior foresees least from the globals; DTF keeps those (outlined)."
_ENTROPY_ALONE = "Warm patches are those that the prior foresees least; DTF chose the outlined ones by other bits."
_NO_WORTH = "Worth is not stored (write.patch_worth): warm patches have most entropy, the outlined ones are kept."


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatScale:
    """What heat maps show, which bits are their darkest and their lightest colour, and a sentence on what it means."""

    kind: HeatKind
    low: float
    high: float
    explanation: str


def heat_colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values [...] -> uint8 [..., 3] on the scale HEAT, on which `low` is dark; what is not finite is grey."""
    place = (values.astype(float) - low) / max(high - low, 1e-9)
    place = np.clip(np.nan_to_num(place), 0, 1) * (len(HEAT) - 1)
    left = np.minimum(place.astype(int), len(HEAT) - 2)
    share = (place - left)[..., None]
    colours = HEAT[left] * (1 - share) + HEAT[left + 1] * share
    colours[~np.isfinite(values)] = UNKNOWN
    return colours.round().astype(np.uint8)


def heat_values(sequence: TokenSequence, kind: HeatKind) -> np.ndarray:
    """The bits that a heat map draws, float [N]; NaN where they were not stored."""
    entropy = sequence.entropy
    found = None
    if entropy is not None:
        found = entropy.patch_entropy_bits_N if kind == "entropy" else entropy.patch_worth_bits_N
    return np.full(sequence.grid.num_positions, np.nan, np.float32) if found is None else found


def heat_scale(
    sequences: Iterable[TokenSequence], *, criterion: str | None = None, kind: HeatKind | None = None
) -> HeatScale | None:
    """The scale of all bits of `sequences`, from the least to the greatest; None where none were stored.

    It shows worth where any of them has it, else entropy, and says so; entropy, too, where that is DTF's `criterion`
    (None: unknown), for there the two are the same. `kind` asks for one of them.
    """
    sequences = list(sequences)
    stored: dict[HeatKind, np.ndarray] = {name: _finite(sequences, name) for name in ("worth", "entropy")}
    kinds: list[HeatKind] = ["entropy", "worth"] if criterion == "entropy" else ["worth", "entropy"]
    chosen = next((name for name in ([kind] if kind else kinds) if len(stored[name])), None)
    if chosen is None:
        return None
    if chosen == "worth":
        words = _BY_RANK if criterion in ("entropy", "surprisal") else _BY_WORTH
    elif criterion == "entropy":
        words = _BY_ENTROPY
    else:
        words = _ENTROPY_ALONE if len(stored["worth"]) else _NO_WORTH
    low, high = float(stored[chosen].min()), float(stored[chosen].max())
    return HeatScale(kind=chosen, low=low, high=high, explanation=words)


def heat_map(sequence: TokenSequence, scale: HeatScale, cell: int = 16) -> np.ndarray:
    """One colour a patch, uint8 [h * C, w * C, 3] with C = `cell`; patches that were kept are outlined.

    The outline runs along every side that a kept patch shares with a dropped one or with the picture's edge. In cells
    of less than 4 pixels there is none.
    """
    _, rows, columns = sequence.grid
    colours = heat_colours(heat_values(sequence, scale.kind).reshape(rows, columns), scale.low, scale.high)
    picture = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    if cell < 4:
        return picture
    kept = np.zeros(rows * columns, bool)
    kept[sequence.positions.astype(np.int64)] = True
    is_kept = kept.reshape(rows, columns).repeat(cell, axis=0).repeat(cell, axis=1)
    width = max(cell // _CELLS_A_LINE, 1)
    picture[is_kept & _near(~is_kept, width, edge=True)] = _INSIDE
    picture[~is_kept & _near(is_kept, width, edge=False)] = _OUTSIDE
    return picture


def _near(wanted_HW: np.ndarray, reach: int, *, edge: bool) -> np.ndarray:
    """Which pixels have a wanted one within `reach` rows and columns, bool [H, W]; `edge`: those outside are wanted."""
    height, width = wanted_HW.shape
    padded = np.pad(wanted_HW, reach, constant_values=edge)
    shifts = range(2 * reach + 1)
    in_row = np.logical_or.reduce([padded[:, shift : shift + width] for shift in shifts])
    return np.logical_or.reduce([in_row[shift : shift + height] for shift in shifts])


def _finite(sequences: Iterable[TokenSequence], kind: HeatKind) -> np.ndarray:
    values = [heat_values(sequence, kind) for sequence in sequences]
    return np.concatenate([*(value[np.isfinite(value)] for value in values), np.empty(0, np.float32)])
