"""A CUDA device that is pretended, for tests where there is none: what would it launch, wait for and refuse?

Tensors say that they lie on cuda:0 and hold their numbers on the CPU. Operations refuse tensors of two devices, are
counted as launches, and as waits where the host would wait for the device; while a CUDA graph is captured, a wait is
an error, as it is on CUDA, and a replay computes anew, in place, what was launched during the capture. Speed, streams
and the numbers of real kernels are beyond it.

It patches torch for the whole process: `start` it in a process of its own, before tatok is imported.
"""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA = torch.device("cuda:0")
GUARD_SOURCE = Path(__file__).with_name("pretend_cuda_guard.cpp")

NOT_LAUNCHED = re.compile(
    "view|_unsafe_view|reshape|_reshape_alias|unsqueeze|squeeze|t|transpose|permute|expand|slice|select|unbind|split|"
    "split_with_sizes|detach|alias|unflatten|as_strided|unfold|diagonal|lift|lift_fresh|"
    "empty|empty_strided|empty_like|new_empty"
)
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "bincount", "equal")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


def build_guard(folder: Path, compiler: str) -> Path:
    """Compile the device guard that a CPU build of torch lacks."""
    root, library = Path(torch.__file__).parent, folder / "pretend_cuda_guard.so"
    flags = ["-shared", "-fPIC", "-O1", "-std=c++20", f"-I{root}/include", f"-L{root}/lib", "-lc10"]
    subprocess.run([compiler, str(GUARD_SOURCE), *flags, "-o", str(library)], check=True)
    return library


class PretendTensor(Tensor):
    """Numbers on the CPU, `inner`, under the name of cuda:0."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.inner!r})"

    def tolist(self) -> Any:
        DEVICE.wait("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE.run(func, args, kwargs or {})


class Pretence:
    """What happened on the device since `reset`: launches by operation, waits by kind and place in the code."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.tape: list[tuple[Any, Any, Any, Any]] | None = None  # of the capture that is under way

    def reset(self) -> None:
        self.launches.clear()
        self.waits.clear()

    def wait(self, kind: str) -> None:
        if self.tape is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({kind} at {_place()})")
        self.waits[f"{kind} at {_place()}"] += 1

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation of aten."""
        name = func._schema.name.partition("::")[2]
        tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        pretended = [each for each in tensors if isinstance(each, PretendTensor)]
        onto = kwargs.get("device")
        onto_cuda = onto is not None and torch.device(onto).type == "cuda"
        if not pretended and not onto_cuda:
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with MODE:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        on_cuda = onto_cuda if onto is not None else True
        if name == "copy_":
            on_cuda = isinstance(args[0], PretendTensor)
            if len(pretended) == 1 and not kwargs.get("non_blocking", len(args) > 2 and args[2]):
                self.wait("copy")
        elif name == "_to_copy":
            if on_cuda != bool(pretended) and not kwargs.get("non_blocking"):
                self.wait("copy to the device" if on_cuda else "copy to the host")
        else:
            self._check(name, args, tensors)
        if not NOT_LAUNCHED.fullmatch(name) and name != "_local_scalar_dense":
            self.launches[name] += 1
        plain = pytree.tree_map(_inner, (args, _on_cpu(kwargs)))
        result = func(*plain[0], **plain[1])
        if self.tape is not None and not NOT_LAUNCHED.fullmatch(name):
            self.tape.append((func, *plain, result))
        if not on_cuda or name == "_local_scalar_dense":
            return result
        wrapped = pytree.tree_map(lambda each: _wrapped(each, pretended), result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if pretended else wrapped

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        strangers = [each for each in tensors if not isinstance(each, PretendTensor)]
        if strangers and name in INDEXING:
            self.wait("index on the host")
        elif any(each.ndim for each in strangers):
            raise RuntimeError(f"{name} of tensors on cuda:0 and cpu at {_place()}")
        if name in INDEXING and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in pytree.tree_leaves(args[1])
        ):
            self.wait("index by bool")
        if name in WAITING:
            self.wait(name.lstrip("_"))


def _inner(each: Any) -> Any:
    return each.inner if isinstance(each, PretendTensor) else each


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    changed = dict(kwargs)
    if changed.get("device") is not None:
        changed["device"] = torch.device("cpu")
    changed.pop("pin_memory", None)
    return changed


def _wrapped(each: Any, known: list[PretendTensor]) -> Any:
    if not isinstance(each, Tensor):
        return each
    for tensor in known:
        if tensor.inner is each:
            return tensor
    return PretendTensor(each)


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        if "site-packages" not in frame.filename and Path(frame.filename).name not in (
            Path(__file__).name,
            "contextlib.py",
        ):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "?"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE.run(func, args, kwargs or {})


class _AsOnCuda(TorchFunctionMode):
    """Attention is one kernel on CUDA, where a CPU's torch takes it apart; and memory can be pinned."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and isinstance(args[0], PretendTensor):
            plain = [each.inner for each in args]
            result = func(*plain, **(kwargs or {}))
            DEVICE.launches["attention"] += 1
            if DEVICE.tape is not None:
                DEVICE.tape.append((func, plain, kwargs or {}, result))
            return PretendTensor(result)
        if func is torch.empty:
            kwargs = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        return func(*args, **(kwargs or {}))


DEVICE = Pretence()
MODE = _Mode()


class _Stream:
    def __init__(self, *_: Any) -> None: ...
    def wait_stream(self, _: Any) -> None: ...
    def synchronize(self) -> None:
        DEVICE.wait("stream")


class _Event:
    def __init__(self, **_: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def query(self) -> bool:
        return True  # the device has done its work when a launch returns

    def synchronize(self) -> None:
        DEVICE.wait("event")


class _Graph:
    def __init__(self) -> None:
        self.tape: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        DEVICE.launches["graph"] += 1
        for func, args, kwargs, results in self.tape:
            again = func(*args, **kwargs)
            for result, new in zip(pytree.tree_leaves(results), pytree.tree_leaves(again), strict=True):
                if isinstance(result, Tensor) and result is not new:
                    result.copy_(new)


@contextmanager
def _capture(graph: _Graph, **_: Any) -> Iterator[None]:
    DEVICE.tape = graph.tape
    try:
        yield
    finally:
        DEVICE.tape = None


def _making(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and as_tensor, which make their tensor on the device without an operation."""

    def make(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return original(data, *args, device=device, **kwargs)
        made = data if isinstance(data, Tensor) else original(data, *args, **kwargs)
        return made.to(CUDA)

    return make


def start(guard: Path) -> Pretence:
    """Patch torch; the device is there from now on, for the whole process and for this thread's operations."""
    if any(name.partition(".")[0] == "tatok" for name in sys.modules):
        raise RuntimeError("start the pretence before tatok is imported")
    torch.ops.load_library(str(guard))
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.inference_mode = lambda mode=True: torch.no_grad()  # type: ignore[assignment, misc]
    torch.tensor, torch.as_tensor = _making(torch.tensor), _making(torch.as_tensor)
    torch.Tensor.pin_memory = lambda tensor: tensor.clone()  # type: ignore[assignment, method-assign]
    torch.Tensor.is_pinned = lambda _: False  # type: ignore[assignment, method-assign]
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[assignment, method-assign]
    for name, stand_in in {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "get_device_capability": lambda _=None: (9, 0),
        "get_device_name": lambda _=None: "a pretended device",
        "current_stream": lambda _=None: _Stream(),
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "synchronize": lambda _=None: DEVICE.wait("device"),
        "empty_cache": lambda: None,
        "graph_pool_handle": lambda: (0, 0),
        "Stream": _Stream,
        "Event": _Event,
        "CUDAGraph": _Graph,
        "graph": _capture,
    }.items():
        setattr(torch.cuda, name, stand_in)
    MODE.__enter__()
    _AsOnCuda().__enter__()
    return DEVICE
