"""Figures and pictures of a training as TensorBoard's event files, beside its own records."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tatok.schemas.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["FOLDER", "EventFiles", "check_tensorboard", "event_files"]

FOLDER = "tensorboard"


def check_tensorboard(output: str) -> None:
    """Raise ConfigError if event files cannot be written for a run in `output`."""
    if "://" in output:
        raise ConfigError(
            f"tensorboard is on, but its event files cannot be written to {output}",
            remedy="leave tensorboard out (metrics.jsonl has all figures), or choose an output on a disk",
        )
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "tensorboard is on, but it is not installed", remedy="pip install 'tatok[tensorboard]', or leave it out"
        ) from error


class EventFiles:
    """Those of one run. Steps are counted over all stages."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def add(self, record: Mapping[str, Any], step: int) -> None:
        """The figures of a record; held-out ones under names of their own."""
        for name, value in record.items():
            if isinstance(value, float):
                is_heldout = name.startswith("psnr_") or name in ("entropy_bits", "surprisal_bits")
                self._writer.add_scalar(f"heldout/{name}" if is_heldout else f"training/{name}", value, step)

    def show(self, png: bytes, step: int) -> None:
        """The sheet of samples."""
        with Image.open(io.BytesIO(png)) as image:
            self._writer.add_image("samples", np.asarray(image), step, dataformats="HWC")
        self._writer.flush()


@contextmanager
def event_files(output: str, first_step: int) -> Iterator[EventFiles]:
    """Event files in a run's folder; what is there of `first_step` and later, TensorBoard leaves out from now on."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(Path(output) / FOLDER), purge_step=first_step)
    try:
        yield EventFiles(writer)
    finally:
        writer.close()
