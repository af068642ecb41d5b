"""Work in processes of its own, which end with it: what they held of a device is free again afterwards."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from typing import TypeVar

__all__ = ["alone", "meet", "processes"]

_START_S = 120.0  # that processes may take to start on a machine that is busy
_GPU_S = 600.0  # that a GPU of the cluster may take to be free, or to be there, and the work with it

_Result = TypeVar("_Result")

_barrier: Barrier | None = None  # in such a process: where all of them start together


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, which can `meet`."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads, or with CUDA, may hang
    barrier = context.Barrier(count)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_meet_at, initargs=(barrier,)) as pool:
        yield pool


def meet() -> None:
    """In one of several processes: wait for the others; elsewhere nothing."""
    if _barrier is not None:
        _barrier.wait(_START_S)


def alone(work: Callable[[], _Result], *, on_cluster: bool) -> _Result:
    """The result of `work`, in one process of this machine, or in one that has a GPU of the connected Ray."""
    if on_cluster:
        from tatok.pipeline.cluster.probe import on_a_gpu

        found: _Result = on_a_gpu(work, timeout_s=_GPU_S)
        return found
    with processes(1) as pool:
        return pool.submit(work).result()


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
