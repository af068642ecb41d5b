"""Calibration: the DTF threshold at which held-out images keep a wanted mean number of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from tatok.model.dtf import DTFSettings, Filtered, filter_tokens
from tatok.model.pixels import in_batches
from tatok.model.prior import CodeStatistics
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.encoding import FullRate
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["Calibration", "EncodedPhotos", "calibrate", "calibrated_sets", "check_mean"]

POSITIONS_A_BATCH = 4096  # patches; their distributions over 4,096 codes take 64 MB
SAMPLE_BATCHES = 4  # of these the search for a threshold of several rounds makes do with
CLOSE_ENOUGH = 0.05  # tokens, to the wanted mean, at several rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Settings found, and the mean, smallest and largest token count that they give (globals included)."""

    dtf: DTFSettings
    mean_tokens: float
    min_tokens: int
    max_tokens: int
    num_images: int


class EncodedPhotos:
    """Photos encoded at full rate once, to be filtered many times under different settings."""

    def __init__(self, tokenizer: Tokenizer, pixels: Iterable[Tensor]) -> None:
        self.tokenizer = tokenizer
        self.pixels: list[Tensor] = []
        self.full: list[FullRate] = []
        self._first: list[CodeStatistics] = []
        images = iter(pixels)
        first = next(images, None)
        if first is None:
            raise ConfigError("there is no photo to calibrate or evaluate on")
        num_positions = first.shape[1] * first.shape[2] // tokenizer.patch_size**2
        for batch in in_batches(chain([first], images), max(1, POSITIONS_A_BATCH // max(1, num_positions))):
            full = tokenizer.full_rate(batch)
            self.pixels.append(batch)
            self.full.append(full)
            self._first.append(tokenizer.estimate(full, torch.zeros_like(full.codes.patch_BN, dtype=torch.bool)))

    def __len__(self) -> int:
        return sum(len(pixels) for pixels in self.pixels)

    @property
    def first(self) -> list[CodeStatistics]:
        """The statistics given the globals alone, a batch each."""
        return self._first

    def filter(self, settings: DTFSettings, batches: Sequence[int] | None = None) -> list[Filtered]:
        """DTF's kept sets, a batch each (of the numbered batches only); with one round no prior pass is run."""
        numbers = range(len(self.full)) if batches is None else batches
        return [self._filter_one(self.full[number], self._first[number], settings) for number in numbers]

    def _filter_one(self, full: FullRate, first: CodeStatistics, settings: DTFSettings) -> Filtered:
        num_images, num_positions = full.codes.patch_BN.shape

        def estimate(visible: Tensor) -> CodeStatistics:
            return self.tokenizer.estimate(full, visible) if bool(visible.any()) else first

        return filter_tokens(
            estimate,
            num_images=num_images,
            num_positions=num_positions,
            num_global=self.tokenizer.num_global,
            settings=settings,
            device=full.codes.patch_BN.device,
            residual_BN=full.residual_BN,
            texture_BN=full.texture_BN,
        )

    def counts(self, settings: DTFSettings) -> Tensor:
        """Tokens of each image, globals included, int64 [images]."""
        return _counts(self, self.filter(settings))


def _counts(photos: EncodedPhotos, filtered: Iterable[Filtered]) -> Tensor:
    return torch.cat([f.kept_BN.sum(1).cpu() for f in filtered]) + photos.tokenizer.num_global


def calibrate(photos: EncodedPhotos, wanted_tokens: float, settings: DTFSettings) -> Calibration:
    """Find the threshold of `settings` at which the mean count is nearest to `wanted_tokens`.

    With one round the count never grows with the threshold (for a fraction: never shrinks) and bisection finds it;
    ties between positions may keep it from being met exactly, bounds on the counts and what is kept for its texture
    from being met at all: then the nearest is found. With more rounds each trial costs passes of the prior: the search
    starts from the threshold of one round, mostly on a sample, and ends within 0.05 tokens or at the best of a few
    trials. Raises ConfigError where no image can have the count.
    """
    return calibrated_sets(photos, wanted_tokens, settings)[0]


def check_mean(wanted_tokens: float, num_global: int, num_positions: float) -> None:
    """Raise ConfigError unless images of so many globals and patch positions can have this mean number of tokens."""
    if not num_global <= wanted_tokens <= num_global + num_positions:
        raise ConfigError(
            f"{wanted_tokens:g} tokens cannot be the mean: every image has {num_global} global tokens and at most "
            f"{num_global + num_positions:g} tokens in all"
        )


def calibrated_sets(
    photos: EncodedPhotos, wanted_tokens: float, settings: DTFSettings
) -> tuple[Calibration, list[Tensor]]:
    """As `calibrate`, with the kept sets that the threshold gives, bool [B, N] a batch."""
    positions = sum(full.codes.patch_BN.numel() for full in photos.full) / len(photos)
    lowest, highest = photos.tokenizer.num_global, photos.tokenizer.num_global + positions
    check_mean(wanted_tokens, lowest, positions)
    keeps_all, keeps_none = {
        "residual_bits": (0.0, positions * math.log2(photos.tokenizer.vocab_size) * 4),
        "fraction": (1.0, 0.0),
        "distortion": (0.0, 1e9),
    }[settings.threshold_kind]
    trials = _Trials(photos, wanted_tokens, settings)
    if wanted_tokens in (lowest, highest):
        trials.mean_at(keeps_all if wanted_tokens == highest else keeps_none)
    elif settings.rounds == 1:
        _bisect(trials, keeps_all, keeps_none)
    else:
        one_round = calibrate(photos, wanted_tokens, replace(settings, rounds=1)).dtf.threshold
        _search_rounds(trials, one_round)
    return trials.best()


class _Trials:
    """Thresholds tried on all photos, and the one that came nearest to the wanted mean."""

    def __init__(self, photos: EncodedPhotos, wanted_tokens: float, settings: DTFSettings) -> None:
        self.photos = photos
        self.wanted_tokens = wanted_tokens
        self.settings = settings
        self._best: tuple[float, DTFSettings, list[Tensor]] | None = None

    def mean_at(self, threshold: float) -> float:
        """The mean count at a threshold."""
        settings = replace(self.settings, threshold=threshold)
        filtered = self.photos.filter(settings)
        mean = float(_counts(self.photos, filtered).double().mean())
        miss = abs(mean - self.wanted_tokens)
        if miss < self.miss:
            self._best = (miss, settings, [f.kept_BN for f in filtered])
        return mean

    def sample_mean_at(self, threshold: float) -> float:
        """The mean count at a threshold in a few batches, evenly spread; in all of them where there are few."""
        num_batches = len(self.photos.full)
        if num_batches <= SAMPLE_BATCHES:
            return self.mean_at(threshold)
        numbers = [i * num_batches // SAMPLE_BATCHES for i in range(SAMPLE_BATCHES)]
        filtered = self.photos.filter(replace(self.settings, threshold=threshold), numbers)
        return float(_counts(self.photos, filtered).double().mean())

    @property
    def miss(self) -> float:
        """How far the nearest mean so far is from the wanted one, in tokens."""
        return math.inf if self._best is None else self._best[0]

    def best(self) -> tuple[Calibration, list[Tensor]]:
        """The nearest, and its kept sets."""
        assert self._best is not None
        _, settings, kept = self._best
        counts = torch.cat([kept_BN.sum(1).cpu() for kept_BN in kept]) + self.photos.tokenizer.num_global
        found = Calibration(
            dtf=settings,
            mean_tokens=float(counts.double().mean()),
            min_tokens=int(counts.min()),
            max_tokens=int(counts.max()),
            num_images=len(self.photos),
        )
        return found, kept


def _stored(threshold: float) -> float:
    return float(f"{threshold:.6g}")  # what is reported and stored is what was counted


def _bisect(trials: _Trials, more: float, fewer: float) -> None:
    """Halve the range between two thresholds 48 times; a distortion's, which spans magnitudes, by its logarithm."""
    is_log = trials.settings.threshold_kind == "distortion"
    if is_log:
        more = max(more, 1e-9)
    for _ in range(48):
        middle = _stored(math.sqrt(more * fewer) if is_log else (more + fewer) / 2)
        mean = trials.mean_at(middle)
        if mean == trials.wanted_tokens:
            break
        if mean > trials.wanted_tokens:
            more = middle
        else:
            fewer = middle


def _search_rounds(trials: _Trials, start: float) -> None:
    """Search on a sample; then on all photos, correcting for how far the sample's mean lies from theirs."""
    aim = wanted = trials.wanted_tokens
    threshold, is_fraction = start, trials.settings.threshold_kind == "fraction"
    for _ in range(3):
        threshold = _false_position(trials.sample_mean_at, aim, threshold, is_fraction)
        if trials.miss <= CLOSE_ENOUGH or len(trials.photos.full) <= SAMPLE_BATCHES:
            break  # the sample was all of them
        mean = trials.mean_at(threshold)
        if trials.miss <= CLOSE_ENOUGH:
            break
        aim = wanted - (mean - trials.sample_mean_at(threshold))


def _false_position(mean_at: Callable[[float], float], wanted: float, start: float, is_fraction: bool) -> float:
    """The threshold nearest to a wanted mean in at most 12 trials, from a start that is not far off.

    Works on the logarithm of the threshold (of the odds, for a fraction), in which counts run smoothly.
    """

    def threshold_at(u: float) -> float:
        return _stored(1 / (1 + math.exp(u)) if is_fraction else math.exp(u))  # counts fall with u in either case

    clipped = min(max(start, 1e-6), 1 - 1e-6) if is_fraction else max(start, 1e-12)
    u = math.log(1 / clipped - 1) if is_fraction else math.log(clipped)
    above: tuple[float, float] | None = None  # u, and the mean less the wanted one, where that is positive
    below: tuple[float, float] | None = None
    best, step = (math.inf, start), 0.25
    for _ in range(12):
        excess = mean_at(threshold_at(u)) - wanted
        best = min(best, (abs(excess), threshold_at(u)))
        if abs(excess) <= CLOSE_ENOUGH / 2:
            break
        if excess > 0:
            above = (u, excess)
        else:
            below = (u, excess)
        if above is None or below is None:  # not enclosed yet: go further out
            u += math.copysign(step, excess)
            step *= 2
        else:  # between the chord's zero and the middle, so that neither end stays for ever
            chord = above[0] + (below[0] - above[0]) * above[1] / (above[1] - below[1])
            u = 0.75 * chord + 0.25 * (above[0] + below[0]) / 2
        u = min(max(u, -50.0), 50.0)  # bounds on the counts may put the wanted mean out of reach
    return best[1]
