"""One frame of every clip at a time: coded in the cheapest of three ways, against what the decoder will show.

The ways: no cell is renewed, those where it pays, or all of them, which is the frame as an image of its own (clips.py).
All look at the frame once. What a GPU does of a frame is two functions that wait for nothing, and so two CUDA graphs;
between them it is asked once which frames the second is for. A CPU, where decoding is most of the work and questions
cost nothing, leaves out whatever an answer makes needless.

Shapes: B frames, one of each clip, N patches of a frame, M globals of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok.model.autoencoder import Codes
from tatok.model.patches import cell_of_patches
from tatok.tokenizer.encoding import Encoding, FullRate, Seen, pack
from tatok.tokenizer.launching import Work

__all__ = ["Coded", "Following"]


class Coded(NamedTuple):
    """One frame of each clip, coded; all of it on the device.

    `packed_BR` are its codes and statistics (encoding.py), `shown_B3HW` (uint8) what the decoder will show,
    `global_BM` the latest codes of every cell, `renewed_BM` the new ones. `cost_BN` (float64) is what each patch costs:
    its squared error, and its token if it has one.
    """

    packed_BR: Tensor
    shown_B3HW: Tensor
    global_BM: Tensor
    renewed_BM: Tensor
    cost_BN: Tensor

    def part(self) -> Tensor:
        """What the host needs: the packed rows and then which globals are new, int32 [B, R + M]."""
        return torch.cat([self.packed_BR, self.renewed_BM.int()], dim=1)


class _Images(NamedTuple):
    """Frames coded as images and not decoded yet: what `Coded` has of them, and which patches have tokens."""

    packed_BR: Tensor
    global_BM: Tensor
    patch_BN: Tensor
    kept_BN: Tensor


Rows = TypeVar("Rows", Seen, Coded, _Images)


def _rows(of: Rows, rows_R: Tensor) -> Rows:
    """Some of the frames."""
    return type(of)(*(values.index_select(0, rows_R) for values in of))


def _with_rows(of: Coded, rows_R: Tensor, other: Coded) -> Coded:
    """These with other results for some of the frames."""
    return Coded(*(values.index_copy(0, rows_R, others) for values, others in zip(of, other, strict=True)))


def _where(is_other_B: Tensor, other: Coded, of: Coded) -> Coded:
    """These, or other results where `is_other_B` (bool)."""
    return Coded(
        *(
            torch.where(is_other_B.view(-1, *[1] * (values.ndim - 1)), others, values)
            for values, others in zip(of, other, strict=True)
        )
    )


def _errors(shown_B3HW: Tensor, pixels_B3HW: Tensor, patch: int) -> Tensor:
    """Squared error of each patch, int64 [B, N]: sums of integers are exact, in any batch and on any device."""
    squares = (shown_B3HW.int() - pixels_B3HW.int()).square().sum(1, keepdim=True, dtype=torch.int32)
    return F.pixel_unshuffle(squares, patch).sum(1, dtype=torch.int64).flatten(1)


class Following:
    """The steps of `Encoding` over frames; `runs` is how its device runs a function (launching.py)."""

    def __init__(self, encoding: Encoding, device: torch.device, runs: Callable[[Work], Work]) -> None:
        self._encoding = encoding
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._patch = encoding.model.config.patch_size
        self._num_global = encoding.model.config.num_global
        # What a token must be worth: the threshold's squared error, here in pixel values of 0 .. 255.
        self._token_cost = encoding.dtf.threshold * 127.5**2
        self._run_first = runs(self._first)
        self._run_unrenewed = runs(self._unrenewed)
        self._run_as_images = runs(self._as_images)
        self._run_both = runs(self._unrenewed_and_as_images)
        self._run_cheapest = runs(self._cheapest)

    def first(self, pixels_B3HW: Tensor) -> Coded:
        """The first frames, uint8 [B, 3, H, W], as images."""
        return Coded(*self._run_first(pixels_B3HW))

    def next(self, pixels_B3HW: Tensor, before: Coded) -> Coded:
        """The frames behind others."""
        if not self._on_cpu:
            results = self._run_both(pixels_B3HW, *before)
            seen, unrenewed, images = Seen(*results[:5]), Coded(*results[5:10]), _Images(*results[10:14])
            rows = results[14].nonzero()[:, 0]
        else:
            results = self._run_unrenewed(pixels_B3HW, *before)
            seen, unrenewed = Seen(*results[:5]), Coded(*results[5:])
            # A cell that costs less than a global cannot be cheaper anew: a frame that hardly changed is not tried.
            cost_BM = self._by_cell(unrenewed.cost_BN, self._encoding.model.grid(pixels_B3HW))
            rows = (cost_BM > self._token_cost).any(1).nonzero()[:, 0]
            if not len(rows):
                return unrenewed
            seen = _rows(seen, rows)
            results = self._run_as_images(*seen, unrenewed.cost_BN.index_select(0, rows))
            images, may_pay = _Images(*results[:4]), results[4].nonzero()[:, 0]
            seen, images, rows = _rows(seen, may_pay), _rows(images, may_pay), rows.index_select(0, may_pay)
        if not len(rows):
            return unrenewed
        if not self._on_cpu:
            seen, images = _rows(seen, rows), _rows(images, rows)
        results = self._run_cheapest(*seen, *_rows(before, rows), *_rows(unrenewed, rows), *images)
        return _with_rows(unrenewed, rows, Coded(*results))

    # --- what the device does: tensors with a row a frame -> such tensors ------------------------------------------

    def _first(self, pixels_B3HW: Tensor) -> tuple[Tensor, ...]:
        seen = self._encoding.see(pixels_B3HW)
        return self._decoded(self._images(seen), pixels_B3HW)

    def _unrenewed(self, pixels_B3HW: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        """`Seen` and, with no cell renewed, `Coded`."""
        seen, shown = self._encoding.see(pixels_B3HW), Coded(*before)
        return *seen, *self._after(seen, shown.shown_B3HW, shown.global_BM, torch.zeros_like(shown.renewed_BM))

    def _as_images(self, *seen_and_cost: Tensor) -> tuple[Tensor, ...]:
        """`_Images`; and the frames, bool [B], of which a cell may be cheaper anew than `cost_BN`."""
        seen, cost_BN = Seen(*seen_and_cost[:5]), seen_and_cost[5]
        images, grid = self._images(seen), self._encoding.model.grid(seen.pixels_B3HW)
        # What its tokens cost is known before a frame is decoded, and its errors only add to that.
        least_BM = self._token_cost * (1 + self._by_cell(images.kept_BN, grid))
        return *images, (least_BM < self._by_cell(cost_BN, grid)).any(1)

    def _unrenewed_and_as_images(self, pixels_B3HW: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        coded = self._unrenewed(pixels_B3HW, *before)
        return *coded, *self._as_images(*coded[:5], Coded(*coded[5:]).cost_BN)

    def _cheapest(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Of `Seen`, the frames `before`, those without a renewed cell, and `_Images`: the cheapest way of each."""
        seen, before = Seen(*tensors[:5]), Coded(*tensors[5:10])
        cheapest, images = Coded(*tensors[10:15]), _Images(*tensors[15:])
        anew, grid = self._decoded(images, seen.pixels_B3HW), self._encoding.model.grid(seen.pixels_B3HW)
        renewed_BM = self._by_cell(anew.cost_BN, grid) + self._token_cost < self._by_cell(cheapest.cost_BN, grid)
        if not self._on_cpu:
            in_part = self._in_part(seen, before, anew.global_BM, renewed_BM)
        else:
            # Where no cell pays, all of them do not; and to renew each is the way of images, which is there.
            in_part, is_image = anew, renewed_BM.all(1) & (self._encoding.dtf.min_tokens <= self._num_global)
            rows = (renewed_BM.any(1) & ~is_image).nonzero()[:, 0]
            if len(rows):
                of_rows = (_rows(seen, rows), _rows(before, rows), anew.global_BM[rows], renewed_BM[rows])
                in_part = _with_rows(anew, rows, self._in_part(*of_rows))
        for way in (in_part, anew):
            cheapest = _where(self._total_B(way) < self._total_B(cheapest), way, cheapest)
        return cheapest

    # --- parts of them ----------------------------------------------------------------------------------------------

    def _by_cell(self, cost_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Float64 [B, M]: the sums of what patches cost."""
        zeros = cost_BN.new_zeros(len(cost_BN), self._num_global, dtype=torch.float64)
        return zeros.index_add_(1, self._cells_N(grid), cost_BN.double())

    def _total_B(self, coded: Coded) -> Tensor:
        """What the frames cost."""
        return coded.cost_BN.sum(1) + self._token_cost * coded.renewed_BM.sum(1)

    def _images(self, seen: Seen) -> _Images:
        full = self._encoding.full_rate_seen(seen)
        filtered = self._encoding.filter(full)
        return _Images(pack(full, filtered), full.codes.global_BM, full.codes.patch_BN, filtered.kept_BN)

    def _decoded(self, images: _Images, pixels_B3HW: Tensor) -> Coded:
        """What they show and cost."""
        codes = Codes(images.global_BM, images.patch_BN)
        renewed_BM = torch.ones_like(codes.global_BM, dtype=torch.bool)
        shown = self._encoding.rebuild(codes, images.kept_BN, self._encoding.model.grid(pixels_B3HW))
        return self._coded(pixels_B3HW, shown, images.packed_BR, codes.global_BM, images.kept_BN, renewed_BM)

    def _in_part(self, seen: Seen, before: Coded, new_BM: Tensor, renewed_BM: Tensor) -> Coded:
        global_BM = torch.where(renewed_BM, new_BM, before.global_BM)
        return self._after(seen, before.shown_B3HW, global_BM, renewed_BM)

    def _after(self, seen: Seen, before_B3HW: Tensor, global_BM: Tensor, renewed_BM: Tensor) -> Coded:
        encoding, pixels = self._encoding, seen.pixels_B3HW
        full = encoding.full_rate_after(seen, before_B3HW, global_BM, renewed_BM)
        filtered = encoding.filter(full, new_globals_B=renewed_BM.sum(1))
        if encoding.dtf.threshold:
            pays_BN, shown = self._paying(full, filtered.kept_BN, renewed_BM, before_B3HW, pixels)
            filtered = replace(filtered, kept_BN=filtered.kept_BN & pays_BN, worth_BN=filtered.worth_BN * pays_BN)
        else:  # every patch is kept
            shown = encoding.rebuild_after(full.codes, filtered.kept_BN, renewed_BM, before_B3HW)
        return self._coded(pixels, shown, pack(full, filtered), global_BM, filtered.kept_BN, renewed_BM)

    def _paying(
        self, full: FullRate, kept_BN: Tensor, renewed_BM: Tensor, before_B3HW: Tensor, pixels_B3HW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which patches are worth their tokens, bool [B, N], and what is shown with these alone.

        A code may say too little of a patch that changed to be worth its token, or even add to the error: the encoder
        has decoded it, and knows.
        """
        before_BN = _errors(before_B3HW, pixels_B3HW, self._patch)
        in_renewed_BN = renewed_BM.index_select(1, self._cells_N(full.grid))
        if self._on_cpu:  # what is no more than a token's cost cannot become less by more than that
            may_pay_BN = kept_BN & (in_renewed_BN | (before_BN > self._token_cost))
            kept_BN = kept_BN & (may_pay_BN.any(1) | renewed_BM.any(1))[:, None]
        draft = self._encoding.rebuild_after(full.codes, kept_BN, renewed_BM, before_B3HW)
        gains_BN = before_BN - _errors(draft, pixels_B3HW, self._patch)
        pays_BN = in_renewed_BN | (gains_BN > self._token_cost)
        if not self._on_cpu:
            return pays_BN, self._encoding.rebuild_after(full.codes, kept_BN & pays_BN, renewed_BM, before_B3HW)
        rows = (kept_BN & ~pays_BN).any(1).nonzero()[:, 0]  # else the draft shows it
        if not len(rows):
            return pays_BN, draft
        codes = Codes(*(each[rows] for each in full.codes))
        again = self._encoding.rebuild_after(codes, (kept_BN & pays_BN)[rows], renewed_BM[rows], before_B3HW[rows])
        return pays_BN, draft.index_copy(0, rows, again)

    def _coded(
        self,
        pixels_B3HW: Tensor,
        shown_B3HW: Tensor,
        packed_BR: Tensor,
        global_BM: Tensor,
        kept_BN: Tensor,
        renewed_BM: Tensor,
    ) -> Coded:
        cost_BN = _errors(shown_B3HW, pixels_B3HW, self._patch).double() + self._token_cost * kept_BN
        return Coded(packed_BR, shown_B3HW, global_BM, renewed_BM, cost_BN)

    def _cells_N(self, grid: tuple[int, int]) -> Tensor:
        return cell_of_patches(grid, self._num_global, self._device)
