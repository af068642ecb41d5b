"""Ranks: what the processes of one training run, which share every batch, tell each other by torch.distributed.

Alone (no process group) every call is the identity, so that a training step reads the same for one process and for
many. Whoever starts the processes forms the group; pipeline/cluster/training.py does it by Ray Train.

Gradients are averaged by one all-reduce of all of them together after the backward pass, not by
`DistributedDataParallel`: stages train different parts, a step's losses are not one module's forward, and its buffers
(codebooks) are kept equal by the sums below. The price is that no gradient travels while others are still computed;
at some ten million weights that is a few milliseconds a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "average_over_ranks",
    "broadcast_from_first",
    "most_of_ranks",
    "num_ranks",
    "rank",
    "ranks_agree",
    "sum_over_ranks",
]


def _is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized())


def rank() -> int:
    """This process's number, 0 .. num_ranks() - 1; rank 0 writes the files and speaks to the terminal."""
    return 0 if _is_alone() else dist.get_rank()


def num_ranks() -> int:
    """How many processes share the run."""
    return 1 if _is_alone() else dist.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all ranks' `values`, of one shape on all of them, bit for bit the same on each; done in place."""
    if not _is_alone():
        dist.all_reduce(values)
    return values


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Set `tensors`, float32 on one device, to their means over the ranks: one all-reduce for all of them."""
    if num_ranks() == 1 or not tensors:
        return
    flat = sum_over_ranks(torch.cat([tensor.flatten() for tensor in tensors])) / num_ranks()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(pieces, tensors, strict=True)])


def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Set `tensors` to what they are on rank 0, in place."""
    if not _is_alone():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def most_of_ranks(value: int, device: torch.device) -> int:
    """The largest of all ranks' values; none continues before all have called."""
    if _is_alone():
        return value
    most = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def ranks_agree(values: Sequence[int], device: torch.device) -> bool:
    """Whether all ranks call this with the same numbers; none continues before all have called."""
    # The largest and the smallest of each, by one reduction; NCCL needs the numbers on the device.
    if _is_alone():
        return True
    both = torch.tensor([*values, *(-value for value in values)], dtype=torch.int64, device=device)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return both[: len(values)].tolist() == [-value for value in both[len(values) :].tolist()]
