"""The usual research script, as LlamaGen and ml-4m have it: a DataLoader, the model, one .npy an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.work import Task, pixels_of, record

__all__ = ["VARIANTS", "run", "start"]

VARIANTS = ("2 workers", "1 worker", "tars, 2 workers")


def start(task: Task) -> None:
    """Nothing to start."""


class _Photos(Dataset[tuple[str, torch.Tensor]]):
    def __init__(self, task: Task) -> None:
        self._files = sorted(str(path) for path in Path(task.folder).glob("*/*.jpg"))
        self._task = task

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        path = self._files[index]
        with open(path, "rb") as file:
            return Path(path).stem, torch.from_numpy(pixels_of(file.read(), self._task))


def run(task: Task, variant: str) -> dict[str, float]:
    """Files are named by their number, as LlamaGen does; keys may repeat between folders."""
    num_workers = 1 if variant.startswith("1") else 2
    photos = _tars(task) if variant.startswith("tars") else _Photos(task)
    # By batch, ml-4m's way; LlamaGen's batches of one photo are slower.
    loader = DataLoader(photos, batch_size=task.batch_size, num_workers=num_workers, collate_fn=_collate)
    tokenizer = task.load_for_threads()
    output = Path(task.output)
    output.mkdir(parents=True)
    number = 0
    with torch.inference_mode():
        for keys, pixels_BCHW in loader:
            for key, sequence in zip(keys, tokenizer.encode_clips(pixels_BCHW[:, None]), strict=True):
                np.save(output / f"{number:08}.npy", record(key, sequence))
                number += 1
    return {}


def _tars(task: Task) -> Dataset[tuple[str, torch.Tensor]]:
    import webdataset

    def decode(sample: dict[str, bytes]) -> tuple[str, torch.Tensor]:
        return str(sample["__key__"]), torch.from_numpy(pixels_of(sample["jpg"], task))

    return webdataset.WebDataset(list(task.shards), shardshuffle=False).map(decode)


def _collate(samples: Sequence[tuple[str, torch.Tensor]]) -> tuple[list[str], torch.Tensor]:
    return [key for key, _ in samples], torch.stack([pixels for _, pixels in samples])
