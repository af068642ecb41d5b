"""What a card without memory, and a broken context, raise: the pipeline must know them by type and message."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measure import Section, described
from benchmarks.gpu.pictures import crops
from benchmarks.gpu.sections.agreement import same_rows
from benchmarks.gpu.sections.broken import KINDS, raised, take_memory
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["run"]

CHILD_S = 25.0
FILLS_MEMORY = "cublas_without_memory"


def far_too_large() -> dict[str, Any]:
    """One allocation that no card can serve."""
    return raised(lambda: torch.empty(1 << 50, dtype=torch.uint8, device="cuda"))


def too_large_a_batch(tokenizer: Tokenizer, pixels: Tensor) -> dict[str, Any]:
    """Encoding when the card is nearly full, then in the same process with memory again."""
    before = tokenizer.encode(pixels[:8])
    torch.cuda.empty_cache()
    held = take_memory(256 << 20)
    free_bytes, _ = torch.cuda.mem_get_info()
    told: dict[str, Any] = {"free_mib": free_bytes / 2**20}
    large = pixels.repeat(-(-2048 // len(pixels)), 1, 1, 1)
    told["first"] = raised(lambda: tokenizer.encode(large))
    told["again"] = raised(lambda: tokenizer.encode(large))
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    told["free_after_empty_cache_mib"] = free_bytes / 2**20
    told["small_batch_meanwhile"] = raised(lambda: tokenizer.encode(pixels[:8]))
    try:
        from tatok.pipeline.tokenization.tokenize import FittingEncode

        fitting = FittingEncode(tokenizer.encode)
        results: list[Any] = []
        told["halved"] = raised(lambda: results.extend(fitting(large[:512])))
        told["halved_results"] = dict(Counter(type(each).__name__ for each in results))
        told["halved_to_images"] = getattr(fitting, "_most", None)
    except Exception as error:  # the pipeline may ask for packages that are not there
        told["halved"] = {"not_tried": described(error)}
    held.clear()
    torch.cuda.empty_cache()
    told["afterwards"] = raised(lambda: tokenizer.encode(large[:512]))
    told["rows_equal_afterwards"] = all(same_rows(before, tokenizer.encode(pixels[:8])))
    return told


def in_a_child(kind: str, most_s: float) -> dict[str, Any]:
    """Break a context in a process of its own; its calls and how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu.sections.broken", kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    hung = False
    try:
        out, err = process.communicate(timeout=max(most_s, 5.0))
    except subprocess.TimeoutExpired:
        hung = True
        process.kill()
        out, err = process.communicate(timeout=5)
    calls = [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    return {"exit_code": process.returncode, "hung": hung, "calls": calls, "stderr_tail": err[-1500:]}


def _told(section: Section, kind: str, work: Callable[[], dict[str, Any]]) -> None:
    found = section.attempt(f"child.{kind}", work)
    if found:
        kinds = [
            f"{call['error'].rpartition('.')[2]} ({call['pipeline_says']})" if call["error"] else "works"
            for call in found["calls"]
        ]
        section.headline(f"{kind}: {', '.join(kinds)}; exit code {found['exit_code']}")


def run(section: Section) -> None:
    """Children first: they need the card's memory free."""
    most_s = min(CHILD_S, section.remaining_s)
    with ThreadPoolExecutor() as pool:  # those that take no memory side by side
        pending = {kind: pool.submit(in_a_child, kind, most_s) for kind in KINDS if kind != FILLS_MEMORY}
        for kind in pending:
            _told(section, kind, pending[kind].result)
    _told(section, FILLS_MEMORY, lambda: in_a_child(FILLS_MEMORY, most_s))
    section.attempt("far_too_large", far_too_large)
    tokenizer = Tokenizer.load(device=section.device)
    pixels = crops(section.photos, 32, 256)
    found = section.attempt("too_large_a_batch", lambda: too_large_a_batch(tokenizer, pixels))
    if found:
        section.headline(
            f"a batch too large: {found['first']['error']}; rows equal afterwards: {found['rows_equal_afterwards']}"
        )
