"""What the globals tell about the patches: the conditional entropy of patch codes with globals given, and without.

Two priors of one shape are trained alike on the codes of one frozen tokenizer; one of them sees neither globals nor the
base image. Their surprisal on held-out images estimates H(Z_i | z_G, z_S) and H(Z_i | z_S) from above, in bits a patch,
for visible sets S of several shares drawn at random. Their difference is what the globals tell that the visible
patches do not: an estimate of I(Z_i; Z_G | Z_S), as good as both priors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from tatok.evaluation.calibration import EncodedPhotos
from tatok.model.autoencoder import TaTok
from tatok.model.prior import Prior
from tatok.tokenizer.encoding import FullRate
from tatok.training.photos import RandomCrops

__all__ = ["ConditionalEntropy", "conditional_entropies", "measure"]

VISIBLE_SHARES = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalEntropy:
    """Bits a hidden patch when a share of the patches is visible: mean surprisal of held-out images, and entropy."""

    visible_share: float
    given_globals_bits: float
    without_globals_bits: float
    given_globals_entropy_bits: float
    without_globals_entropy_bits: float


class _Blind(Prior):
    """A prior that is shown no globals, and no base image, which follows from them."""

    def forward(
        self, globals_BMC: Tensor, base_BNP: Tensor, vectors_BNC: Tensor, visible_BN: Tensor, coordinates_L2: Tensor
    ) -> Tensor:
        nothing = torch.zeros_like(globals_BMC), torch.zeros_like(base_BNP)
        return super().forward(*nothing, vectors_BNC, visible_BN, coordinates_L2)


def conditional_entropies(
    model: TaTok,
    photos: list[str],
    heldout: EncodedPhotos,
    *,
    image_size: int,
    steps: int,
    batch_size: int,
    seed: int,
) -> list[ConditionalEntropy]:
    """Train both priors on random crops of `photos`, in the same batches, and measure them on `heldout`.

    `model` is the one of `heldout`'s tokenizer.
    """
    tokenizer = heldout.tokenizer
    config, device = model.config, tokenizer.device
    torch.manual_seed(seed)
    given = Prior(config).to(device)
    without = _Blind(config).to(device)
    without.load_state_dict(given.state_dict())
    optimizers = [torch.optim.AdamW(prior.parameters(), lr=1e-3, betas=(0.9, 0.99)) for prior in (given, without)]
    crops = DataLoader(RandomCrops(photos, image_size, seed, smallest_crop=1.0), batch_size=batch_size)
    for step, pixels in zip(range(steps), crops, strict=False):
        full = tokenizer.full_rate(pixels)
        visible_BN = _visible(full, torch.rand(len(pixels), 1))
        for prior, optimizer in zip((given, without), optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1, (step + 1) / 50) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
            logits = _logits(prior, model, full, visible_BN)
            loss = F.cross_entropy(logits[~visible_BN], full.codes.patch_BN[~visible_BN])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return [measure(given.eval(), without.eval(), model, heldout, share, seed) for share in VISIBLE_SHARES]


def _visible(full: FullRate, shares_B1: Tensor) -> Tensor:
    return (torch.rand(full.codes.patch_BN.shape) < shares_B1).to(full.codes.patch_BN.device)


def _logits(prior: Prior, model: TaTok, full: FullRate, visible_BN: Tensor) -> Tensor:
    coordinates = model.coordinates(full.grid)
    # Copies: what was made under inference_mode cannot take part in training.
    inputs = full.globals_BMC.clone(), full.base_BNP.clone(), full.patches_BNC.clone()
    logits: Tensor = prior(*inputs, visible_BN, coordinates.clone())
    return logits


@torch.no_grad()
def measure(
    given: Prior, without: Prior, model: TaTok, heldout: EncodedPhotos, share: float, seed: int
) -> ConditionalEntropy:
    """Both priors on the same held-out images and visible sets."""
    torch.manual_seed(seed)
    sums: list[list[float]] = [[], []]
    entropies: list[list[float]] = [[], []]
    for full in heldout.full:
        visible_BN = _visible(full, torch.full((len(full.codes.patch_BN), 1), share))
        for index, prior in enumerate((given, without)):
            log_q = F.log_softmax(_logits(prior, model, full, visible_BN)[~visible_BN], dim=-1) / math.log(2)
            sums[index] += (-log_q.gather(1, full.codes.patch_BN[~visible_BN][:, None])[:, 0]).tolist()
            entropies[index] += (-(log_q * (log_q * math.log(2)).exp()).sum(1)).tolist()

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return ConditionalEntropy(
        visible_share=share,
        given_globals_bits=mean(sums[0]),
        without_globals_bits=mean(sums[1]),
        given_globals_entropy_bits=mean(entropies[0]),
        without_globals_entropy_bits=mean(entropies[1]),
    )
