"""`tatok train`: stages of steps over random crops, with progress, figures, sample pictures and resumption.

One process or, where a process group is formed (distributed.py), each of several: all take the same steps on their own
crops; rank 0 alone looks at held-out photos, writes and speaks, while the others wait for it at the next step.
"""

from __future__ import annotations

import io
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tatok.distributed import num_ranks, rank, sum_over_ranks
from tatok.training.config import TrainingConfig, check_batch_sizes
from tatok.training.device import computes_in_bfloat16
from tatok.training.moving_photos import RandomClips
from tatok.training.photos import RandomCrops, centre_crops, expand_sources
from tatok.training.run_folder import is_url
from tatok.training.trainer import CHECKPOINT, Trainer

__all__ = ["train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Display:
    """Where a run speaks: the terminal with a progress bar, the caller's `say`, or, on other ranks than 0, nowhere."""

    say: Callable[[str], None]
    progress: Progress

    def start(self, name: str, total: int, completed: int) -> Callable[[], None]:
        """Show a stage; the answer is to be called after each of its steps."""
        task: TaskID = self.progress.add_task(name, total=total, completed=completed)
        return lambda: self.progress.advance(task)


@contextmanager
def _display(say: Callable[[str], None] | None) -> Iterator[_Display]:
    console = Console(quiet=say is not None or rank() > 0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console.quiet or not console.is_terminal) as progress:

        def print_line(text: str) -> None:
            progress.console.print(text, soft_wrap=True, highlight=False)

        yield _Display(say=print_line if say is None or rank() else say, progress=progress)


def _png(pictures: Tensor, columns: int) -> bytes:
    rows = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    array = ((rows + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    return buffer.getvalue()


def _codebook_use(trainer: Trainer) -> dict[str, float]:
    shares = {}
    for name in ("global", "patch") if trainer.config.model.num_global else ("patch",):
        quantizer = getattr(trainer.model, f"{name}_quantizer")
        p = quantizer.ema_count_K / quantizer.ema_count_K.sum()
        shares[f"perplexity_{name}"] = float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))
    return shares


def train(
    config: TrainingConfig,
    device: torch.device,
    *,
    start_from: str | None = None,
    say: Callable[[str], None] | None = None,
) -> str:
    """Run all stages, or resume where the output left off; returns the checkpoint folder, a path or a URL.

    Progress goes to the terminal, or line by line to `say`; figures of every `log_every_steps` steps to
    OUTPUT/metrics.jsonl, sample pictures (original, full rate, energy-filtered, globals only) to OUTPUT/samples/.
    Where a process group is formed, every rank calls this; a batch is shared among them.
    Raises ConfigError where that cannot be done equally, and TatokError where the loss becomes infinite or NaN.
    """
    check_batch_sizes(config, num_ranks())
    heldout = expand_sources(config.heldout)
    expand_sources([*config.photos, *config.videos])  # wrong paths are reported before anything is started
    trainer = Trainer(config, device, start_from)
    with _display(say) as display:
        if trainer.restore():
            display.say(f"resuming in {config.output}: stage {trainer.stage_index + 1}, step {trainer.step}")
        if config.precision == "bfloat16" and not computes_in_bfloat16("auto", device):
            display.say(
                "this processor has no bfloat16 instructions, which makes its products about ten times as slow as "
                "float32's: better set `precision: auto`"
            )
        while trainer.stage_index < len(config.stages):
            # Looked up for each stage anew: photos may have been added since the last.
            _run_stage(trainer, expand_sources(config.photos), expand_sources(config.videos), heldout, display)
        trainer.save()
        checkpoint = trainer.folder.path(CHECKPOINT)
        display.say(f"checkpoint: {checkpoint}")
    return checkpoint


def _batches(trainer: Trainer, photos: list[str], videos: list[str]) -> Iterator[Tensor]:
    config, stage = trainer.config, trainer.config.stages[trainer.stage_index]
    # A resumed stage sees other crops than it already has, not the same again.
    seed = config.seed + 7919 * trainer.stage_index + 104_729 * trainer.step
    crops = RandomCrops(photos, stage.image_size, seed, smallest_crop=stage.smallest_crop, rank=rank())
    samples: IterableDataset[Tensor] = crops
    if stage.is_on_clips:
        samples = RandomClips(
            crops,
            stage.num_frames,
            stage.camera,
            videos=videos,
            video_share=stage.video_share,
            video_fps=config.video_fps,
        )
    if config.photos_in_memory and not stage.is_on_clips:
        memory = trainer.photo_memory(photos)
        return memory.batches(
            stage.batch_size // num_ranks(),
            stage.image_size,
            seed + 15_485_863 * rank(),
            smallest_crop=stage.smallest_crop,
            native_share=stage.native_share,
        )
    loader = DataLoader(
        samples,
        batch_size=stage.batch_size // num_ranks(),
        num_workers=num_loader_workers(config, trainer.device),
        multiprocessing_context=_loader_context(config, trainer.device, [*photos, *videos]),
        pin_memory=trainer.device.type == "cuda",
    )
    return iter(loader)


def num_loader_workers(config: TrainingConfig, device: torch.device) -> int:
    """Processes that load crops: as configured, else one beside a CPU's training, and a GPU's share of the cores."""
    if config.num_loader_workers is not None:
        return config.num_loader_workers
    if device.type == "cpu":
        return 1
    return max(1, (os.cpu_count() or 1) // max(1, torch.cuda.device_count()))


def _loader_context(config: TrainingConfig, device: torch.device, paths: list[str]) -> str | None:
    """How loaders start: a process that holds a bucket's client, CUDA or NCCL must not be forked; else it is quick."""
    if num_loader_workers(config, device) == 0:
        return None
    if is_url(config.output) or any(is_url(path) for path in paths):
        return "spawn"
    return None if device.type == "cpu" else "forkserver"


def _run_stage(trainer: Trainer, photos: list[str], videos: list[str], heldout: list[str], display: _Display) -> None:
    config, stage = trainer.config, trainer.config.stages[trainer.stage_index]
    batches = _batches(trainer, photos, videos)
    if not trainer.is_initialised:
        display.say(f"starting bases and codebooks from {config.num_start_crops} crops")
        trainer.initialise(batches)
    validation = None
    if heldout and not rank():
        validation = torch.stack(list(centre_crops(heldout, stage.image_size, config.num_heldout)))
    advance = display.start(stage.name, stage.steps, trainer.step)
    sums: dict[str, float] = defaultdict(float)
    started = time.monotonic()
    since_log = 0

    def look() -> None:
        nonlocal started, since_log
        seconds = time.monotonic() - started
        trainer.seconds += seconds
        totals = sum_over_ranks(torch.tensor(list(sums.values()), device=trainer.device)) / (since_log * num_ranks())
        record: dict[str, float | str] = {"stage": stage.name, "step": trainer.step}
        record |= dict(zip(sums, totals.tolist(), strict=True))
        record |= {"images_per_s": since_log * stage.batch_size / seconds, "hours": trainer.seconds / 3600}
        record |= _codebook_use(trainer)
        is_round = trainer.step % config.save_every_steps == 0 or trainer.stage_is_done
        if is_round and validation is not None:
            figures, pictures = trainer.validate(validation)
            record |= figures
            name = f"samples/{trainer.stage_index}-{stage.name}-{trainer.step:06d}.png"
            trainer.folder.write(name, _png(pictures, min(8, len(validation))))
        if not rank():
            trainer.folder.add_record(record)
        display.say(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()))
        if is_round:
            trainer.save()
        sums.clear()
        started, since_log = time.monotonic(), 0

    while not trainer.stage_is_done:
        for name, value in trainer.train_step(next(batches)).items():
            sums[name] += value
        since_log += 1
        advance()
        if trainer.step % config.log_every_steps == 0 or trainer.stage_is_done:
            look()
        if config.photos_in_memory and trainer.step % config.save_every_steps == 0:
            found = expand_sources(config.photos)  # photos that came meanwhile are taken up
            if found != photos:
                photos = found
                batches = _batches(trainer, photos, videos)
    trainer.next_stage()
