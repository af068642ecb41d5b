"""How held-out photos come through a model as it is: at full rate, under kept sets, from the globals alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from tatok.model.autoencoder import Encoded, TaTok
from tatok.model.dtf import DTFSettings, position_bits
from tatok.model.pixels import to_float
from tatok.model.prior import CodeStatistics, Prior, code_statistics
from tatok.watching.sheets import PictureLine

__all__ = ["look_at"]

KEPT_SHARE = 0.16  # of the patches that are kept under a kept set: about 40 of 256
MOST_SHOWN, BATCH = 8, 16


@torch.no_grad()
def look_at(
    pixels: Tensor,
    model: TaTok,
    prior: Prior,
    dtf: DTFSettings,
    device: torch.device,
    *,
    autocast: Callable[[], AbstractContextManager[object]],
    check: Callable[[], None],
) -> tuple[dict[str, float], tuple[PictureLine, ...]]:
    """Means over held-out photos, uint8 [V, 3, H, W], and rows of the first few of them.

    `few` keeps the patches whose codes carry most energy, `dtf` those that DTF's criterion rates highest under the
    prior as it is: each `KEPT_SHARE` of a batch's patches. `check` is called before each batch, and may raise.
    """
    draw, figures = model.canvas.images, defaultdict[str, list[float]](list)
    lines: tuple[PictureLine, ...] = ()
    for batch in pixels.split(BATCH):
        check()
        images = to_float(batch.to(device))
        grid = model.grid_of_pixels(images)
        with autocast():
            canvas = model.canvas.working(images)
            encoded = model.encode(canvas)
            globals_BMC, vectors = encoded.globals_BMC.vectors, encoded.patches_BNC.vectors
            everything = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
            nothing = torch.zeros_like(everything)
            logits = prior(globals_BMC, encoded.base_BNP, vectors, nothing, model.coordinates(grid))
            statistics = code_statistics(logits, encoded.patches_BNC.codes, model.patch_quantizer.codebook_KC)
            kept = {
                "full": everything,
                "few": _most(vectors.square().sum(-1)),
                "dtf": _most(_worth(model, encoded, canvas, statistics, dtf)),
                "globals": nothing,
            }
            rebuilt = {
                name: draw(model.decode(globals_BMC, vectors, of_kept, encoded.base_BNP, grid)).clamp(-1, 1)
                for name, of_kept in kept.items()
            }
        for name, image in rebuilt.items():
            error = (image - images).square().mean((1, 2, 3)) / 4  # in [0, 1] units
            figures[f"psnr_{name}_db"] += (-10 * error.log10()).tolist()
        figures["entropy_bits"] += statistics.entropy.mean(1).tolist()
        figures["surprisal_bits"] += statistics.surprisal.mean(1).tolist()
        if not lines:
            shown = {name: image[:MOST_SHOWN] for name, image in rebuilt.items() if name != "few"}
            num_global = model.config.num_global
            tokens = {name: num_global + float(kept[name][:MOST_SHOWN].sum(1).float().mean()) for name in shown}
            labels = {
                "full": f"all {tokens['full']:.0f} tokens",
                "dtf": f"DTF by {dtf.criterion}: {tokens['dtf']:.1f} tokens on average",
                "globals": f"the {num_global} globals alone" if num_global else "no token",
            }
            lines = (
                PictureLine(label="original", images=images[:MOST_SHOWN]),
                *(PictureLine(label=labels[name], images=image) for name, image in shown.items()),
            )
    return {name: sum(values) / len(values) for name, values in figures.items()}, lines


def _worth(model: TaTok, encoded: Encoded, canvas: Tensor, statistics: CodeStatistics, dtf: DTFSettings) -> Tensor:
    """What DTF ranks by, [B, N], and none is cut off at 0 bits."""
    residual = None
    if dtf.criterion == "residual":
        residual = (model.patches(canvas) - encoded.base_BNP).square().sum(-1)
    return position_bits(statistics, dtf.ranking_all(), residual)


def _most(worth_BN: Tensor) -> Tensor:
    """The positions, bool [B, N], that hold most over the whole batch."""
    worth = worth_BN.float()
    return worth > worth.flatten().quantile(1 - KEPT_SHARE)
