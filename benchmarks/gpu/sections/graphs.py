"""What replaying a CUDA graph, and compiling, would bring: encoder, prior and filter as one piece of device work.

The model is called directly, beside the tokenizer, so that this does not depend on how the tokenizer calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.launches import launches
from benchmarks.gpu.measure import Section, free_memory, timed
from benchmarks.gpu.pictures import crops
from benchmarks.gpu.precisions import switched
from tatok.model.checkpoint import Checkpoint, load_checkpoint
from tatok.model.dtf import filter_tokens
from tatok.model.pixels import to_float

__all__ = ["Step", "run_compile", "run_graph"]

SIDE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Pixels on the device -> codes, and the prior's statistics or (with `filters`) the kept sets."""

    checkpoint: Checkpoint
    device: torch.device
    filters: bool

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Codes of globals and of patches; then kept sets or entropies."""
        model, prior = self.checkpoint.model, self.checkpoint.prior
        images = to_float(pixels)
        grid = model.grid(images)
        encoded = model.encode(images)
        codes_BN = encoded.patches_BNC.codes

        def estimate(visible_BN: Tensor) -> Any:
            return prior.statistics(
                encoded.globals_BMC.vectors,
                encoded.base_BNP,
                encoded.patches_BNC.vectors,
                visible_BN,
                model.coordinates(grid),
                codes_BN=codes_BN,
                codebook_KC=model.patch_quantizer.codebook_KC,
            )

        if not self.filters:
            last = estimate(torch.zeros(codes_BN.shape, dtype=torch.bool, device=self.device)).entropy
        else:
            last = filter_tokens(
                estimate,
                num_images=codes_BN.shape[0],
                num_positions=codes_BN.shape[1],
                num_global=model.config.num_global,
                settings=self.checkpoint.dtf,
                device=self.device,
                residual_BN=(model.patches(images) - encoded.base_BNP).square().sum(-1),
            ).kept_BN
        return encoded.globals_BMC.codes, codes_BN, last


def captured(work: Callable[[Tensor], tuple[Tensor, ...]], pixels: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """`work` as a CUDA graph for pixels of this shape."""
    held = pixels.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work(held)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work(held)

    def replay(pixels: Tensor) -> tuple[Tensor, ...]:
        held.copy_(pixels)
        graph.replay()
        return results

    return replay


def _equal_shares(work: Callable[[Tensor], tuple[Tensor, ...]], eager: Step, pixels: Tensor) -> list[float]:
    """Of codes and of what follows them: the share that equals the eager step's, on pixels turned upside down."""
    turned = pixels.flip(2)
    got = [each.clone() for each in work(turned)]
    return [float((a == b).double().mean()) for a, b in zip(got, eager(turned), strict=True)]


def _measured(
    work: Callable[[Tensor], tuple[Tensor, ...]], eager: Step, pixels: Tensor, device: torch.device
) -> dict[str, Any]:
    told: dict[str, Any] = timed(lambda: work(pixels), device, repetitions=15, warmups=3, budget_s=1.0).told(
        len(pixels)
    )
    told["equal_to_eager"] = _equal_shares(work, eager, pixels)
    told["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return told


def _loaded(section: Section) -> tuple[Checkpoint, Tensor]:
    checkpoint = load_checkpoint()
    checkpoint.model.to(section.device)
    checkpoint.prior.to(section.device)
    return checkpoint, crops(section.photos, 256, SIDE).to(section.device)


def run_graph(section: Section) -> None:
    """Eager against captured, without and with the filter, by batch."""
    checkpoint, pixels = _loaded(section)
    for filters in (False, True):
        step = Step(checkpoint=checkpoint, device=section.device, filters=filters)
        for precision in ("float32", "tf32", "bfloat16"):
            name = f"{_name(step)}.{precision}"
            with torch.inference_mode(), switched(precision, section.device):
                rates = [_against_eager(section, name, step, pixels[:batch]) for batch in (16, 64, 256)]
            section.headline(f"{name}, graph against eager images/s at {'; '.join(filter(None, rates))}")


def _name(step: Step) -> str:
    return "with_filter" if step.filters else "without_filter"


def _against_eager(section: Section, name: str, step: Step, pixels: Tensor) -> str:
    batch = len(pixels)
    eager = section.attempt(f"{name}.eager.batch_{batch}", lambda: _measured(step, step, pixels, section.device))
    graph = section.attempt(
        f"{name}.graph.batch_{batch}", lambda: _measured(captured(step, pixels), step, pixels, section.device)
    )
    free_memory(section.device)
    return f"{batch}: {graph['images_per_s']:.0f} against {eager['images_per_s']:.0f}" if eager and graph else ""


def run_compile(section: Section) -> None:
    """torch.compile of the step, then the same as a graph."""
    checkpoint, pixels = _loaded(section)
    for precision, filters in (("bfloat16", True), ("float32", True), ("bfloat16", False), ("tf32", True)):
        step = Step(checkpoint=checkpoint, device=section.device, filters=filters)
        with torch.inference_mode(), switched(precision, section.device):
            _compiled(section, f"{_name(step)}.{precision}", step, pixels)
        free_memory(section.device)


def _compiled(section: Section, name: str, step: Step, pixels: Tensor) -> None:
    torch.compiler.reset()
    compiled: Any = torch.compile(step.__call__, dynamic=False)

    def first_call() -> dict[str, Any]:
        started = time.perf_counter()
        compiled(pixels)
        torch.cuda.synchronize()
        return {"compiling_s": time.perf_counter() - started}

    first = section.attempt(f"{name}.compiling", first_call, needs_s=25)
    if first is None:
        return
    found = section.attempt(f"{name}.compiled", lambda: _measured(compiled, step, pixels, section.device))
    section.attempt(f"{name}.compiled_and_captured", lambda: _captured_compiled(compiled, step, pixels))
    section.attempt(f"{name}.launches", lambda: launches(lambda: compiled(pixels), section.device))
    if found:
        section.headline(
            f"{name}, compiled in {first['compiling_s']:.0f} s: {found['images_per_s']:.0f} images/s at {len(pixels)}"
        )


def _captured_compiled(compiled: Any, step: Step, pixels: Tensor) -> dict[str, Any]:
    return _measured(captured(compiled, pixels), step, pixels, step.device)
