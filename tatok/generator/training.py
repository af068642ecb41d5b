"""Training a generator on a tokenized dataset: exact budgets, averaged weights, resuming where it stopped.

A budget is a number of steps, of training tokens or of seconds, so that generators of different token sequences can be
compared at equal tokens and at equal time. Warm-up and cosine follow the share of the budget that is spent, whichever
it is. Tokens are those of the sequences, without padding, class or end. Seconds are those of the steps, waiting for
their batches included; held-out losses, saving and logging are not counted.
"""

from __future__ import annotations

import copy
import io
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from tatok.dataset.batches import PaddedBatch
from tatok.dataset.dataset import TokenDataset
from tatok.dataset.packing import Batch, Bucketing
from tatok.generator.checkpoint import GeneratorCheckpoint, save_generator
from tatok.generator.config import GeneratorConfig
from tatok.generator.data import GeneratorData
from tatok.generator.model import Generator
from tatok.schemas.errors import ConfigError
from tatok.training.run_folder import RunFolder

__all__ = [
    "CHECKPOINT",
    "GeneratorRecipe",
    "GeneratorTrainer",
    "HeldOutLoss",
    "Spent",
    "heldout_loss",
    "train_generator",
]

STATE, CHECKPOINT = "state.pt", "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorRecipe:
    """How a generator is trained; exactly one of the budgets `steps`, `tokens` and `seconds` is given.

    `batch_tokens` counts padding (rows of like length share a batch). `warmup_share` is that of the budget. The average
    of the weights, which sampling uses, is warmed up: its decay is min(ema_decay, (1 + step) / (10 + step)).
    """

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    width: int = 256
    num_layers: int = 6
    num_heads: int = 4
    class_dropout: float = 0.1
    unconditional: bool = False
    batch_tokens: int = 8192
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.05
    ema_decay: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        budgets = [budget for budget in (self.steps, self.tokens, self.seconds) if budget is not None]
        if len(budgets) != 1 or not budgets[0] > 0:
            raise ConfigError(
                f"steps {self.steps}, tokens {self.tokens}, seconds {self.seconds}: give exactly one budget, above 0"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision is {self.precision!r}; it must be float32 or bfloat16")

    def share(self, spent: Spent) -> float:
        """How much of the budget is spent, at most 1."""
        if self.steps is not None:
            return min(spent.steps / self.steps, 1.0)
        if self.tokens is not None:
            return min(spent.tokens / self.tokens, 1.0)
        assert self.seconds is not None
        return min(spent.seconds / self.seconds, 1.0)

    def learning_rate_at(self, share: float) -> float:
        """Linear warm-up from a hundredth, then a cosine down to a twentieth."""
        if share < self.warmup_share:
            return self.learning_rate * max(share / self.warmup_share, 0.01)
        progress = (share - self.warmup_share) / (1 - self.warmup_share)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What training has taken so far; see the module for what counts."""

    steps: int = 0
    images: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """Bits that the averaged weights need for an image of a dataset, codes and places apart, and its mean tokens."""

    num_images: int
    mean_tokens: float
    code_bits: float
    place_bits: float

    @property
    def bits(self) -> float:
        """Codes and places together."""
        return self.code_bits + self.place_bits


class GeneratorTrainer:
    """A generator, the average of its weights, its optimizer, and what has been spent."""

    def __init__(
        self, config: GeneratorConfig, classes: Sequence[str], recipe: GeneratorRecipe, device: torch.device
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.generator = Generator(config).to(device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.classes = {label: number for number, label in enumerate(classes)}
        self.spent = Spent()
        self._was_cut = False
        parameters = list(self.generator.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))

    @property
    def is_done(self) -> bool:
        """Whether the budget is spent: of tokens also where the rest is too little for another row."""
        return self._was_cut or self.recipe.share(self.spent) >= 1

    def within_budget(self, batch: PaddedBatch) -> PaddedBatch | None:
        """The rows of a batch that the budget still has tokens for; None where it has not enough for one.

        So training ends short of a budget of tokens by less than one sequence, and never exceeds it.
        """
        if self.recipe.tokens is None:
            return batch
        left = self.recipe.tokens - self.spent.tokens
        num_rows = int((batch.lengths.cumsum(0) <= left).sum())
        if num_rows == len(batch.lengths):
            return batch
        self._was_cut = True
        rows = slice(0, num_rows)
        cut = {name: getattr(batch, name)[rows] for name in _ROW_FIELDS}
        columns = {name: values[rows] for name, values in batch.columns.items()}
        return replace(batch, **cut, columns=columns) if num_rows else None

    def classes_of(self, batch: PaddedBatch) -> Tensor:
        """The class of each row, int64 [B]; raises ConfigError for a label that the training data do not have."""
        if not self.classes:
            return torch.zeros(len(batch.lengths), dtype=torch.int64)
        unknown = sorted({str(label) for label in batch.columns["label"]} - self.classes.keys())
        if unknown:
            raise ConfigError(
                f"the generator's training data have no label {', '.join(unknown)}; hold out rows of theirs"
            )
        return torch.tensor([self.classes[label] for label in batch.columns["label"]])

    def step(self, batch: PaddedBatch, waited_s: float = 0.0) -> tuple[float, float]:
        """One optimizer step; nats of codes and of places, summed over the batch.

        Raises FloatingPointError where the loss is not finite.
        """
        started = time.perf_counter()
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(recipe.share(self.spent))
        num_tokens = int(batch.lengths.sum())
        self.generator.train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = self.generator.loss(batch.to(self.device), self.classes_of(batch).to(self.device))
        total = (loss.codes + loss.places) / num_tokens
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss is {float(total)} at step {self.spent.steps}; lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
        self.optimizer.step()
        self._update_average()
        codes, places = loss.codes.item(), loss.places.item()  # waits for the device: the seconds are all of them
        self.spent = Spent(
            steps=self.spent.steps + 1,
            images=self.spent.images + len(batch.lengths),
            tokens=self.spent.tokens + num_tokens,
            seconds=self.spent.seconds + waited_s + time.perf_counter() - started,
        )
        return codes, places

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.spent.steps) / (10 + self.spent.steps))
        for mean, value in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    def save(self, folder: RunFolder, stream_state: dict[str, int | str]) -> None:
        """Write everything that `restore` needs, atomically."""
        state = {
            "recipe": asdict(self.recipe),
            "spent": asdict(self.spent),
            "was_cut": self._was_cut,
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "stream": stream_state,
            "num_records": folder.num_records,
        }
        folder.sync_records()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        folder.write(STATE, buffer.getvalue())

    def restore(self, folder: RunFolder) -> dict[str, int | str] | None:
        """Go on from a saved state, if there is one; what the stream of batches shall load.

        Raises ConfigError where it was saved under another recipe or for another model.
        """
        data, path = folder.read(STATE), folder.path(STATE)
        if data is None:
            return None
        state = torch.load(io.BytesIO(data), weights_only=True, map_location=self.device)
        given = asdict(self.recipe)
        different = [f"{name} {was} -> {given[name]}" for name, was in state["recipe"].items() if given[name] != was]
        if different:
            raise ConfigError(
                f"{path} was written under another recipe ({', '.join(different)}); choose another output"
            )
        try:
            self.generator.load_state_dict(state["generator"])
        except RuntimeError as error:
            raise ConfigError(f"{path} was written for another dataset; choose another output: {error}") from error
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        self.spent, self._was_cut = Spent(**state["spent"]), state["was_cut"]
        folder.keep_records(state["num_records"])
        stream_state: dict[str, int | str] = state["stream"]
        return stream_state


_ROW_FIELDS = ("tokens", "kinds", "positions", "mask", "lengths", "grids", "rows")


@torch.no_grad()
def heldout_loss(trainer: GeneratorTrainer, data: TokenDataset) -> HeldOutLoss:
    """The bits an image of every row of a dataset under the averaged weights, in float32, each with its own class.

    Raises ConfigError where a row's shape or label is not of the training data's.
    """
    images, tokens, codes, places = 0, 0, 0.0, 0.0
    for batch in data.stream(Bucketing(tokens=_enough_tokens(trainer)), shuffle=False):
        assert isinstance(batch, PaddedBatch)
        loss = trainer.average.loss(batch.to(trainer.device), trainer.classes_of(batch).to(trainer.device))
        images, tokens = images + len(batch.lengths), tokens + int(batch.lengths.sum())
        codes, places = codes + float(loss.codes), places + float(loss.places)
    return HeldOutLoss(
        num_images=images,
        mean_tokens=tokens / images,
        code_bits=codes / math.log(2) / images,
        place_bits=places / math.log(2) / images,
    )


def _enough_tokens(trainer: GeneratorTrainer) -> int:
    return max(trainer.recipe.batch_tokens, trainer.generator.config.most_tokens)


def train_generator(
    data: str | PathLike[str],
    output: str | PathLike[str],
    recipe: GeneratorRecipe,
    device: torch.device,
    *,
    heldout: str | PathLike[str] | None = None,
    log_every_steps: int = 50,
    save_every_steps: int = 500,
) -> tuple[Spent, HeldOutLoss | None]:
    """Train on the tokenized dataset at `data` until the budget is spent, or resume where the output folder left off.

    Returns what was spent and, with `heldout`, the loss on that dataset at the end. `output` is a folder or any URL
    that fsspec can write. Figures go to OUTPUT/metrics.jsonl, the averaged weights and the figures at the end to
    OUTPUT/checkpoint. Seeds torch's global generator. Raises ConfigError where the dataset is not fit, or the output
    is of another recipe.
    """
    folder = RunFolder(os.fspath(output))
    seen = GeneratorData.of(data, unconditional=recipe.unconditional)
    config = GeneratorConfig(
        vocab_size=seen.vocab_size,
        num_global=seen.num_global,
        grid=seen.grid,
        num_classes=len(seen.classes),
        width=recipe.width,
        num_layers=recipe.num_layers,
        num_heads=recipe.num_heads,
        class_dropout=recipe.class_dropout,
        fixed_positions=seen.fixed_positions,
    )
    columns = () if recipe.unconditional else ("label",)
    trainer = GeneratorTrainer(config, seen.classes, recipe, device)
    stream = TokenDataset(data, columns=columns, seed=recipe.seed).stream(
        Bucketing(tokens=_enough_tokens(trainer)), epochs=None
    )
    heldout_data = None if heldout is None else TokenDataset(heldout, columns=columns)
    console = Console()
    stream_state = trainer.restore(folder)
    if stream_state is not None:
        stream.load_state_dict(stream_state)
        console.print(f"resuming in {folder.location}: step {trainer.spent.steps}, {trainer.spent.tokens:,} tokens")
    look: HeldOutLoss | None = None
    bar = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with (
        Progress(*bar, console=console, disable=not console.is_terminal) as progress,
        closing(iter(stream)) as batches,  # type: ignore[type-var]
    ):
        _run(trainer, batches, folder, progress, log_every_steps, save_every_steps)
        spent = asdict(trainer.spent)
        if heldout_data is not None:
            look = heldout_loss(trainer, heldout_data)
        figures = {} if look is None else asdict(look) | {"bits": look.bits}
        folder.add_record({"end": spent, "heldout": figures})
        folder.sync_records()
    checkpoint = GeneratorCheckpoint(
        generator=trainer.average,
        classes=seen.classes,
        tokenizer_weights_sha256=seen.tokenizer_weights_sha256,
        training={"recipe": asdict(recipe), "spent": spent, "heldout": figures},
    )
    folder.write_checkpoint(CHECKPOINT, lambda path: save_generator(path, checkpoint))
    console.print(f"checkpoint: {folder.path(CHECKPOINT)}")
    return trainer.spent, look


def _run(
    trainer: GeneratorTrainer,
    batches: Iterator[Batch],
    folder: RunFolder,
    progress: Progress,
    log_every_steps: int,
    save_every_steps: int,
) -> None:
    task = progress.add_task("generator", total=1.0)
    before, codes, places = trainer.spent, 0.0, 0.0
    state: dict[str, int | str] | None = None
    while not trainer.is_done:
        started = time.perf_counter()
        batch = next(batches)
        assert isinstance(batch, PaddedBatch)
        waited_s = time.perf_counter() - started
        cut = trainer.within_budget(batch)
        if cut is None:
            break
        of_codes, of_places = trainer.step(cut, waited_s)
        codes, places, state = codes + of_codes, places + of_places, dict(batch.state)
        progress.update(task, completed=trainer.recipe.share(trainer.spent))
        spent = trainer.spent
        if spent.steps % log_every_steps == 0 or trainer.is_done:
            images = (spent.images - before.images) * math.log(2)
            record = asdict(spent) | {"code_bits": codes / images, "place_bits": places / images}
            record |= {"tokens_per_s": (spent.tokens - before.tokens) / (spent.seconds - before.seconds)}
            folder.add_record(record)
            text = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in record.items())
            progress.console.print(text, soft_wrap=True, highlight=False)
            before, codes, places = spent, 0.0, 0.0
        if spent.steps % save_every_steps == 0:
            trainer.save(folder, state)
    if state is not None:
        trainer.save(folder, state)
