"""Break a CUDA context on purpose, in this process: python3 -m benchmarks.gpu.sections.broken KIND

Prints one line of JSON for each call that follows: what it raised, as a program would see it.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["KINDS", "raised", "take_memory"]


def raised(work: Callable[[], object]) -> dict[str, Any]:
    """The error that a piece of work raises, with all that could tell it from others; `error` None where it works."""
    try:
        work()
    except Exception as error:  # whatever it is, it is what was asked for
        return {
            "error": f"{type(error).__module__}.{type(error).__qualname__}",
            "bases": [base.__qualname__ for base in type(error).__mro__[1:-2]],
            "message": str(error)[:2500],
            "is_out_of_memory_error": isinstance(error, torch.OutOfMemoryError),
            "is_accelerator_error": isinstance(error, getattr(torch, "AcceleratorError", ())),
            "error_code": str(getattr(error, "error_code", None)),
            "pipeline_says": _judged(error),
        }
    return {"error": None}


def _judged(error: Exception) -> str:
    """What the pipeline takes the error for."""
    try:
        from tatok.pipeline.tokenization.accelerator_errors import is_broken_accelerator, is_out_of_memory
    except ImportError as lacking:
        return f"not asked: {lacking}"
    if is_out_of_memory(error):
        return "out of memory"
    return "broken" if is_broken_accelerator(error) else "neither"


def take_memory(leave_bytes: int) -> list[torch.Tensor]:
    """Hold the card's memory, in ever smaller pieces, until about `leave_bytes` are left."""
    held = []
    piece = 1 << 30
    while piece >= 1 << 20:
        free_bytes, _ = torch.cuda.mem_get_info()
        if free_bytes < leave_bytes + piece:
            piece //= 2
            continue
        try:
            held.append(torch.empty(piece, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            piece //= 2
    return held


def _tell(step: str, work: Callable[[], object]) -> None:
    print(json.dumps({"step": step, **raised(work)}), flush=True)


def _after(tokenizer: Tokenizer) -> None:
    """What calls say once the context is broken; a program may make any of them next."""
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    _tell("the next synchronize", torch.cuda.synchronize)
    _tell("allocation", lambda: torch.zeros(1 << 20, device="cuda"))
    _tell("encode", lambda: tokenizer.encode(pixels))
    _tell("encode again", lambda: tokenizer.encode(pixels))
    _tell("matmul", lambda: torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda"))
    _tell("empty_cache", torch.cuda.empty_cache)
    _tell("mem_get_info", torch.cuda.mem_get_info)
    _tell("is_available", torch.cuda.is_available)
    _tell("loading anew", lambda: Tokenizer.load(device="cuda"))


def device_assert() -> None:
    """An index outside its table, as a damaged code would be."""
    tokenizer = Tokenizer.load(device="cuda")
    table = torch.randn(16, 4, device="cuda")
    codes = torch.tensor([3, 1_000_000], device="cuda")
    _tell("the lookup, which only launches", lambda: torch.nn.functional.embedding(codes, table))
    _tell("reading its result", lambda: table.sum().item())
    _after(tokenizer)


def illegal_address() -> None:
    """A kernel that reads where nothing is."""
    code = "template <typename T> T far(T x) { return x + *reinterpret_cast<volatile const T*>(1ull << 46); }"
    tokenizer = Tokenizer.load(device="cuda")
    target = torch.zeros(16, device="cuda")
    _tell("the kernel, which is only launched", lambda: torch.cuda.jiterator._create_jit_fn(code)(target))
    _after(tokenizer)


def cublas_without_memory() -> None:
    """The first matrix product of a process, and of a thread, when the card is full."""
    left = torch.ones(64, 64, device="cuda")
    held = take_memory(0)
    _tell("the first matrix product", lambda: left @ left)
    _tell("the same again", lambda: left @ left)
    _tell("in float64", lambda: left.double() @ left.double())
    thread = threading.Thread(target=_tell, args=("in a thread", lambda: left @ left))
    thread.start()
    thread.join()
    tokenizer: list[Tokenizer] = []
    _tell("loading a tokenizer", lambda: tokenizer.append(Tokenizer.load(device="cuda")))
    del held
    torch.cuda.empty_cache()
    _tell("the first again, with memory", lambda: (left @ left).sum().item())
    _tell("loading a tokenizer, with memory", lambda: Tokenizer.load(device="cuda"))


KINDS: dict[str, Callable[[], None]] = {
    "device_assert": device_assert,
    "cublas_without_memory": cublas_without_memory,
    "illegal_address": illegal_address,
}


def main() -> int:
    """Break it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    KINDS[parser.parse_args().kind]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
