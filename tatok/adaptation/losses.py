"""What a step of adapting minimises: the distance of the globals' guess from the codes' vectors, and surprisal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tatok.model.autoencoder import Encoded
from tatok.training.config import Stage
from tatok.training.losses import Losses

__all__ = ["AdaptationLosses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationLosses(Losses):
    """Squared distances are a position's, in units of the vectors' own spread: at most about 1."""

    def _of_images(self, images: Tensor, stage: Stage) -> tuple[dict[str, Tensor], Encoded, Tensor | None]:
        """The terms, and what they came from; nothing is drawn."""
        terms: dict[str, Tensor] = {}
        trains_globals = "tokenizer" in stage.train
        with torch.set_grad_enabled(trains_globals):
            encoded = self.model.encode(images)
        if trains_globals:
            distance_BN = (encoded.base_BNP - encoded.patches_BNC.vectors).square().sum(-1)
            terms["base"] = stage.pixel_weight * distance_BN.mean()
            config = self.model.config
            commitment = encoded.globals_BMC.commitment * (config.code_dim / config.cell_side**2)
            terms["commitment"] = stage.commitment_weight * commitment
        if "prior" in stage.train:
            terms["prior"] = self._surprisal(encoded, self.model.grid(images))
        return terms, encoded, None

    def _logits(self, encoded: Encoded, visible_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """As ever, but with a gradient for the globals: where they are trained too, they learn what helps the prior."""
        logits: Tensor = self.prior(
            encoded.globals_BMC.vectors,
            encoded.base_BNP,
            encoded.patches_BNC.vectors,
            visible_BN,
            self.model.coordinates(grid),
        )
        return logits
