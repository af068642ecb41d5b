"""How a training run uses its device: in which precision it computes, and compiled layers."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["compile_layers", "computes_in_bfloat16"]


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
