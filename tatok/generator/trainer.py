"""GeneratorTrainer: one optimizer step at a time, averaged weights, saved state, held-out losses."""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from tatok.dataset.batches import PaddedBatch
from tatok.dataset.dataset import TokenDataset
from tatok.dataset.packing import Bucketing
from tatok.generator.config import GeneratorConfig
from tatok.generator.model import Generator
from tatok.generator.recipe import GeneratorRecipe, HeldOutLoss, Spent
from tatok.schemas.errors import ConfigError
from tatok.training.run_folder import RunFolder

__all__ = ["GeneratorTrainer", "enough_tokens", "heldout_loss"]

STATE = "state.pt"


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
    for batch in data.stream(Bucketing(tokens=enough_tokens(trainer)), shuffle=False):
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


def enough_tokens(trainer: GeneratorTrainer) -> int:
    """Tokens of a batch, padding included: the recipe's, or those of the longest sequence."""
    return max(trainer.recipe.batch_tokens, trainer.generator.config.most_tokens)
