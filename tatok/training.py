"""`tatok train`: stages of steps over random crops, with progress, figures, sample pictures and resumption."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from tatok.photos import RandomCrops, centre_crops, expand_sources
from tatok.trainer import CHECKPOINT, Trainer
from tatok.training_config import TrainingConfig

__all__ = ["train"]


def _save_pictures(path: Path, pictures: Tensor, columns: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    array = ((rows + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    Image.fromarray(np.ascontiguousarray(array)).save(path)


def _codebook_use(trainer: Trainer) -> dict[str, float]:
    shares = {}
    for name in ("global", "patch"):
        quantizer = getattr(trainer.model, f"{name}_quantizer")
        p = quantizer.ema_count_K / quantizer.ema_count_K.sum()
        shares[f"perplexity_{name}"] = float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))
    return shares


def train(config: TrainingConfig, device: torch.device, *, start_from: str | None = None) -> Path:
    """Run all stages, or go on where the output folder left off; returns the checkpoint folder.

    Progress goes to the terminal; figures of every `log_every_steps` steps to OUTPUT/metrics.jsonl, sample pictures
    (original, full rate, energy-filtered, globals only) to OUTPUT/samples/.
    """
    photos = expand_sources(config.photos)
    heldout = expand_sources(config.heldout)
    trainer = Trainer(config, device, start_from)
    console = Console()
    if trainer.restore():
        console.print(f"going on in {config.output}: stage {trainer.stage_index + 1}, step {trainer.step}")
    trainer.output.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        (trainer.output / "metrics.jsonl").open("a", encoding="utf-8") as log,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        while trainer.stage_index < len(config.stages):
            _run_stage(trainer, photos, heldout, log, progress)
    trainer.save()
    console.print(f"checkpoint: {trainer.output / CHECKPOINT}")
    return trainer.output / CHECKPOINT


def _run_stage(trainer: Trainer, photos: list[str], heldout: list[str], log: TextIO, progress: Progress) -> None:
    config, stage = trainer.config, trainer.config.stages[trainer.stage_index]
    # A resumed stage sees other crops than it already has, not the same again.
    seed = config.seed + 7919 * trainer.stage_index + 104_729 * trainer.step
    crops = RandomCrops(photos, stage.image_size, seed, smallest_crop=stage.smallest_crop)
    loader = DataLoader(crops, batch_size=stage.batch_size, num_workers=config.num_loader_workers)
    batches = iter(loader)
    if not trainer.is_initialised:
        progress.console.print(f"starting bases and codebooks from {config.num_start_crops} crops")
        trainer.initialise(batches)
    validation = None
    if heldout:
        validation = torch.stack(list(centre_crops(heldout, stage.image_size, config.num_heldout)))
    task = progress.add_task(stage.name, total=stage.steps, completed=trainer.step)
    sums: dict[str, float] = defaultdict(float)
    started = time.monotonic()
    since_log = 0

    def look() -> None:
        nonlocal started, since_log
        seconds = time.monotonic() - started
        trainer.seconds += seconds
        record: dict[str, float | str] = {"stage": stage.name, "step": trainer.step}
        record |= {name: total / since_log for name, total in sums.items()}
        record |= {"images_per_s": since_log * stage.batch_size / seconds, "hours": trainer.seconds / 3600}
        record |= _codebook_use(trainer)
        is_round = trainer.step % config.save_every_steps == 0 or trainer.step == stage.steps
        if is_round and validation is not None:
            figures, pictures = trainer.validate(validation)
            record |= figures
            name = f"{trainer.stage_index}-{stage.name}-{trainer.step:06d}.png"
            _save_pictures(trainer.output / "samples" / name, pictures, min(8, len(validation)))
        log.write(json.dumps(record) + "\n")
        log.flush()
        text = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
        progress.console.print(text, soft_wrap=True, highlight=False)
        if is_round:
            trainer.save()
        sums.clear()
        started, since_log = time.monotonic(), 0

    while trainer.step < stage.steps:
        for name, value in trainer.train_step(next(batches)).items():
            sums[name] += value
        since_log += 1
        progress.advance(task)
        if trainer.step % config.log_every_steps == 0 or trainer.step == stage.steps:
            look()
    trainer.stage_index += 1
    trainer.step = 0
    trainer.optimizer = None
