"""Training a generator on a tokenized dataset: exact budgets, averaged weights, resuming where it stopped."""

from __future__ import annotations

import copy
import io
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from os import PathLike
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from tatok.dataset.batches import PaddedBatch
from tatok.dataset.dataset import TokenDataset
from tatok.dataset.packing import Batch, Bucketing
from tatok.dataset.stream import TokenStream
from tatok.generator.checkpoint import GeneratorCheckpoint, ended_before, save_generator
from tatok.generator.config import GeneratorConfig
from tatok.generator.model import Generator
from tatok.generator.recipe import GeneratorRecipe, HeldOutLoss, Spent
from tatok.generator.requirements import check_generator
from tatok.schemas.errors import ConfigError
from tatok.stopping import Interrupted, Stop, said_of_stop, stop_by_signals
from tatok.training.run_folder import RunFolder

__all__ = [
    "CHECKPOINT",
    "GeneratorTrainer",
    "heldout_loss",
    "train_generator",
]

STATE, CHECKPOINT = "state.pt", "checkpoint"


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

    def save(self, folder: RunFolder, stream_state: dict[str, int | str], pending: Mapping[str, Any]) -> None:
        """Write everything that `restore` needs, atomically; `pending` is what the caller wants back."""
        state = {
            "recipe": asdict(self.recipe),
            "spent": asdict(self.spent),
            "was_cut": self._was_cut,
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_of_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "stream": stream_state,
            "pending": dict(pending),
            "num_records": folder.num_records,
        }
        folder.sync_records()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        folder.write(STATE, buffer.getvalue())

    def restore(self, folder: RunFolder) -> tuple[dict[str, int | str], dict[str, Any]] | None:
        """Go on from a saved state, if there is one; what the stream of batches shall load, and what was `pending`.

        Raises ConfigError where it was saved under another recipe or for another model.
        """
        data, path = folder.read(STATE), folder.path(STATE)
        if data is None:
            folder.keep_records(0)  # of a run that was killed before it had saved anything: its steps come again
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
        if self.device.type == "cuda" and state.get("random_of_device") is not None:
            torch.cuda.set_rng_state(state["random_of_device"].cpu(), self.device)
        self.spent, self._was_cut = Spent(**state["spent"]), state["was_cut"]
        folder.keep_records(state["num_records"])
        return state["stream"], state.get("pending", {})


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
    is_quiet: bool = False,
) -> tuple[Spent, HeldOutLoss | None]:
    """Train on the tokenized dataset at `data` until the budget is spent, or resume where the output folder left off.

    Returns what was spent and, with `heldout`, the loss on that dataset at the end. `output` is a folder or any URL
    that fsspec can write. Figures go to OUTPUT/metrics.jsonl, the averaged weights and the figures at the end to
    OUTPUT/checkpoint. Seeds torch's global generator. With `is_quiet` nothing is printed.

    Ctrl-C and SIGTERM end the run after the step at hand, whose state is saved; Interrupted says so. On the CPU a run
    that resumes ends with the weights of one that was never stopped, to the bit, unless its budget is of seconds.
    A run that has ended is not begun again. Raises what `check_generator` does, before the first step, and ConfigError
    where the output is of another recipe.
    """
    seen = check_generator(
        data,
        output,
        recipe,
        heldout=heldout,
        log_every_steps=log_every_steps,
        save_every_steps=save_every_steps,
    )
    folder = RunFolder(os.fspath(output))
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
    with stop_by_signals() as stop:
        run = _Run(trainer, folder, stop, Console(quiet=is_quiet), log_every_steps, save_every_steps)
        try:
            restored = trainer.restore(folder)
            if restored is not None:
                stream.load_state_dict(restored[0])
                run.resume(*restored)
            elif folder.num_dropped:
                run.console.print(
                    f"metrics.jsonl in {folder.location} had {folder.num_dropped} lines of a run that saved no state; "
                    "its steps are done again, and they are left out"
                )
            run.has_looked = True
            ended = ended_before(folder.read(f"{CHECKPOINT}/config.json"), recipe, trainer.spent)
            if trainer.is_done and ended is not None and heldout is None:
                run.console.print("finished already; another output trains anew", highlight=False)
                run.console.print(f"checkpoint: {folder.path(CHECKPOINT)}", soft_wrap=True, highlight=False)
                return trainer.spent, ended.look
            run.until_done(stream)
            spent = asdict(trainer.spent)
            look = None if heldout_data is None else heldout_loss(trainer, heldout_data)
            figures = {} if look is None else asdict(look) | {"bits": look.bits}
            checkpoint = GeneratorCheckpoint(
                generator=trainer.average,
                classes=seen.classes,
                tokenizer_weights_sha256=seen.tokenizer_weights_sha256,
                training={"recipe": asdict(recipe), "spent": spent, "heldout": figures},
            )
            with stop.held():
                folder.add_record({"end": spent, "heldout": figures})
                folder.sync_records()
                folder.write_checkpoint(CHECKPOINT, lambda path: save_generator(path, checkpoint))
        except Interrupted as interrupt:
            raise run.ended_by(interrupt) from None
    run.console.print(f"checkpoint: {folder.path(CHECKPOINT)}", soft_wrap=True, highlight=False)
    return trainer.spent, look


class _Run:
    """The steps of a run, from where it is to the end of its budget."""

    def __init__(
        self,
        trainer: GeneratorTrainer,
        folder: RunFolder,
        stop: Stop,
        console: Console,
        log_every_steps: int,
        save_every_steps: int,
    ) -> None:
        self.trainer, self.folder, self.stop, self.console = trainer, folder, stop, console
        self.log_every_steps, self.save_every_steps = log_every_steps, save_every_steps
        self.before = trainer.spent  # at the last record
        self.codes = self.places = 0.0  # nats since then
        self.stream_state: dict[str, int | str] | None = None
        self.saved_at: int | None = None
        self.is_saved = True  # all that was done
        self.has_looked = False  # for an earlier state

    def resume(self, stream_state: dict[str, int | str], pending: Mapping[str, Any]) -> None:
        """Take up where a saved state was; an older one has nothing pending, and its next record counts from there."""
        spent = self.trainer.spent
        self.stream_state, self.saved_at, self.before = stream_state, spent.steps, spent
        if pending:
            self.before = Spent(**pending["before"])
            self.codes, self.places = pending["codes"], pending["places"]
        self.console.print(f"resuming in {self.folder.location}: step {spent.steps}, {spent.tokens:,} tokens")

    def save(self) -> None:
        """Save the state as it is after the last step."""
        assert self.stream_state is not None
        pending = {"before": asdict(self.before), "codes": self.codes, "places": self.places}
        self.trainer.save(self.folder, self.stream_state, pending)
        self.saved_at, self.is_saved = self.trainer.spent.steps, True

    def ended_by(self, interrupt: Interrupted) -> Interrupted:
        """Save what is not saved yet, unless that is not waited for; what to tell the user."""
        if not self.has_looked:
            return interrupt
        if not self.is_saved and not self.stop.is_urgent:
            self.save()
        return Interrupted(
            interrupt.signal_number,
            said_of_stop(
                self.folder.location,
                saved_at=None if self.saved_at is None else f"step {self.saved_at}",
                is_saved=self.is_saved,
            ),
        )

    def until_done(self, stream: TokenStream) -> None:
        """Steps until the budget is spent, which is saved."""
        bar = (BarColumn(), TimeRemainingColumn(compact=True), TextColumn("left · {task.description}"))
        with (
            Progress(*bar, console=self.console, disable=not self.console.is_terminal) as progress,
            closing(iter(stream)) as batches,  # type: ignore[type-var]
        ):
            task, trainer = progress.add_task("starting", total=1.0), self.trainer
            while not trainer.is_done and self._step(batches):
                spent, share = trainer.spent, trainer.recipe.share(trainer.spent)
                pace, rate = spent.tokens / spent.seconds, trainer.recipe.learning_rate_at(share)
                said = f"step {spent.steps:,} · {pace:,.0f} tokens/s · learning rate {rate:.1e}"
                progress.update(task, completed=share, description=said)
        if not self.is_saved:
            with self.stop.held():
                self.save()

    def _step(self, batches: Iterator[Batch]) -> bool:
        """One step, with its record and state where it is time for these; False where the budget has no row left."""
        trainer = self.trainer
        started = time.perf_counter()
        batch = next(batches)
        assert isinstance(batch, PaddedBatch)
        waited_s = time.perf_counter() - started
        with self.stop.held():
            cut = trainer.within_budget(batch)
            if cut is None:
                return False
            of_codes, of_places = trainer.step(cut, waited_s)
            self.codes, self.places = self.codes + of_codes, self.places + of_places
            self.stream_state, self.is_saved = dict(batch.state), False
            if trainer.spent.steps % self.log_every_steps == 0 or trainer.is_done:
                self._record()
            if trainer.spent.steps % self.save_every_steps == 0:
                self.save()
        return True

    def _record(self) -> None:
        spent, before = self.trainer.spent, self.before
        images = (spent.images - before.images) * math.log(2)
        record = asdict(spent) | {"code_bits": self.codes / images, "place_bits": self.places / images}
        record |= {"tokens_per_s": (spent.tokens - before.tokens) / (spent.seconds - before.seconds)}
        self.folder.add_record(record)
        text = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in record.items())
        self.console.print(text, soft_wrap=True, highlight=False)
        self.before, self.codes, self.places = spent, 0.0, 0.0
