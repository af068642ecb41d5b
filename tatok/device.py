"""Which device a training has, in which precision it computes there, and its layers compiled for it."""

from __future__ import annotations

import torch
from torch import nn

from tatok.schemas.errors import ConfigError

__all__ = ["compile_layers", "computes_in_bfloat16", "device_named"]


def device_named(name: str | None) -> torch.device:
    """The device of that name; without one CUDA's first where there is one, else the CPU.

    Raises ConfigError where torch knows none of the name, or cannot use it.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        said = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise ConfigError(f"device {name} cannot be used: {said}", remedy=f"there is {', '.join(usable)}") from error
    return device


def computes_in_bfloat16(precision: str, device: torch.device) -> bool:
    """What a training file's `precision` comes to on a device."""
    if precision == "auto":
        return device.type != "cpu" or _cpu_has_bfloat16()
    return precision == "bfloat16"


def _cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for it; torch computes in it on any, slowly where there are none."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compile_layers(modules: nn.Module) -> None:
    """Compile each layer by itself: layers of one shape share what is compiled, so that the start is short."""
    torch._dynamo.config.recompile_limit = 64  # a layer's code serves several shapes, with and without gradients
    for module in modules.modules():
        if getattr(module, "is_compiled_alone", False):
            module.compile(dynamic=False)
