"""What is counted is what sampling does; batches have the real lengths; contenders take turns."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.sampling import (
    Comparison,
    Contender,
    Round,
    SamplingWork,
    compare,
    largest_batch,
    measured_peak_bytes,
    sampling_work,
    stratified,
)
from tatok.generator.config import GeneratorConfig
from tatok.generator.model import Generator
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence

CONFIG = GeneratorConfig(
    vocab_size=16, num_global=2, grid=(1, 8, 8), num_classes=3, width=64, num_layers=2, num_heads=2
)
FULL = replace(CONFIG, num_global=0, fixed_positions=tuple(range(64)))


def model(config: GeneratorConfig) -> Generator:
    torch.manual_seed(0)
    return Generator(config).eval()


def kept_sets(num: int = 300) -> tuple[np.ndarray, ...]:
    """Of 0 to 64 positions, 12 on average, as skewed as real ones."""
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.gamma(1.5, 8, num), 0, 64).astype(int)
    sizes[:2] = 0, 64
    return tuple(np.sort(rng.permutation(64)[:size]).astype(np.uint16) for size in sizes)


@pytest.mark.parametrize("config", [CONFIG, FULL], ids=["variable", "fixed"])
@pytest.mark.parametrize("compact_below", [0.0, 0.5, 0.9, 1.0])
def test_the_work_counted_is_the_work_done(
    config: GeneratorConfig, compact_below: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = model(config)
    seen: list[int] = []
    layer = generator.layers[0]
    forward = type(layer).forward

    def counted(self: torch.nn.Module, x: torch.Tensor, *rest: object) -> torch.Tensor:
        if self is layer:
            seen.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(type(layer), "forward", counted)
    kept = None if config is FULL else [kept_sets()[row] for row in (5, 9, 0, 33, 7, 7, 2, 80)]
    sequences = generator.sample(torch.zeros(8, dtype=torch.int64), positions=kept, compact_below=compact_below)
    lengths = np.array([sequence.num_tokens for sequence in sequences])
    work = sampling_work(config, lengths, compact_below=compact_below)
    assert (work.passes, work.row_passes) == (len(seen), sum(seen))
    ideal = 8 * 64 if config is FULL else int(lengths.sum()) + 8
    assert work.ideal_row_passes == ideal
    if compact_below == 1.0:
        assert work.row_passes == ideal
    if compact_below == 0.0 and config is CONFIG:
        assert work.row_passes == 8 * (int(lengths.max()) + 1) > ideal


def test_an_image_of_all_positions_asks_for_no_end() -> None:
    assert sampling_work(CONFIG, np.array([66])).passes == 66
    assert sampling_work(CONFIG, np.array([65])).passes == 66
    assert sampling_work(FULL, np.array([64])).passes == 64


def test_guidance_doubles_the_memory() -> None:
    lengths = np.array([10, 40])
    assert sampling_work(CONFIG, lengths, guidance=2.0).peak_bytes == 2 * sampling_work(CONFIG, lengths).peak_bytes


@pytest.mark.parametrize("config", [CONFIG, FULL], ids=["variable", "fixed"])
def test_the_memory_computed_is_the_memory_taken(config: GeneratorConfig) -> None:
    wide = replace(config, width=256, num_layers=1)  # so that keys and values are most of what is held
    contender = Contender(name="it", generator=model(wide), kept_R=kept_sets() if config is CONFIG else None)
    lengths = np.array([sequence.num_tokens for sequence in contender.sample(64, 0)])
    assert measured_peak_bytes(contender, 64) == pytest.approx(contender.work(lengths).peak_bytes, rel=0.15)


def test_a_batch_has_the_lengths_of_the_whole() -> None:
    lengths = np.array([len(kept) for kept in kept_sets()])
    for num in (10, 40):
        means = [lengths[stratified(lengths, num, round_)].mean() for round_ in range(20)]
        assert np.mean(means) == pytest.approx(lengths.mean(), rel=0.03)
        assert np.ptp(means) < lengths.std()  # random batches of 10 would spread about twice as wide
    one_by_one = [lengths[stratified(lengths, 1, round_)[0]] for round_ in range(50)]
    assert np.mean(one_by_one) == pytest.approx(lengths.mean(), rel=0.05)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    contender = Contender(name="it", generator=model(CONFIG), kept_R=kept_sets())
    lengths = contender.num_tokens_R
    assert lengths is not None
    budget = 5_000_000
    num = largest_batch(contender, budget, num_rounds=3)

    def peaks(batch: int) -> list[int]:
        return [contender.work(lengths[stratified(lengths, batch, round_)]).peak_bytes for round_ in range(3)]

    assert max(peaks(num)) <= budget < max(peaks(num + 1))
    fixed = Contender(name="fixed", generator=model(FULL))
    assert 1 < largest_batch(fixed, budget) < num  # shorter sequences, larger batches
    with pytest.raises(ConfigError, match="one image takes more than 1,000 bytes"):
        largest_batch(contender, 1000)
    with pytest.raises(ConfigError, match="cannot be computed"):
        largest_batch(Contender(name="own", generator=model(CONFIG)), budget)


def test_contenders_take_turns_at_the_lengths_they_are_told() -> None:
    turns: list[tuple[str, int]] = []

    def seen(name: str) -> Contender:
        def decode(sequences: list[TokenSequence]) -> None:
            turns.append((name, len(sequences)))

        is_fixed = name == "baseline"
        return Contender(
            name=name,
            generator=model(FULL if is_fixed else CONFIG),
            kept_R=None if is_fixed else kept_sets(),
            decode=decode,
        )

    [one, two] = compare(
        "s",
        seen("baseline"),
        [(seen("one"), 3), (seen("two"), 5)],
        baseline_batch=2,
        num_rounds=2,
        batches_a_round=2,
    )
    warm_up = [("baseline", 1), ("one", 1), ("two", 1)]
    turn = [("baseline", 2)] * 2 + [("one", 3)] * 2 + [("two", 5)] * 2
    assert turns == warm_up + turn * 2
    assert (one.contender, one.contender_batch, two.contender_batch) == ("one", 3, 5)
    lengths = np.array([len(kept) for kept in kept_sets()]) + 2
    for number, each in enumerate(two.contender_rounds):
        rows = [stratified(lengths, 5, 2 * number + batch) for batch in (0, 1)]
        assert each.tokens == sum(lengths[chosen].sum() for chosen in rows)
        assert each.images == 10
    assert two.baseline_tokens == 64
    assert all(each.sampling_s > each.decoding_s > 0 for each in two.contender_rounds)
    assert all(each.sampling_cpu_s > 0 for each in two.contender_rounds)


def test_the_figures_of_a_comparison() -> None:
    def rounds(*sampling_s: float, images: int, tokens: int, row_passes: int) -> tuple[Round, ...]:
        return tuple(
            Round(
                images=images,
                tokens=tokens,
                row_passes=row_passes,
                ideal_row_passes=row_passes // 2,
                sampling_s=seconds,
                sampling_cpu_s=seconds**2,
                decoding_s=1.0,
            )
            for seconds in sampling_s
        )

    found = Comparison(
        setting="s",
        baseline="a",
        contender="b",
        baseline_batch=2,
        contender_batch=4,
        baseline_rounds=rounds(4.0, 8.0, 6.0, images=2, tokens=128, row_passes=128),
        contender_rounds=rounds(2.0, 2.0, 2.0, images=4, tokens=64, row_passes=80),
    )
    assert found.baseline_images_per_s == pytest.approx(2 / 6)
    assert found.ratios == pytest.approx((4, 8, 6))
    assert (found.min_ratio, found.median_ratio, found.max_ratio) == pytest.approx((4, 6, 8))
    assert found.end_to_end_ratios == pytest.approx((4 / 3 / (2 / 5), 4 / 3 / (2 / 9), 4 / 3 / (2 / 7)))
    assert found.median_cpu_ratio == pytest.approx(4 / 4 / (2 / 36))
    assert found.token_ratio == 4
    assert found.row_pass_ratio == 64 / 20
    assert found.row_pass_ratio * found.row_pass_speedup == pytest.approx(found.median_ratio)
    assert found.tail == 2
    assert found.decoding_share == pytest.approx(1 / 3)
    alone = replace(found.contender_rounds[0], decoding_s=math.nan)
    assert math.isnan(alone.images_per_s_end_to_end)


class Asynchronous:
    """A contender on a device whose calls return at once; what they began takes until somebody waits for it."""

    name = "asynchronous"
    pending_s = 0.0
    now_s = 0.0

    def __init__(self) -> None:
        weight = SimpleNamespace(device=torch.device("cuda"))
        self.generator = SimpleNamespace(norm=SimpleNamespace(weight=weight))

    def sample(self, num: int, round_: int) -> list[TokenSequence]:
        self.pending_s += 0.125  # powers of two: sums are exact
        return [SimpleNamespace(num_tokens=4)] * num  # type: ignore[list-item]

    def decode(self, sequences: list[TokenSequence]) -> None:
        self.pending_s += 4.0

    def work(self, num_tokens_B: np.ndarray) -> SamplingWork:
        return sampling_work(FULL, np.full(len(num_tokens_B), 64))

    def synchronize(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.now_s += self.pending_s
        self.pending_s = 0.0


def test_a_device_is_waited_for_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    contender = Asynchronous()
    monkeypatch.setattr(torch.cuda, "synchronize", contender.synchronize)
    clock = SimpleNamespace(perf_counter=lambda: contender.now_s, process_time=lambda: contender.now_s)
    monkeypatch.setattr("benchmarks.sampling.time", clock)
    (comparison,) = compare("s", contender, [(contender, 2)], baseline_batch=2, num_rounds=2)  # type: ignore[arg-type,list-item]
    for each in (*comparison.baseline_rounds, *comparison.contender_rounds):
        assert (each.sampling_s, each.decoding_s) == (0.125, 4.0), "each is waited for by itself"
