"""Tokenizes on a pretended CUDA device and prints, as JSON, what it launched and waited for, and what differs.

Run as a program, with the guard's library and a checkpoint: the pretence patches torch for the whole process.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.cuda import pretend_cuda

DEVICE = pretend_cuda.start(Path(sys.argv[1]))

from tatok import Tokenizer  # noqa: E402
from tatok.model.checkpoint import load_checkpoint  # noqa: E402
from tatok.model.dtf import DTFSettings  # noqa: E402
from tatok.schemas.records import TokenSequence  # noqa: E402
from tatok.tokenizer.fixed_rate import FixedRate  # noqa: E402
from tests.support.tiny_checkpoint import tiny_images  # noqa: E402
from tests.support.tokenizers.own import Blocks  # noqa: E402


def tokenizer(device: torch.device, **options: Any) -> Tokenizer:
    """Of a model of its own: moving one to a device moves it away."""
    return Tokenizer(load_checkpoint(sys.argv[2]), device, **options)


def codes(sequences: list[TokenSequence]) -> list[Any]:
    return [(s.codes.tolist(), s.positions.tolist(), s.num_global) for s in sequences]


def numbers(images: torch.Tensor) -> Any:
    """Without the wait that a test's look at them is."""
    return (images.inner if isinstance(images, pretend_cuda.PretendTensor) else images).tolist()


def counted(act: Callable[[], Any], of_cpu: Callable[[], Any]) -> dict[str, Any]:
    DEVICE.reset()
    found = act()
    launches, waits = dict(DEVICE.launches), dict(DEVICE.waits)
    return {"equal": found == of_cpu(), "launches": sum(launches.values()), "by": launches, "waits": waits}


def main() -> None:
    cpu, cuda = tokenizer(torch.device("cpu")), tokenizer(pretend_cuda.CUDA)
    eager = tokenizer(pretend_cuda.CUDA, graphs=False)
    pixels = tiny_images(16)
    clips = torch.stack([tiny_images(4, seed=seed) for seed in range(3)])
    found: dict[str, Any] = {}
    eager.encode(pixels)
    found["eager"] = counted(lambda: codes(eager.encode(pixels)), lambda: codes(cpu.encode(pixels)))
    for name, dtf in {
        "rounds": DTFSettings(criterion="entropy", threshold=40.0, rounds=3, min_tokens=8, max_tokens=40),
        "fraction": DTFSettings(criterion="surprisal", threshold_kind="fraction", threshold=0.5),
        "zero": DTFSettings(criterion="content", threshold_kind="distortion"),
    }.items():
        of_cuda, of_cpu = eager.with_dtf(dtf), cpu.with_dtf(dtf)
        found[name] = counted(lambda: codes(of_cuda.encode(pixels)), lambda: codes(of_cpu.encode(pixels)))  # noqa: B023
    batches = [pixels, pixels.flip(0), pixels.flip(3), pixels[:9], *pixels[:7].split(1)]
    for number, batch in enumerate(batches):
        found[f"graph {number}"] = counted(lambda: codes(cuda.encode(batch)), lambda: codes(cpu.encode(batch)))  # noqa: B023

    def two_ahead() -> list[Any]:
        pending = [cuda.encode_clips_async(batch[:, None]) for batch in (pixels, pixels.flip(0))]
        return [codes(each.result()) for each in pending if each.is_done()]

    own, own_on_cpu = FixedRate(Blocks(), pretend_cuda.CUDA), FixedRate(Blocks())

    def own_two_ahead() -> list[Any]:
        pending = [own.encode_clips_async(batch[:, None]) for batch in (pixels, pixels.flip(0))]
        return [codes(each.result()) for each in pending]

    found["own ahead"] = counted(
        own_two_ahead, lambda: [codes(own_on_cpu.encode(batch)) for batch in (pixels, pixels.flip(0))]
    )
    found["ahead"] = counted(two_ahead, lambda: [codes(cpu.encode(batch)) for batch in (pixels, pixels.flip(0))])
    sequences = cpu.encode(pixels)
    found["decode"] = counted(lambda: numbers(eager.decode(sequences)), lambda: numbers(cpu.decode(sequences)))
    eager.encode_clips(clips)  # whose tables are then there
    found["clips"] = counted(lambda: codes(eager.encode_clips(clips)), lambda: codes(cpu.encode_clips(clips)))
    several = [clips, clips.flip(0), clips.flip(1), clips[:2], clips.flip(3)]
    for number, some in enumerate(several):
        wanted = codes(cpu.encode_clips(some))
        found[f"clips {number}"] = counted(lambda: codes(cuda.encode_clips(some)), lambda: wanted)  # noqa: B023
    of_clips = cpu.encode_clips(clips)
    found["decode clips"] = counted(
        lambda: numbers(eager.decode_clips(of_clips)), lambda: numbers(cpu.decode_clips(of_clips))
    )
    for precision in ("tf32", "bfloat16"):
        other = tokenizer(pretend_cuda.CUDA, precision=precision)
        found[precision] = counted(lambda: codes(other.encode(pixels)), lambda: codes(cpu.encode(pixels)))  # noqa: B023

    broken = tokenizer(pretend_cuda.CUDA)
    compute = broken._encoding.packed
    broken._launcher._graphs._compute = lambda pixels: (compute(pixels) + 0 * int(pixels.max()),)  # which waits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(3):
            found[f"broken {number}"] = counted(lambda: codes(broken.encode(pixels)), lambda: codes(sequences))
    found["warnings"] = [str(each.message) for each in caught]
    try:
        pixels.to(pretend_cuda.CUDA) + pixels
    except RuntimeError as error:
        found["mix"] = str(error)
    print(json.dumps(found))


main()
