from __future__ import annotations

import pytest
import torch

from tatok.pipeline.tokenization.accelerator_errors import is_broken_accelerator, is_out_of_memory
from tatok.schemas.errors import TatokError

MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]
BROKEN = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("of a kind that nobody has met"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("CUDA driver error: invalid device context"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1016'),
]
NEITHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x2 and 3x4)"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    ValueError("CUDA error: said by somebody else"),
    TatokError("the tokenizer returned 3 sequences for 4 images"),
    MemoryError("out of memory"),
]


def name(error: BaseException) -> str:
    return str(error)[:40]


@pytest.mark.parametrize("error", MEMORY, ids=name)
def test_lacking_memory_passes(error: BaseException) -> None:
    assert (is_out_of_memory(error), is_broken_accelerator(error)) == (True, False)


@pytest.mark.parametrize("error", BROKEN, ids=name)
def test_after_other_errors_only_a_new_process_helps(error: BaseException) -> None:
    assert (is_out_of_memory(error), is_broken_accelerator(error)) == (False, True)


@pytest.mark.parametrize("error", NEITHER, ids=name)
def test_everything_else_says_nothing_of_the_device(error: BaseException) -> None:
    assert (is_out_of_memory(error), is_broken_accelerator(error)) == (False, False)


def wrapped(error: BaseException) -> RuntimeError:
    outer = RuntimeError("the compiled function failed")
    outer.__cause__ = error
    return outer


def test_an_error_is_known_by_its_cause_too() -> None:
    assert is_out_of_memory(wrapped(MEMORY[0]))
    assert not is_broken_accelerator(wrapped(MEMORY[1]))
    assert is_broken_accelerator(wrapped(BROKEN[0]))
    assert not is_broken_accelerator(wrapped(NEITHER[0]))
