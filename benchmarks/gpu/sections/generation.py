"""The generator: a training step and sampling, at the fixed rate's 281 tokens and at lengths like real rows'."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.measure import Section, free_memory
from benchmarks.gpu.precisions import switched
from benchmarks.sampling import Contender, compare
from tatok.dataset.batches import PaddedBatch, RowArrays
from tatok.generator.config import GeneratorConfig
from tatok.generator.model import Generator
from tatok.generator.recipe import GeneratorRecipe
from tatok.generator.trainer import GeneratorTrainer

__all__ = ["run"]

NUM_GLOBAL, GRID, MEAN_TOKENS = 25, (1, 16, 16), 56
SIZES: Mapping[str, tuple[int, int, int]] = {"small": (256, 6, 4), "base": (768, 12, 12)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Kept sets of a dataset: all positions in every row, or, with a long tail, 31 of them on average."""

    config: GeneratorConfig
    kept_R: tuple[np.ndarray, ...]

    @property
    def mean_tokens(self) -> float:
        """Globals included."""
        return self.config.num_global + float(np.mean([len(kept) for kept in self.kept_R]))


def of_size(size: tuple[int, int, int], vocab_size: int, *, fixed: bool, num_rows: int = 512) -> Lengths:
    """Width, layers and heads; the kept sets are random."""
    width, num_layers, num_heads = size
    config = GeneratorConfig(
        vocab_size=vocab_size,
        num_global=NUM_GLOBAL,
        grid=GRID,
        num_classes=10,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
    )
    num_positions, random = config.num_positions, np.random.default_rng(0)
    if fixed:
        everywhere = np.arange(num_positions)
        return Lengths(
            config=replace(config, fixed_positions=tuple(range(num_positions))), kept_R=(everywhere,) * num_rows
        )
    counts = random.gamma(1.2, (MEAN_TOKENS - NUM_GLOBAL) / 1.2, num_rows).round().clip(0, num_positions).astype(int)
    kept_R = tuple(np.sort(random.permutation(num_positions)[:count]) for count in counts)
    return Lengths(config=config, kept_R=kept_R)


def batch_of(lengths: Lengths, batch_tokens: int) -> PaddedBatch:
    """Rows of like length, as a training batch has, around the mean; random codes."""
    random = np.random.default_rng(1)
    by_length = sorted(lengths.kept_R, key=len)
    closest = sorted(by_length, key=lambda kept: abs(len(kept) + NUM_GLOBAL - lengths.mean_tokens))
    chosen = [closest[number % max(1, len(closest) // 8)] for number in range(batch_tokens)]
    longest = max(len(kept) for kept in chosen) + NUM_GLOBAL
    chosen = chosen[: max(1, batch_tokens // longest)]
    num_tokens_D = np.array([NUM_GLOBAL + len(kept) for kept in chosen], dtype=np.int64)
    return RowArrays.of(
        tokens=random.integers(0, lengths.config.vocab_size, int(num_tokens_D.sum())),
        places=np.concatenate(chosen),
        num_tokens_D=num_tokens_D,
        num_global_D=np.full(len(chosen), NUM_GLOBAL),
        grids_D3=np.tile(np.array(GRID, dtype=np.int32), (len(chosen), 1)),
        rows_D=np.arange(len(chosen)),
        columns={},
    ).padded()


def training(
    section: Section, lengths: Lengths, precision: str, batch_tokens: int, num_steps: int
) -> dict[str, float | int]:
    """Seconds of an optimizer step; each ends by waiting for the device."""
    recipe = GeneratorRecipe(
        steps=10_000,
        width=lengths.config.width,
        num_layers=lengths.config.num_layers,
        num_heads=lengths.config.num_heads,
        precision="bfloat16" if precision == "bfloat16" else "float32",
    )
    trainer = GeneratorTrainer(lengths.config, [], recipe, section.device)
    batch = batch_of(lengths, batch_tokens)
    if section.on_cuda:
        torch.cuda.reset_peak_memory_stats(section.device)
    seconds: list[float] = []
    with switched("tf32" if precision == "tf32" else "float32", section.device):
        for _ in range(3 + num_steps):
            before_s = trainer.spent.seconds
            trainer.step(batch)
            seconds.append(trainer.spent.seconds - before_s)
    step_s, num_tokens = statistics.median(seconds[3:]), int(batch.lengths.sum())
    told: dict[str, float | int] = {
        "step_ms": 1e3 * step_s,
        "least_ms": 1e3 * min(seconds[3:]),
        "most_ms": 1e3 * max(seconds[3:]),
        "rows": len(batch.lengths),
        "tokens": num_tokens,
        "tokens_per_s": num_tokens / step_s,
        "images_per_s": len(batch.lengths) / step_s,
    }
    if section.on_cuda:
        told["peak_memory_mib"] = torch.cuda.max_memory_allocated(section.device) / 2**20
    return told


def sampling(
    section: Section, fixed: Lengths, real: Lengths, precision: str, batch: int, rounds: int
) -> dict[str, Any]:
    """Untrained generators told the lengths, in turns."""
    generators = []
    for lengths in (fixed, real):
        torch.manual_seed(0)
        generators.append(Generator(lengths.config).eval().requires_grad_(False).to(section.device))
    with switched(precision, section.device):
        (found,) = compare(
            "equal batch",
            Contender(name="fixed", generator=generators[0]),
            [(Contender(name="real", generator=generators[1], kept_R=real.kept_R), batch)],
            baseline_batch=batch,
            num_rounds=rounds,
        )
    return {
        "fixed_images_per_s": found.baseline_images_per_s,
        "real_images_per_s": found.contender_images_per_s,
        "fixed_tokens": found.baseline_tokens,
        "real_tokens": found.contender_tokens,
        "token_ratio": found.token_ratio,
        "least_ratio": found.min_ratio,
        "median_ratio": found.median_ratio,
        "most_ratio": found.max_ratio,
        "tail": found.tail,
        "rounds": rounds,
    }


def run(section: Section) -> None:
    """Sampling by batch, then training steps by precision; the small generator first."""
    vocab_size = 64 if section.tiny else 4096
    sizes = {"tiny": (32, 2, 2)} if section.tiny else SIZES
    precisions = ("float32",) if section.tiny else ("bfloat16", "tf32", "float32")
    for name, size in sizes.items():
        fixed, real = (of_size(size, vocab_size, fixed=kind) for kind in (True, False))
        batches = (2,) if section.tiny else ((256, 64, 1024) if name == "small" else (256,))
        for batch in batches:
            for precision in precisions[:2]:
                work = partial(sampling, section, fixed, real, precision, batch, 1 if section.tiny else 3)
                found = section.attempt(f"sampling.{name}.{precision}.batch_{batch}", work, needs_s=2)
                free_memory(section.device)
                if found:
                    section.headline(
                        f"sampling, {name}, {precision} at {batch}: fixed {found['fixed_images_per_s']:.0f}, "
                        f"real {found['real_images_per_s']:.0f} images/s"
                    )
        for precision in precisions:
            rates = []
            for kind, lengths in (("fixed", fixed), ("real", real)):
                batch_tokens, num_steps = (1024, 2) if section.tiny else (32_768, 10)
                work = partial(training, section, lengths, precision, batch_tokens, num_steps)
                found = section.attempt(f"training.{name}.{precision}.{kind}", work)
                free_memory(section.device)
                if found:
                    rates.append(f"{kind} {found['step_ms']:.1f} ms, {found['images_per_s']:.0f} images/s")
            section.headline(f"training, {name}, {precision}: {'; '.join(rates)}")
