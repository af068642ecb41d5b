"""In which precision a tokenizer computes, whatever the process has set otherwise.

float32   products and convolutions of float32 numbers in float32. The default, and the only one that CPUs agree on.
tf32      the same with ten bits of mantissa, on the tensor cores of CUDA devices since Ampere.
bfloat16  the transformers under autocast; pixel bases, codebook look-ups and DTF's sums stay in float32.

Torch keeps the modes of float32 products for the whole process, and takes them from the environment, too
(TORCH_ALLOW_TF32_CUBLAS_OVERRIDE). They are therefore set while a tokenizer computes, checked, and put back
afterwards; other threads that compute at that moment compute in this mode as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

from tatok.schemas.errors import ConfigError

__all__ = ["Precision", "check_precision", "computing"]

Precision = Literal["float32", "tf32", "bfloat16"]


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError, with a remedy, unless `device` can compute in `precision`."""
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
    if precision != "tf32":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"precision is 'tf32', which only CUDA devices have, but the device is {device}; use float32 or bfloat16"
        )
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"precision is 'tf32', which {torch.cuda.get_device_name(device)} does not have (Ampere and later do); "
            "use float32"
        )


@contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within it, this thread computes on `device` in `precision`, on CUDA as far as kernels are launched within it."""
    mode = _MODES.get(device.type, _MODES["cpu"])
    with mode.held("tf32" if precision == "tf32" else "ieee"):
        if precision == "bfloat16":
            with torch.autocast(device.type, dtype=torch.bfloat16):
                yield
        else:
            with torch.autocast(device.type, enabled=False):
                yield


class _Float32Mode:
    """The process's mode of float32 products and convolutions on one kind of device.

    Held by any number of threads that want the same; a thread that wants another waits until nobody holds this one.
    """

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._free = threading.Condition()
        self._mode = ""
        self._holders = 0
        self._found: dict[str, Any] = {}

    @contextmanager
    def held(self, mode: str) -> Iterator[None]:
        with self._free:
            while self._holders and self._mode != mode:
                self._free.wait()
            if not self._holders:
                self._mode, self._found = mode, _read(self._device_type)
            self._holders += 1
        try:
            _ensure(self._device_type, mode)  # even where others hold it: somebody else may have set it meanwhile
            yield
        finally:
            with self._free:
                self._holders -= 1
                if not self._holders:
                    _restore(self._device_type, self._found)
                    self._free.notify_all()


_MODES = {"cpu": _Float32Mode("cpu"), "cuda": _Float32Mode("cuda")}


def _backends(device_type: str) -> dict[str, Any]:
    """Where torch 2.9 and later keep the modes, by name."""
    if device_type == "cuda":
        found: dict[str, Any] = {"matmul": torch.backends.cuda.matmul}
        found |= {name: getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn")}
    else:
        found = {name: getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv")}
    return {name: backend for name, backend in found.items() if _has_modes(backend)}


def _has_modes(backend: Any) -> bool:
    try:
        return isinstance(backend.fp32_precision, str)
    except (AttributeError, RuntimeError):
        return False


def _read(device_type: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: backend.fp32_precision for name, backend in _backends(device_type).items()}
    if device_type == "cuda":
        found["old matmul"] = _or_none(lambda: torch.backends.cuda.matmul.allow_tf32)
        found["for all devices"] = _or_none(torch.get_float32_matmul_precision)
        found["old conv"] = _or_none(lambda: torch.backends.cudnn.allow_tf32)
    elif not found:
        found["for all devices"] = torch.get_float32_matmul_precision()
    return found


def _or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # what was set the old way and the new way differs
        return None


def _is(found: dict[str, Any], mode: str) -> bool:
    right = {
        "matmul": ("tf32",) if mode == "tf32" else ("ieee", "none"),
        "conv": ("tf32",) if mode == "tf32" else ("ieee", "none"),
        "rnn": ("tf32",) if mode == "tf32" else ("ieee", "none"),
        "old matmul": (mode == "tf32",),
        "old conv": (mode == "tf32",),
    }
    if len(found) == 1:  # a CPU under an old torch
        return bool(found["for all devices"] == "highest")
    return all(found[name] in values for name, values in right.items() if name in found)


def _ensure(device_type: str, mode: str) -> None:
    if _is(_read(device_type), mode):
        return
    if device_type == "cuda":  # the old way sets the new one as well, so that the two never contradict each other
        torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
        torch.backends.cudnn.allow_tf32 = mode == "tf32"
        for backend in _backends(device_type).values():
            if backend.fp32_precision not in (mode, "none"):  # it had none of its own, but that of all backends
                backend.fp32_precision = mode
    elif backends := _backends(device_type):
        for backend in backends.values():
            backend.fp32_precision = mode
    else:
        torch.set_float32_matmul_precision("highest")
    if not _is(found := _read(device_type), mode):
        raise RuntimeError(f"torch does not take the float32 mode {mode!r}: it reads back as {found}")


def _restore(device_type: str, found: dict[str, Any]) -> None:
    if _read(device_type) == found:
        return
    if found.get("for all devices") is not None:
        for_cpus = {name: backend.fp32_precision for name, backend in _backends("cpu").items()}
        torch.set_float32_matmul_precision(found["for all devices"])
        for name, backend in _backends("cpu").items():
            backend.fp32_precision = for_cpus[name]
    elif found.get("old matmul") is not None:
        torch.backends.cuda.matmul.allow_tf32 = found["old matmul"]
    if found.get("old conv") is not None:
        torch.backends.cudnn.allow_tf32 = found["old conv"]
    for name, backend in _backends(device_type).items():
        backend.fp32_precision = found[name]
