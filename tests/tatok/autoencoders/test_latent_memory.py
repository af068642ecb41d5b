"""Latents of crops: made once, kept in blocks, and given as windows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from tatok.autoencoders import latent_memory
from tatok.autoencoders.latent_memory import LatentMemory, cached_latents


class Folder(dict[str, bytes]):
    def read(self, name: str) -> bytes | None:
        return self.get(name)

    def write(self, name: str, data: bytes) -> None:
        self[name] = data


def numbered() -> Iterator[Tensor]:
    return (torch.full((3, 8, 8), number, dtype=torch.uint8) for number in range(1000))


def encode(pixels: Tensor) -> Tensor:
    return pixels[:, :2, ::4, ::4].float()


def refuse(pixels: Tensor) -> Tensor:
    raise AssertionError(f"{len(pixels)} crops are encoded again")


def test_blocks_are_kept_and_only_those_that_lack_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_memory, "BLOCK", 5)
    folder = Folder()
    made = torch.cat(list(cached_latents(numbered(), 12, encode, folder, "a")))
    assert made.shape == (12, 2, 2, 2)
    assert made.dtype is torch.float16
    assert made[:, 0, 0, 0].tolist() == list(range(12))
    assert len(folder) == 3
    assert torch.equal(torch.cat(list(cached_latents(numbered(), 12, refuse, folder, "a"))), made)
    (lost,) = [name for name in folder if "00001" in name]
    del folder[lost]  # of a run that was stopped, say
    assert torch.equal(torch.cat(list(cached_latents(numbered(), 12, encode, folder, "a"))), made)
    with pytest.raises(AssertionError, match="again"):
        list(cached_latents(numbered(), 12, refuse, folder, "of another autoencoder"))


def test_windows_are_cut_from_crops_and_resume_to_the_bit() -> None:
    latents = torch.arange(6 * 16).view(6, 1, 4, 4).half()
    memory = LatentMemory(latents, 8, "a")
    batches = list(islice(memory.batches(4, 24, seed=3), 9))
    assert {batch.shape for batch in batches} == {(4, 1, 3, 3)}
    windows = {tuple(w.flatten().tolist()) for w in latents.unfold(2, 3, 1).unfold(3, 3, 1).reshape(-1, 3, 3)}
    assert {tuple(each.flatten().tolist()) for batch in batches for each in batch} <= windows
    first_pass = torch.cat(batches[:3])[:, 0, 0, 0] // 16
    assert sorted(first_pass[:6].tolist()) == list(range(6))  # every crop once before any comes again
    resumed = list(islice(memory.batches(4, 24, seed=3, num_given=5), 4))
    assert all(torch.equal(a, b) for a, b in zip(resumed, batches[5:], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(islice(memory.batches(4, 24, seed=4), 4), batches, strict=False))
    assert next(memory.batches(2, 32, seed=0)).shape == (2, 1, 4, 4)  # whole crops
