"""Where a stage's batches are, so that a run that resumes is given the batches that it would have been given.

A stream is fixed by what it is made of and by the step at which it began. Each worker of a data loader has a stream of
its own and puts beside each sample where it is after it; the last of a batch is the worker's place. How many loaders a
run has, and how they start, stands here, too.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from tatok.distributed import num_ranks, rank, sum_over_ranks
from tatok.schemas.errors import SourceError
from tatok.training.config import TrainingConfig
from tatok.training.photos import this_stream
from tatok.training.run_folder import is_url

__all__ = ["PlacedSamples", "Samples", "StreamPlace", "digest_of", "loader_context", "num_loader_workers"]


class Samples(Protocol):
    """RandomCrops or RandomClips."""

    START: tuple[int, ...]

    def placed(self, stream: int, num_streams: int, place: Sequence[int]) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Samples of one worker's stream from a place on, each with the place after it."""


def digest_of(*what: object) -> str:
    """A short name of what streams are made of; equal names mean equal streams."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlace:
    """A place in the batches of a stage on this rank: after `num_given` of those since the step `began`.

    `made_of` is a `digest_of`. `workers` holds where each worker's stream is; those that give whole batches by
    arithmetic alone have none.
    """

    made_of: str
    began: int
    num_given: int = 0
    workers: tuple[tuple[int, ...], ...] = ()

    def after(self, worker_place: Sequence[int]) -> StreamPlace:
        """The place after another batch; workers take turns."""
        turn = self.num_given % len(self.workers)
        workers = (*self.workers[:turn], tuple(worker_place), *self.workers[turn + 1 :])
        return replace(self, num_given=self.num_given + 1, workers=workers)

    def saved(self, device: torch.device) -> dict[str, Any]:
        """The places of all ranks, which must call this together, as `of` takes them."""
        own = torch.tensor([self.num_given, *itertools.chain.from_iterable(self.workers)])
        ranks = torch.zeros(num_ranks(), len(own), dtype=torch.int64, device=device)
        ranks[rank()] = own.to(device)
        return {
            "made_of": self.made_of,
            "began": self.began,
            "num_workers": len(self.workers),
            "ranks": sum_over_ranks(ranks).tolist(),
        }

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None, made_of: str) -> StreamPlace | None:
        """This rank's place in what was saved, if that is of a stream made of the same."""
        if saved is None or saved["made_of"] != made_of:
            return None
        num_given, *numbers = saved["ranks"][rank()]
        each = len(numbers) // max(1, saved["num_workers"])
        workers = tuple(tuple(numbers[start : start + each]) for start in range(0, len(numbers), max(1, each)))
        return cls(made_of=made_of, began=saved["began"], num_given=num_given, workers=workers)

    def batches(self, loaded: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, StreamPlace]]:
        """The batches that a data loader of `PlacedSamples` makes from here on, each with the place after it."""
        place = self
        try:
            for pixels, places in loaded:
                place = place.after(places[-1].tolist())
                yield pixels, place
        except SourceError as error:
            # From another process torch raises it anew, with that process's traceback before what it said.
            said = str(error).rpartition(f"{SourceError.__name__}: ")[2].strip()
            raise SourceError(said, is_permanent=error.is_permanent, remedy=error.remedy) from error


class PlacedSamples(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples from a place on, each with where its worker's stream is after it, int64 [P]."""

    def __init__(self, samples: Samples, place: StreamPlace) -> None:
        self.samples, self.place = samples, place

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker, num_workers = this_stream()
        stream = (worker + self.place.num_given) % num_workers  # a loader begins with its first worker
        for pixels, after in self.samples.placed(stream, num_workers, self.place.workers[stream]):
            yield pixels, torch.tensor(after, dtype=torch.int64)


def num_loader_workers(config: TrainingConfig, device: torch.device) -> int:
    """Processes that load crops: as configured, else one beside a CPU's training, and a GPU's share of the cores."""
    if config.num_loader_workers is not None:
        return config.num_loader_workers
    if device.type == "cpu":
        return 1
    return max(1, (os.cpu_count() or 1) // max(1, torch.cuda.device_count()))


def loader_context(config: TrainingConfig, device: torch.device, paths: list[str]) -> str | None:
    """How loaders start: a process that holds a bucket's client, CUDA or NCCL must not be forked; else it is quick."""
    if num_loader_workers(config, device) == 0:
        return None
    if is_url(config.output) or any(is_url(path) for path in paths):
        return "spawn"
    return None if device.type == "cpu" else "forkserver"
