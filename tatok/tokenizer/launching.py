"""Functions of batches on a device, launched now and waited for later; on CUDA through graphs.

A batch of images takes some hundred kernels, each of a few microseconds, which Python launches more slowly than a GPU
runs them; a step of frames takes a thousand. A CUDA graph launches them all at once. It holds one shape: batches are
padded to one of a few sizes.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatok.model.tables import all_tables
from tatok.precision import Precision, computing

__all__ = ["Launched", "Launcher", "Work", "graph_size", "sent"]

Work = Callable[..., tuple[Tensor, ...]]
"""Of tensors with a row for each element of a batch, and gives such tensors; a pure function of each row.

The shapes of all follow from that of the first.
"""

GRAPHS_VARIABLE = "TATOK_CUDA_GRAPHS"  # 0: no CUDA graphs
MAX_GRAPHS = 32
PATIENCE = 4  # so many batches that fill less than half of the graph there is get one of their own


def graph_size(num_images: int) -> int:
    """The size that a batch is padded to if it gets a graph of its own: at most an eighth more, or 7 images."""
    step = max(1, 1 << max(0, (num_images - 1).bit_length() - 4))
    return -(-num_images // step) * step


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without a wait for its copy to get there; if it is pinned, it must not change."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Launched:
    """What a device works on: `done` is the event after it, None where it was done at once."""

    def __init__(self, result: Tensor, done: Any = None) -> None:
        self._result = result
        self._done = done

    def is_done(self) -> bool:
        """Whether `wait` would not have to wait."""
        return self._done is None or bool(self._done.query())

    def wait(self) -> np.ndarray:
        """The result, once it is there; raises what went wrong on the device."""
        if self._done is not None:
            self._done.synchronize()
        return self._result.numpy()


class Launcher:
    """Launches `compute`: uint8 pixels [B, 3, H, W] on `device` -> [B, R] there; safe to call from several threads.

    `compute` must be a pure function of each row, without a step that waits for the device. `graphs`: whether to run
    it through CUDA graphs (None: yes, unless the environment says TATOK_CUDA_GRAPHS=0); on a CPU it means nothing.
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], device: torch.device, precision: Precision, graphs: bool | None
    ) -> None:
        self._compute = compute
        self._device = device
        self._precision: Precision = precision
        self._lock = threading.Lock()
        self._streams: tuple[Any, Any] | None = None  # for copies of pixels, and for all else
        wanted = os.environ.get(GRAPHS_VARIABLE) != "0" if graphs is None else graphs
        self._pool = _Pool() if wanted and device.type == "cuda" else None
        self._graphs = None if self._pool is None else _Graphs(lambda pixels: (compute(pixels),), self._pool)

    def launch(self, pixels: Tensor) -> Launched:
        """Start on pixels of any device.

        The pixels may be overwritten as soon as this returns, unless they lie in pinned memory or on the device: then
        once the result is there.
        """
        if self._device.type != "cuda":
            with torch.inference_mode(), computing(self._precision, self._device):
                packed = self._compute(pixels.to(self._device))
            return Launched(packed.cpu())
        if pixels.device.type != "cuda" and not pixels.is_pinned():
            pixels = pixels.pin_memory()  # a copy, so that the one to the device need not be waited for
        with self._lock, torch.inference_mode(), torch.cuda.device(self._device):
            return self._launch_cuda(pixels)

    def runs(self, work: Work) -> Work:
        """The same function of tensors on the device, in the launcher's precision and, on CUDA, through graphs.

        It waits for nothing: what it gives may be used at once, on the stream that is current where it is called. On
        CUDA `work` must not wait either. Graphs of all functions of a launcher share their memory.
        """
        if self._device.type != "cuda":

            def run(*inputs: Tensor) -> tuple[Tensor, ...]:
                with torch.inference_mode(), computing(self._precision, self._device):
                    return work(*inputs)

            return run
        graphs = None if self._pool is None else _Graphs(work, self._pool)

        def run_on_cuda(*inputs: Tensor) -> tuple[Tensor, ...]:
            with self._lock, torch.inference_mode(), torch.cuda.device(self._device):
                callers, (_, running) = torch.cuda.current_stream(self._device), self._running_streams()
                running.wait_stream(callers)
                with torch.cuda.stream(running), computing(self._precision, self._device):
                    outputs = work(*inputs) if graphs is None else graphs(inputs, running, lasting=True)
                callers.wait_stream(running)
                for output in outputs:
                    output.record_stream(callers)
                return outputs

        return run_on_cuda

    def _running_streams(self) -> tuple[Any, Any]:
        if self._streams is None:
            self._streams = (torch.cuda.Stream(self._device), torch.cuda.Stream(self._device))
        return self._streams

    def _launch_cuda(self, pixels: Tensor) -> Launched:
        copying, running = self._running_streams()
        if pixels.device.type == "cuda":
            copying.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(copying):
            staged = pixels.to(self._device, non_blocking=True)
        running.wait_stream(copying)
        with torch.cuda.stream(running), computing(self._precision, self._device):
            staged.record_stream(running)
            packed = self._compute(staged) if self._graphs is None else self._graphs((staged,), running)[0]
            result = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            result.copy_(packed, non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record(running)
        return Launched(result, done)


class _Pool:
    """The memory that graphs share, once there is one."""

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def handle(self) -> Any:
        if self._handle is None:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle


class _Batches:
    """Batches of one padded shape: their inputs' fixed places, and the graph once there is one."""

    def __init__(self, inputs: Sequence[Tensor], num_rows: int) -> None:
        self.inputs = tuple(each.new_zeros((num_rows, *each.shape[1:])) for each in inputs)
        self.graph: Any = None
        self.outputs: tuple[Tensor, ...] = ()
        self.tables: tuple[Tensor, ...] = ()  # which the graph reads
        self.was_run = False


class _Graphs:
    """`compute` through CUDA graphs, on one stream and by one thread at a time.

    The first batch of a shape runs without a graph, which warms it up; the second is captured. Where that fails, such
    batches continue without. All graphs of a pool share its memory: they run one after another, and what one gives has
    been copied (in the stream's order) before the next one runs.
    """

    def __init__(self, compute: Work, pool: _Pool) -> None:
        self._compute = compute
        self._pool = pool
        self._batches: OrderedDict[tuple[int, ...], _Batches] = OrderedDict()
        self._small: Counter[tuple[int, ...]] = Counter()
        self._without: dict[tuple[int, ...], str] = {}
        self._has_warned = False

    def __call__(self, inputs: tuple[Tensor, ...], stream: Any, *, lasting: bool = False) -> tuple[Tensor, ...]:
        """What `compute` gives; unless it is to be `lasting`, only until the next graph of the pool runs."""
        num_rows = len(inputs[0])
        shape = self._padded_shape(inputs[0])
        if not num_rows or shape in self._without:
            return self._compute(*inputs)
        batches = self._batches.get(shape)
        if batches is None:
            batches = self._batches[shape] = _Batches(inputs, shape[0])
            if len(self._batches) > MAX_GRAPHS:
                self._batches.popitem(last=False)
        self._batches.move_to_end(shape)
        for place, each in zip(batches.inputs, inputs, strict=True):
            place[:num_rows].copy_(each)
        if batches.graph is None and batches.was_run and not self._capture(shape, batches, stream):
            return self._compute(*inputs)
        if batches.graph is None:
            padded = self._warm_up(shape, batches)
        else:
            batches.graph.replay()
            padded = batches.outputs
        outputs = tuple(each[:num_rows] for each in padded)  # which may be inputs
        return tuple(each.clone() for each in outputs) if lasting else outputs

    def _warm_up(self, shape: tuple[int, ...], batches: _Batches) -> tuple[Tensor, ...]:
        try:
            outputs = self._compute(*batches.inputs)
        except BaseException:  # of memory, maybe: smaller batches must not be padded to this size
            del self._batches[shape]
            raise
        batches.was_run = True
        return outputs

    def _padded_shape(self, first: Tensor) -> tuple[int, ...]:
        num_rows, *row = first.shape
        own = graph_size(num_rows)
        fitting = [shape[0] for shape in self._batches if list(shape[1:]) == row and shape[0] >= num_rows]
        if not fitting:
            return (own, *row)
        if min(fitting) <= 2 * own:
            return (min(fitting), *row)
        self._small[(own, *row)] += 1
        return (own if self._small[(own, *row)] > PATIENCE else min(fitting), *row)

    def _capture(self, shape: tuple[int, ...], batches: _Batches, stream: Any) -> bool:
        reason = ""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool.handle, stream=stream, capture_error_mode="thread_local"):
                batches.outputs = self._compute(*batches.inputs)
        except Exception as error:  # out of memory, or a step that cannot be captured
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not reason:
            batches.graph, batches.tables = graph, all_tables()
            return True
        del graph  # after the block: the error's frames held what was captured
        batches.outputs = ()
        del self._batches[shape]
        torch.cuda.empty_cache()
        self._without[shape] = reason
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"batches of {list(shape)} run without a CUDA graph, which is slower, since capturing one failed "
                f"({reason}); {GRAPHS_VARIABLE}=0 switches graphs off",
                RuntimeWarning,
                stacklevel=2,
            )
        return False
