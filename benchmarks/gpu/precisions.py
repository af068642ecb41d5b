"""Tokenizers of a precision, with and without CUDA graphs: by tatok's own settings where it has them.

Else torch's switches set the precision, and there are no graphs.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tatok.model.checkpoint import Checkpoint
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["PRECISIONS", "Mode", "modes", "settings_of", "switched", "tokenizer_in"]

PRECISIONS = ("float32", "tf32", "bfloat16")
GRAPHS_VARIABLE = "TATOK_CUDA_GRAPHS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A precision, and whether encoding goes through CUDA graphs."""

    precision: str
    graphs: bool

    @property
    def name(self) -> str:
        """For the JSON."""
        return f"{self.precision}.graphs" if self.graphs else self.precision


def modes(device: torch.device) -> list[Mode]:
    """What there is to measure on the device: without graphs first, with them where tatok has any."""
    has_graphs = device.type == "cuda" and importlib.util.find_spec("tatok.tokenizer.launching") is not None
    kinds = (False, True) if has_graphs else (False,)
    return [
        Mode(precision=precision, graphs=graphs)
        for precision in PRECISIONS
        for graphs in kinds
        if not (precision == "tf32" and device.type == "cpu")
    ]


def settings_of(make: Callable[..., Any]) -> list[str]:
    """Names of the parameters."""
    return list(inspect.signature(make).parameters)


@contextmanager
def switched(precision: str, device: torch.device) -> Iterator[None]:
    """Torch's own switches: the matrix units' float32 mode, or autocast (without its cache, which graphs forbid)."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def tokenizer_in(mode: Mode, device: torch.device, checkpoint: Checkpoint | None = None) -> Iterator[Tokenizer]:
    """A tokenizer in that mode, with the bundled checkpoint unless another is given."""
    make: Callable[..., Tokenizer] = Tokenizer.load if checkpoint is None else Tokenizer
    given: dict[str, Any] = {"device": device} if checkpoint is None else {"checkpoint": checkpoint, "device": device}
    parameters = settings_of(make)
    given |= {name: mode.graphs for name in ("graphs", "cuda_graphs") if name in parameters}
    before = os.environ.get(GRAPHS_VARIABLE)
    os.environ[GRAPHS_VARIABLE] = str(int(mode.graphs))
    try:
        if "precision" in parameters:
            yield make(**given, precision=mode.precision)
        else:
            with switched(mode.precision, device):
                yield make(**given)
    finally:
        os.environ.pop(GRAPHS_VARIABLE)
        if before is not None:
            os.environ[GRAPHS_VARIABLE] = before
