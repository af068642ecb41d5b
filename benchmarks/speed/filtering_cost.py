"""The time of the prior and DTF over that of encoding, by rounds: one thread, the same photos, in turns.

    python -m benchmarks.speed.filtering_cost ../shared/corpus/photos-heldout-0000.tar

Seconds are of this process's own CPU time, so that neighbours on the machine disturb less. Memory is kept as the
job's tokenizers keep it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from tatok.allocator import keep_freed_memory
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.photos import centre_crops

__all__ = ["shares"]

_ROUNDS = (1, 4)


def shares(tokenizer: Tokenizer, pixels_B3HW: torch.Tensor, *, turns: int) -> Mapping[int, Sequence[float]]:
    """Rounds -> the share of each turn, after one turn that warms up."""
    by_rounds = {rounds: tokenizer.with_dtf(rounds=rounds) for rounds in _ROUNDS}
    found: dict[int, list[float]] = {rounds: [] for rounds in by_rounds}
    for turn in range(-1, turns):
        started = time.process_time()
        full = tokenizer.full_rate(pixels_B3HW)
        encode_s = time.process_time() - started
        for rounds, filtering in by_rounds.items():
            started = time.process_time()
            filtering.filter(full)
            if turn >= 0:
                found[rounds].append((time.process_time() - started) / encode_s)
    return found


def main(
    photos: Annotated[list[str], typer.Argument(help="Tars, Parquet files or images.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the bundled one.")] = None,
    image_size: int = 256,
    batch_size: int = 16,
    turns: int = 7,
) -> None:
    """Print the median, the least and the most share for each number of rounds, as JSON."""
    keep_freed_memory()
    torch.set_num_threads(1)
    pixels_B3HW = torch.stack(list(centre_crops(photos, image_size, batch_size)))
    found = shares(Tokenizer.load(checkpoint, "cpu"), pixels_B3HW, turns=turns)
    told = {
        f"rounds {rounds}": [round(value, 3) for value in (statistics.median(each), min(each), max(each))]
        for rounds, each in found.items()
    }
    print(json.dumps(told))


if __name__ == "__main__":
    typer.run(main)
