"""Training a generator on a tokenized dataset: exact budgets, averaged weights, resuming where it stopped."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from os import PathLike
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tatok.dataset.batches import PaddedBatch
from tatok.dataset.dataset import TokenDataset
from tatok.dataset.packing import Batch, Bucketing
from tatok.dataset.stream import TokenStream
from tatok.generator.checkpoint import GeneratorCheckpoint, ended_before, save_generator
from tatok.generator.config import GeneratorConfig
from tatok.generator.recipe import GeneratorRecipe, HeldOutLoss, Spent
from tatok.generator.requirements import check_generator
from tatok.generator.trainer import GeneratorTrainer, enough_tokens, heldout_loss
from tatok.stopping import Interrupted, Stop, said_of_stop, stop_by_signals
from tatok.training.run_folder import RunFolder
from tatok.watching.event_files import EventFiles, event_files

__all__ = ["CHECKPOINT", "train_generator"]

CHECKPOINT = "checkpoint"


def train_generator(
    data: str | PathLike[str],
    output: str | PathLike[str],
    recipe: GeneratorRecipe,
    device: torch.device,
    *,
    heldout: str | PathLike[str] | None = None,
    log_every_steps: int = 50,
    save_every_steps: int = 500,
    tensorboard: bool = False,
    is_quiet: bool = False,
) -> tuple[Spent, HeldOutLoss | None]:
    """Train on the tokenized dataset at `data` until the budget is spent, or resume where the output folder left off.

    Returns what was spent and, with `heldout`, the loss on that dataset at the end. `output` is a folder or any URL
    that fsspec can write. Figures go to OUTPUT/metrics.jsonl, the averaged weights and the figures at the end to
    OUTPUT/checkpoint; with `tensorboard` also to event files in OUTPUT/tensorboard, which must be on a disk. Seeds
    torch's global generator. With `is_quiet` nothing is printed.

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
        tensorboard=tensorboard,
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
        Bucketing(tokens=enough_tokens(trainer)), epochs=None
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
            with ExitStack() as opened:
                if tensorboard:
                    run.events = opened.enter_context(event_files(folder.location, trainer.spent.steps + 1))
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
        self.events: EventFiles | None = None

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
        if self.events is not None:
            self.events.add(record, spent.steps)
        text = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in record.items())
        self.console.print(text, soft_wrap=True, highlight=False)
        self.before, self.codes, self.places = spent, 0.0, 0.0
