"""Tables that follow from an image's grid alone: computed once for each grid and device, and never changed.

They are computed on the CPU, so that all devices have the same bits, and are plain tensors whatever mode asks for them
first: what inference made can be saved for a backward pass. They are no part of a module: neither its state nor a copy
of it has them. A compiler traces the computation instead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["all_tables", "table", "tables_of"]

_MAX_TABLES = 128
_LOCK = threading.Lock()
_TABLES: OrderedDict[Hashable, Tensor] = OrderedDict()
_TABLES_OF: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def table(
    name: str, key: tuple[Hashable, ...], device: torch.device, build: Callable[[torch.device], Tensor]
) -> Tensor:
    """`build(device)`, which `name` and `key` fix; the same tensor each time, while it is among those used last."""
    if torch.compiler.is_compiling():
        return build(device)
    place = (name, key, device)
    with _LOCK:
        if place in _TABLES:
            _TABLES.move_to_end(place)
            return _TABLES[place]
    with torch.inference_mode(False), torch.no_grad():
        built = build(torch.device("cpu")).to(device)
    if isinstance(built, FakeTensor):
        return built
    with _LOCK:
        kept = _TABLES.setdefault(place, built)
        while len(_TABLES) > _MAX_TABLES:
            _TABLES.popitem(last=False)
    return kept


def all_tables() -> tuple[Tensor, ...]:
    """The tables used last; who refers to memory of theirs without a tensor (a CUDA graph) must keep them alive."""
    with _LOCK:
        return tuple(_TABLES.values())


def tables_of(
    source: Tensor, key: tuple[Hashable, ...], build: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """`build(source)`, which `key` fixes, for a `source` that never changes; the same each time while it lives."""
    if torch.compiler.is_compiling():
        return build(source)
    with _LOCK:
        tables: dict[tuple[Hashable, ...], tuple[Tensor, ...]] = _TABLES_OF.setdefault(source, {})
        if key in tables:
            return tables[key]
    with torch.inference_mode(False), torch.no_grad():
        built = tuple(each.to(source.device) for each in build(source.cpu()))
    if any(isinstance(each, FakeTensor) for each in built):
        return built
    with _LOCK:
        return tables.setdefault(key, built)
