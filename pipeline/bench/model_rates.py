"""The model's part of a job by itself: how many items a second each of its stages does, on cores or on a device."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from tatok.pipeline.bench.own_processes import alone, meet, processes
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.tokenization.loading import LoadTokenizer

if TYPE_CHECKING:
    import torch

    from tatok.schemas.records import TokenSequence
    from tatok.tokenizer.protocol import AnyTokenizer
    from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["ModelRates", "ModelStage", "measure_model", "num_cores"]

ModelStage = Literal["copy in", "encode", "prior and DTF", "copy out"]

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRates:
    """Of one process, and what it made of the batch; `device` is the device's name."""

    items_per_s: dict[ModelStage, float]
    device: str
    vocab_size: int
    has_entropy: bool
    encoded: Sequence[TokenSequence]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_model(
    load_tokenizer: LoadTokenizer, pixels_BTCHW: np.ndarray, sizes: Sizes, *, seconds: float, on_cluster: bool
) -> ModelRates:
    """Rates of one core while all of the job's tokenizers work, or of one device; each timed for about `seconds`.

    The tokenizers are loaded in processes of their own. `on_cluster`: that of a device is to be had on the connected
    Ray, not on this machine.
    """
    work = partial(_measure, load_tokenizer, pixels_BTCHW, sizes.device, sizes.torch_threads, seconds)
    if sizes.gpus_per_tokenizer:
        return alone(work, on_cluster=on_cluster)
    count = min(sizes.num_tokenizers, num_cores())
    with processes(count) as pool:
        found = [future.result() for future in [pool.submit(work) for _ in range(count)]]
    # Of processes beyond the cores each has a part of one; one process may have several.
    of_a_core: dict[ModelStage, float] = {
        name: sum(each.items_per_s[name] for each in found) / num_cores() for name in found[0].items_per_s
    }
    return replace(found[0], items_per_s=of_a_core)


def _measure(
    load_tokenizer: LoadTokenizer, pixels_BTCHW: np.ndarray, device: str, torch_threads: int, seconds: float
) -> ModelRates:
    import torch

    from tatok.allocator import keep_freed_memory

    keep_freed_memory()  # as the job's tokenizers do
    torch.set_num_threads(torch_threads)
    tokenizer = load_tokenizer(device)
    pixels = torch.from_numpy(pixels_BTCHW)
    encoded = tokenizer.encode_clips(pixels)
    there = torch.device(device)
    return ModelRates(
        items_per_s=_timed_batches(tokenizer, there, pixels, seconds),
        device=torch.cuda.get_device_name(there) if there.type == "cuda" else there.type,
        vocab_size=tokenizer.vocab_size,
        has_entropy=tokenizer.has_entropy,
        encoded=encoded,
    )


def _timed_batches(
    tokenizer: AnyTokenizer, device: torch.device, pixels_BTCHW: torch.Tensor, seconds: float
) -> dict[ModelStage, float]:
    """Items a second of the stages, timed one by one on whole batches, once all processes have met."""
    from tatok.tokenizer.tokenizer import Tokenizer

    clock = _Clock(device)
    # Frames are coded one after another, and a user's own tokenizer is one step: these are not told apart.
    if pixels_BTCHW.shape[1] > 1 or not isinstance(tokenizer, Tokenizer):
        one_batch: Callable[[], Sequence[Any]] = partial(_clips, clock, tokenizer, pixels_BTCHW)
    elif device.type == "cpu":
        one_batch = partial(_steps, clock, tokenizer, pixels_BTCHW[:, 0])
    else:
        one_batch = partial(_on_device, clock, tokenizer, pixels_BTCHW[:, 0])
    one_batch()  # kernels are chosen and memory is taken at the first call
    meet()
    clock.spent.clear()
    num_items = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or not num_items:
        num_items += len(one_batch())
    return {name: num_items / spent for name, spent in clock.spent.items()}


class _Clock:
    """Seconds by stage, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.spent: dict[ModelStage, float] = {}

    def add(self, name: ModelStage, seconds: float) -> None:
        self.spent[name] = self.spent.get(name, 0.0) + seconds

    def seconds_of(self, call: Callable[[], _Result]) -> tuple[float, _Result]:
        import torch

        started = time.perf_counter()
        result = call()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started, result

    def timed(self, name: ModelStage, call: Callable[[], _Result]) -> _Result:
        seconds, result = self.seconds_of(call)
        self.add(name, seconds)
        return result


def _clips(clock: _Clock, tokenizer: AnyTokenizer, pixels_BTCHW: torch.Tensor) -> Sequence[Any]:
    return clock.timed("encode", lambda: tokenizer.encode_clips(pixels_BTCHW))


def _steps(clock: _Clock, tokenizer: Tokenizer, pixels_BCHW: torch.Tensor) -> Sequence[Any]:
    full = clock.timed("encode", lambda: tokenizer.full_rate(pixels_BCHW))
    filtered = clock.timed("prior and DTF", lambda: tokenizer.filter(full))
    return clock.timed("copy out", lambda: tokenizer.sequences(full, filtered))


def _on_device(clock: _Clock, tokenizer: Tokenizer, pixels_BCHW: torch.Tensor) -> Sequence[Any]:
    """As the job does it: the device in one go, then the host. The steps by themselves say how to divide the first."""
    there = clock.timed("copy in", lambda: pixels_BCHW.to(tokenizer.device))
    seconds, pending = clock.seconds_of(lambda: tokenizer.encode_async(there))
    of_encoding, full = clock.seconds_of(lambda: tokenizer.full_rate(there))
    of_filtering, _ = clock.seconds_of(lambda: tokenizer.filter(full))
    share = of_encoding / (of_encoding + of_filtering)
    clock.add("encode", seconds * share)
    clock.add("prior and DTF", seconds * (1 - share))
    return clock.timed("copy out", pending.result)
