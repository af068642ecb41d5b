"""Which errors say that an accelerator lacks memory, and which that it does not work for this process any more.

CUDA reports a failed kernel at some later call, and after most failures at every call from then on: only a new process
helps. Memory that is lacking is reported by several libraries, each in its own words, and passes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["BROKEN", "OUT_OF_MEMORY", "is_broken_accelerator", "is_out_of_memory"]

OUT_OF_MEMORY = (
    "out of memory",  # CUDA error, CUDA driver error, Triton Error [CUDA]
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""What RuntimeErrors say of lacking memory, beside torch's own exception."""

BROKEN = (
    "CUDA error",
    "CUDA driver error",
    "CUDA kernel errors",
    "Triton Error [CUDA]",
    "device-side assert",
    "cuBLAS",
    "CUBLAS_STATUS",
    "cuDNN",
    "CUDNN_STATUS",
    "cusolver error",
    "CUSOLVER_STATUS",
    "No CUDA GPUs are available",  # they were there when the process was placed
    "CUDACachingAllocator.cpp",  # an assertion of its own fails where the driver answers no more
)
"""What RuntimeErrors say of a device that fails, where it is not for lack of memory."""

# Torch before 2.8 raises bare RuntimeErrors instead.
_ACCELERATOR_ERROR: type[Exception] | None = getattr(torch, "AcceleratorError", None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at a time might succeed in the same process."""
    return any(
        isinstance(each, torch.OutOfMemoryError)
        or (isinstance(each, RuntimeError) and any(text in str(each) for text in OUT_OF_MEMORY))
        for each in _causes(error)
    )


def is_broken_accelerator(error: BaseException) -> bool:
    """Whether only a new process may succeed."""
    return not is_out_of_memory(error) and any(
        (_ACCELERATOR_ERROR is not None and isinstance(each, _ACCELERATOR_ERROR))
        or (isinstance(each, RuntimeError) and any(text in str(each) for text in BROKEN))
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: compilers wrap what they meet."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__
