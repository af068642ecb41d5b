"""How fast generators sample: side by side, in turns, at equal batch, at equal memory and one image at a time.

Sampling time depends on lengths, not on what the codes are; so untrained generators can be timed, told to keep the
positions that real rows keep. Each batch takes its lengths evenly from the whole distribution (stratified by length),
so that a batch of a few images is as long on average as the dataset.

    images a second = 1 / (row passes an image x seconds a row pass)

A row pass is one image through the layers once. `sampling_work` counts them: the tokens of an image and its end, and
what the batch makes it wait (`tail`); seconds a row pass show what shorter attention and larger batches bring.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from tatok.generator.config import GeneratorConfig
from tatok.generator.model import CACHE_GROWTH, COMPACT_BELOW, Generator
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence

__all__ = [
    "Comparison",
    "Contender",
    "Round",
    "SamplingWork",
    "compare",
    "largest_batch",
    "measured_peak_bytes",
    "sampling_work",
    "stratified",
]

_LOGIT_COPIES = 4  # logits, their softmax, its cumulative sum, and one of temperature or guidance


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWork:
    """What sampling a batch takes: passes through the layers, the rows in them, the bytes of keys and values.

    `ideal_row_passes` is what images would take that waited for no other. `peak_bytes` adds the logits of all rows to
    the largest cache, the copies of one layer while it grows or loses rows included.
    """

    passes: int
    row_passes: int
    ideal_row_passes: int
    peak_cache_bytes: int
    peak_bytes: int


def sampling_work(
    config: GeneratorConfig, num_tokens_B: np.ndarray, *, compact_below: float = COMPACT_BELOW, guidance: float = 1.0
) -> SamplingWork:
    """Count what `Generator.sample` does for sequences of these lengths, globals included; int [B], at least one.

    The bytes are those of float32 without autocast.
    """
    most = config.most_tokens
    is_fixed = config.fixed_positions is not None
    growth = most if is_fixed else CACHE_GROWTH
    doubled = 2 if guidance != 1.0 else 1
    # Images that end early are seen to end in the pass after their last token; the longest possible need none.
    passes_B = np.minimum(num_tokens_B + (not is_fixed), most)
    bytes_a_step = 2 * config.width * 4 * doubled  # of one layer's keys and values, an image
    rows, capacity, row_passes, peak, step = len(num_tokens_B), 0, 0, 0, 0
    for step in range(int(passes_B.max())):
        row_passes += rows
        if step == capacity:  # one layer after the other: the old and the new are side by side for one of them
            peak = max(peak, rows * bytes_a_step * (config.num_layers * (capacity + growth) + capacity))
            capacity += growth
        alive = int((num_tokens_B > step).sum())
        if step >= config.num_global and not is_fixed and 0 < alive < compact_below * rows:
            peak = max(peak, capacity * bytes_a_step * (config.num_layers * rows + alive))
            rows = alive
    return SamplingWork(
        passes=step + 1,
        row_passes=row_passes,
        ideal_row_passes=int(passes_B.sum()),
        peak_cache_bytes=peak,
        peak_bytes=peak + len(num_tokens_B) * doubled * _LOGIT_COPIES * 4 * config.vocab_size,
    )


def stratified(num_tokens_R: np.ndarray, num: int, round_: int) -> np.ndarray:
    """`num` rows, one of each of `num` equal slices of the rows by length; another each round. int64 [num]."""
    order = np.argsort(num_tokens_R, kind="stable")
    within = (round_ * 0.6180339887498949 + 0.5) % 1  # the golden ratio: rounds spread over each slice
    return order[((np.arange(num) + within) / num * len(order)).astype(np.int64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A generator to time. `kept_R` are real rows' kept sets, whose lengths it is told to sample.

    Without them the lengths are its own, or fixed. `decode` makes images of the sequences, for end-to-end times.
    """

    name: str
    generator: Generator
    kept_R: tuple[np.ndarray, ...] | None = None
    compact_below: float = COMPACT_BELOW
    decode: Callable[[list[TokenSequence]], object] | None = None

    @property
    def num_tokens_R(self) -> np.ndarray | None:
        """Lengths of the real rows, or the fixed one; None where they are the generator's own."""
        config = self.generator.config
        if config.fixed_positions is not None:
            return np.array([config.most_tokens])
        return None if self.kept_R is None else np.array([len(kept) for kept in self.kept_R]) + config.num_global

    def sample(self, num: int, round_: int) -> list[TokenSequence]:
        """`num` sequences of random classes; the same for the same round."""
        config, device = self.generator.config, self.generator.norm.weight.device
        random = torch.Generator(device).manual_seed(round_)
        classes = torch.randint(max(config.num_classes, 1), (num,), generator=random, device=device)
        positions = None
        if self.kept_R is not None and self.num_tokens_R is not None:
            positions = [self.kept_R[row] for row in stratified(self.num_tokens_R, num, round_)]
        return self.generator.sample(classes, generator=random, positions=positions, compact_below=self.compact_below)

    def work(self, num_tokens_B: np.ndarray) -> SamplingWork:
        """What `sample` does for sequences of these lengths."""
        return sampling_work(self.generator.config, num_tokens_B, compact_below=self.compact_below)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of one contender: images, tokens, row passes, and seconds of sampling and of decoding (NaN: none).

    `sampling_cpu_s` is the processor's time for sampling, which other programs do not lengthen; of use on a CPU with
    one thread.
    """

    images: int
    tokens: int
    row_passes: int
    ideal_row_passes: int
    sampling_s: float
    sampling_cpu_s: float
    decoding_s: float

    @property
    def images_per_s(self) -> float:
        """The generator alone."""
        return self.images / self.sampling_s

    @property
    def images_per_s_end_to_end(self) -> float:
        """With the decoder."""
        return self.images / (self.sampling_s + self.decoding_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A contender against the baseline, timed in turns; their rounds in order.

    Ratios are of images a second, one a round:
    median ratio = token ratio x (row-pass ratio / token ratio) x row-pass speedup.
    """

    setting: str
    baseline: str
    contender: str
    baseline_batch: int
    contender_batch: int
    baseline_rounds: tuple[Round, ...]
    contender_rounds: tuple[Round, ...]

    @property
    def baseline_images_per_s(self) -> float:
        """Median over the rounds, the generator alone."""
        return statistics.median(each.images_per_s for each in self.baseline_rounds)

    @property
    def contender_images_per_s(self) -> float:
        """Median over the rounds, the generator alone."""
        return statistics.median(each.images_per_s for each in self.contender_rounds)

    @property
    def baseline_tokens(self) -> float:
        """Mean tokens an image."""
        return _an_image(self.baseline_rounds, lambda each: each.tokens)

    @property
    def contender_tokens(self) -> float:
        """Mean tokens an image."""
        return _an_image(self.contender_rounds, lambda each: each.tokens)

    @property
    def token_ratio(self) -> float:
        """Tokens an image of the baseline over the contender's: what the ratio would be if a token cost the same."""
        return self.baseline_tokens / self.contender_tokens

    @property
    def row_pass_ratio(self) -> float:
        """Row passes an image of the baseline over the contender's: the token ratio, less ends and waiting."""
        theirs, ours = (
            _an_image(rounds, lambda each: each.row_passes) for rounds in (self.baseline_rounds, self.contender_rounds)
        )
        return theirs / ours

    @property
    def tail(self) -> float:
        """The contender's row passes over what they were if no image waited for another; 1 is the best."""
        ideal = sum(each.ideal_row_passes for each in self.contender_rounds)
        return sum(each.row_passes for each in self.contender_rounds) / ideal

    @property
    def row_pass_speedup(self) -> float:
        """Seconds a row pass, the baseline's over the contender's: shorter attention, larger batches, extra work."""
        return self.median_ratio / self.row_pass_ratio

    @property
    def ratios(self) -> tuple[float, ...]:
        """The contender's images a second over the baseline's, generator alone, round by round."""
        pairs = zip(self.contender_rounds, self.baseline_rounds, strict=True)
        return tuple(ours.images_per_s / theirs.images_per_s for ours, theirs in pairs)

    @property
    def min_ratio(self) -> float:
        """The least of `ratios`."""
        return min(self.ratios)

    @property
    def median_ratio(self) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios)

    @property
    def max_ratio(self) -> float:
        """The greatest of `ratios`."""
        return max(self.ratios)

    @property
    def median_cpu_ratio(self) -> float:
        """The median of the ratios of images a second of processor time."""
        pairs = zip(self.contender_rounds, self.baseline_rounds, strict=True)
        return statistics.median(
            ours.images / ours.sampling_cpu_s / (theirs.images / theirs.sampling_cpu_s) for ours, theirs in pairs
        )

    @property
    def end_to_end_ratios(self) -> tuple[float, ...]:
        """As `ratios`, with the decoder; NaN without one."""
        pairs = zip(self.contender_rounds, self.baseline_rounds, strict=True)
        return tuple(ours.images_per_s_end_to_end / theirs.images_per_s_end_to_end for ours, theirs in pairs)

    @property
    def median_end_to_end_ratio(self) -> float:
        """The median of `end_to_end_ratios`."""
        return statistics.median(self.end_to_end_ratios)

    @property
    def decoding_share(self) -> float:
        """The decoder's share of the contender's end-to-end time."""
        decoding = sum(each.decoding_s for each in self.contender_rounds)
        return decoding / (decoding + sum(each.sampling_s for each in self.contender_rounds))


def _an_image(rounds: Sequence[Round], count: Callable[[Round], int]) -> float:
    return sum(map(count, rounds)) / sum(each.images for each in rounds)


def compare(
    setting: str,
    baseline: Contender,
    contenders: Sequence[tuple[Contender, int]],
    *,
    baseline_batch: int,
    num_rounds: int,
    batches_a_round: int = 1,
) -> list[Comparison]:
    """Time the baseline and each contender at its batch, in turns: A B C, A B C, ...; one comparison a contender.

    Each turn samples `batches_a_round` batches; a first turn of one small batch each is not counted.
    """
    everyone = [(baseline, baseline_batch), *contenders]
    rounds: list[list[Round]] = [[] for _ in everyone]
    for each, _ in everyone:
        _turn(each, 1, 0, 1)
    for round_ in range(num_rounds):
        for number, (each, batch) in enumerate(everyone):
            rounds[number].append(_turn(each, batch, round_ * batches_a_round, batches_a_round))
    return [
        Comparison(
            setting=setting,
            baseline=baseline.name,
            contender=contender.name,
            baseline_batch=baseline_batch,
            contender_batch=batch,
            baseline_rounds=tuple(rounds[0]),
            contender_rounds=tuple(rounds[number]),
        )
        for number, (contender, batch) in enumerate(contenders, start=1)
    ]


def _turn(contender: Contender, batch: int, first: int, num_batches: int) -> Round:
    sampling_s = sampling_cpu_s = decoding_s = 0.0
    lengths: list[np.ndarray] = []
    for number in range(num_batches):
        _synchronize(contender)
        started, cpu_started = time.perf_counter(), time.process_time()
        sequences = contender.sample(batch, first + number)
        _synchronize(contender)
        sampling_s += time.perf_counter() - started
        sampling_cpu_s += time.process_time() - cpu_started
        lengths.append(np.array([sequence.num_tokens for sequence in sequences]))
        if contender.decode is not None:
            started = time.perf_counter()
            contender.decode(sequences)
            _synchronize(contender)
            decoding_s += time.perf_counter() - started
    works = [contender.work(num_tokens_B) for num_tokens_B in lengths]
    return Round(
        images=batch * num_batches,
        tokens=int(np.concatenate(lengths).sum()),
        row_passes=sum(work.row_passes for work in works),
        ideal_row_passes=sum(work.ideal_row_passes for work in works),
        sampling_s=sampling_s,
        sampling_cpu_s=sampling_cpu_s,
        decoding_s=decoding_s if contender.decode is not None else math.nan,
    )


def _synchronize(contender: Contender) -> None:
    """Wait for what a CUDA device was told to do: calls return before it is done."""
    device = contender.generator.norm.weight.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def largest_batch(contender: Contender, budget_bytes: int, num_rounds: int = 1) -> int:
    """The most images whose computed peak (`SamplingWork.peak_bytes`) is within the budget in each of the rounds.

    Raises ConfigError where one image is too much, or the lengths are the generator's own.
    """
    lengths = contender.num_tokens_R
    if lengths is None:
        raise ConfigError(f"{contender.name}: the memory of lengths of its own cannot be computed; tell it real ones")

    def fits(num: int) -> bool:
        works = (contender.work(lengths[stratified(lengths, num, round_)]) for round_ in range(num_rounds))
        return all(work.peak_bytes <= budget_bytes for work in works)

    if not fits(1):
        raise ConfigError(f"{contender.name}: one image takes more than {budget_bytes:,} bytes")
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def measured_peak_bytes(contender: Contender, batch: int, round_: int = 0) -> int:
    """The most bytes that tensors held while a batch was sampled, beyond what was held before.

    On CUDA that is max_memory_allocated; on the CPU the same figure from the allocations that torch's profiler records,
    which makes sampling many times slower.
    """
    if contender.generator.norm.weight.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.sample(batch, round_)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        contender.sample(batch, round_)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path, encoding="utf-8") as stream:
            events = [event for event in json.load(stream)["traceEvents"] if event["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    held = [int(event["args"]["Total Allocated"]) for event in events]
    return max(held) - (held[0] - int(events[0]["args"]["Bytes"]))
