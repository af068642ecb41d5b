"""How much faster a generator samples TaTok's sequences than a fixed rate's, with the lengths of a real dataset.

python -m benchmarks.claims.speed demo-output --json docs/results/speed.json

The baseline keeps all N patches and has no globals, with a generator of the same width, layers, heads and code heads.
Each setting (equal batch, equal memory, one image at a time) is timed in turns, baseline and contender, so that what
else the machine does meets both. Generators are untrained and told real rows' positions, since time depends on lengths
alone; with --generator a trained one is also timed at the lengths that it draws itself.

Memory is what tensors hold beyond the weights: computed for the choice of the batch, then measured (CUDA: the
allocator's peak; CPU: the peak of the allocations that torch's profiler records).
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.sampling import Comparison, Contender, compare, largest_batch, measured_peak_bytes
from tatok.dataset.parts import TokenizedData
from tatok.generator.checkpoint import load_generator
from tatok.generator.config import GeneratorConfig
from tatok.generator.data import GeneratorData
from tatok.generator.model import Generator
from tatok.model.autoencoder import TaTok, TaTokConfig
from tatok.model.checkpoint import Checkpoint, load_checkpoint
from tatok.model.dtf import DTFSettings
from tatok.model.prior import Prior
from tatok.schemas.errors import ConfigError
from tatok.statistics.json_text import json_text
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["Memory", "Speed", "app", "measure_speed"]

app = typer.Typer(pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The batch of one contender at equal memory: its computed and its measured peak."""

    contender: str
    batch: int
    computed_cache_bytes: int
    computed_bytes: int
    measured_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Everything measured, and on what."""

    device: str
    torch_version: str
    num_threads: int
    data: str
    num_rows: int
    baseline_tokens: int
    token_percentiles: dict[str, float]
    generator: dict[str, Any]
    baseline_parameters: int
    contender_parameters: int
    comparisons: tuple[Comparison, ...]
    memory: tuple[Memory, ...]


def _untrained(config: GeneratorConfig, device: torch.device) -> Generator:
    torch.manual_seed(0)
    return Generator(config).eval().requires_grad_(False).to(device)


def _fixed_rate_tokenizer(like: TaTokConfig, device: torch.device) -> Tokenizer:
    """An untrained tokenizer without globals, of the same size: decoding takes as long whatever the weights are."""
    config = replace(like, num_global=0)
    model, prior = TaTok(config).eval(), Prior(config).eval()
    return Tokenizer(Checkpoint(model=model, prior=prior, dtf=DTFSettings(), weights_sha256=""), device)


def measure_speed(
    data: str,
    *,
    checkpoint: Checkpoint | None,
    device: torch.device,
    batch: int,
    num_rounds: int,
    images_a_round: int,
    width: int = 256,
    num_layers: int = 6,
    num_heads: int = 4,
    trained: Generator | None = None,
    measure_memory: bool = True,
) -> Speed:
    """Time generators of the dataset's lengths and of its full rate; see the module.

    `images_a_round` is for one image at a time. `checkpoint` is the tokenizer's; without it nothing is decoded.
    Raises ConfigError where the dataset itself is of a fixed rate, or the trained generator is of another kind.
    """
    seen = GeneratorData.of(data, unconditional=True)
    if seen.fixed_positions is not None:
        raise ConfigError(f"{data} keeps the same positions in every row; there is nothing variable to compare")
    rows = TokenizedData.open(data).read_all(["positions"]).column("positions")
    kept_R = tuple(row.values.to_numpy() for row in rows)
    num_tokens_R = np.array([len(kept) for kept in kept_R]) + seen.num_global
    config = GeneratorConfig(
        vocab_size=seen.vocab_size,
        num_global=seen.num_global,
        grid=seen.grid,
        num_classes=10,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
    )
    full = replace(config, num_global=0, fixed_positions=tuple(range(config.num_positions)))
    decode = full_decode = None
    if checkpoint is not None:
        decode = Tokenizer(checkpoint, device).decode
        full_decode = _fixed_rate_tokenizer(checkpoint.model.config, device).decode
    generator = _untrained(config, device)
    contender = partial(Contender, generator=generator, kept_R=kept_R, decode=decode)
    baseline = Contender(name="fixed rate", generator=_untrained(full, device), decode=full_decode)
    tatok = contender(name="tatok")
    waiting = contender(name="tatok, never compacted", compact_below=0.0)
    at_equal_batch = [(tatok, batch), (waiting, batch)]
    if trained is not None:
        same = replace(trained.config, num_classes=config.num_classes, class_dropout=config.class_dropout)
        if same != config:
            raise ConfigError(f"the trained generator is {same}, but it is to be compared as {config}; give its sizes")
        own = Contender(name="tatok, trained, its own lengths", generator=trained.to(device), decode=decode)
        at_equal_batch.append((own, batch))
    budget_bytes = baseline.work(np.full(batch, full.most_tokens)).peak_bytes
    larger = largest_batch(tatok, budget_bytes, num_rounds)
    comparisons = [
        *compare("equal batch", baseline, at_equal_batch, baseline_batch=batch, num_rounds=num_rounds),
        *compare("equal memory", baseline, [(tatok, larger)], baseline_batch=batch, num_rounds=num_rounds),
        *compare(
            "one at a time",
            baseline,
            [(tatok, 1)],
            baseline_batch=1,
            num_rounds=num_rounds,
            batches_a_round=images_a_round,
        ),
    ]
    memory = []
    for each, num in ((baseline, batch), (tatok, larger)) if measure_memory else ():
        work = each.work(np.array([sequence.num_tokens for sequence in each.sample(num, 0)]))
        memory.append(
            Memory(
                contender=each.name,
                batch=num,
                computed_cache_bytes=work.peak_cache_bytes,
                computed_bytes=work.peak_bytes,
                measured_bytes=measured_peak_bytes(each, num, 0),
            )
        )
    percentiles = {f"p{q}": float(np.percentile(num_tokens_R, q)) for q in (0, 5, 25, 50, 75, 95, 100)}
    return Speed(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        torch_version=torch.__version__,
        num_threads=torch.get_num_threads(),
        data=Path(data).name,
        num_rows=len(kept_R),
        baseline_tokens=full.most_tokens,
        token_percentiles={"mean": float(num_tokens_R.mean()), **percentiles},
        generator=asdict(config),
        baseline_parameters=sum(p.numel() for p in baseline.generator.parameters()),
        contender_parameters=sum(p.numel() for p in generator.parameters()),
        comparisons=tuple(comparisons),
        memory=tuple(memory),
    )


def _table(speed: Speed) -> str:
    lines = [
        f"{speed.device}, torch {speed.torch_version}, {speed.num_threads} threads; {speed.num_rows:,} rows of "
        f"{speed.token_percentiles['mean']:.1f} tokens against {speed.baseline_tokens}",
        f"{'setting':14} {'contender':32} {'batch':>9} {'images/s':>15} {'ratio (min..max)':>20} "
        f"{'CPU time':>8} {'end to end':>10} {'tokens':>7} {'passes':>7} {'a pass':>7} {'tail':>5}",
    ]
    for c in speed.comparisons:
        batch, rate = f"{c.baseline_batch}:{c.contender_batch}", f"{c.baseline_images_per_s:.3f}:"
        ratio = f"{c.median_ratio:.2f} ({c.min_ratio:.2f}..{c.max_ratio:.2f})"
        lines.append(
            f"{c.setting:14} {c.contender:32} {batch:>9} {rate + f'{c.contender_images_per_s:.3f}':>15} {ratio:>20} "
            f"{c.median_cpu_ratio:>8.2f} {c.median_end_to_end_ratio:>10.2f} {c.token_ratio:>7.2f} "
            f"{c.row_pass_ratio:>7.2f} {c.row_pass_speedup:>7.2f} {c.tail:>5.2f}"
        )
    lines += [
        f"memory: {m.contender}, batch {m.batch}: computed {m.computed_bytes / 1e6:.1f} MB (cache "
        f"{m.computed_cache_bytes / 1e6:.1f}), measured {m.measured_bytes / 1e6:.1f} MB"
        for m in speed.memory
    ]
    return "\n".join(lines)


@app.command()
def main(
    data: Annotated[str, typer.Argument(help="Tokenized dataset whose lengths to use.")],
    tokenizer: Annotated[str | None, typer.Option(help="Its tokenizer's checkpoint; default: the bundled one.")] = None,
    generator: Annotated[str | None, typer.Option(help="A trained generator's checkpoint, timed as well.")] = None,
    batch: Annotated[int, typer.Option(help="Images a batch of the baseline.")] = 32,
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 5,
    images_a_round: Annotated[int, typer.Option(help="Images a turn where they come one at a time.")] = 4,
    width: Annotated[int, typer.Option(help="Width of the generators.")] = 256,
    num_layers: Annotated[int, typer.Option(help="Layers of the generators.")] = 6,
    num_heads: Annotated[int, typer.Option(help="Heads of a layer.")] = 4,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    device: Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure the peaks of memory, too.")] = True,
    json: Annotated[Path | None, typer.Option(help="Where to write the figures.")] = None,
) -> None:
    """Time sampling at equal batch, at equal memory and one at a time, in turns; print a table."""
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    speed = measure_speed(
        data,
        checkpoint=load_checkpoint(tokenizer),
        device=chosen,
        batch=batch,
        num_rounds=rounds,
        images_a_round=images_a_round,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        trained=None if generator is None else load_generator(generator).generator,
        measure_memory=memory,
    )
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(json_text(speed), encoding="utf-8")
    print(_table(speed))


if __name__ == "__main__":
    app()
