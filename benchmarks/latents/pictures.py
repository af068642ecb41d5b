"""One picture of held-out photos as each tokenizer rebuilds them: a row a photo, originals on the left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tatok import Tokenizer
from tatok.evaluation.calibration import EncodedPhotos, calibrated_sets

__all__ = ["rebuilt_columns", "write_picture"]


def rebuilt_columns(tokenizer: Tokenizer, photos: Sequence[Tensor], counts: Sequence[float]) -> list[Tensor]:
    """The photos, uint8 [V, 3, H, W], by DTF at each mean count over all of them, and at full rate."""
    encoded = EncodedPhotos(tokenizer, photos)
    sets = [calibrated_sets(encoded, count, tokenizer.dtf)[1] for count in counts]
    sets.append([torch.ones_like(full.codes.patch_BN, dtype=torch.bool) for full in encoded.full])
    return [
        torch.cat([tokenizer.rebuild(full, kept) for full, kept in zip(encoded.full, kept_sets, strict=True)]).cpu()
        for kept_sets in sets
    ]


def write_picture(path: Path, columns: Sequence[Tensor], *, side: int = 176) -> None:
    """Columns of equally many photos beside each other, as a JPEG."""
    rows = torch.stack(list(columns), dim=1).permute(0, 3, 1, 4, 2)  # [V, H, columns, W, 3]
    num_photos, height, num_columns, width, _ = rows.shape
    array = rows.reshape(num_photos * height, num_columns * width, 3).numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    image = image.resize((num_columns * side, num_photos * side), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=82)
