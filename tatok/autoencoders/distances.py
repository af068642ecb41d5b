"""How far the drawn picture moves when latents do: what makes distances between latents mean something.

The channels of an autoencoder's latents weigh as its training left them, not as the eye does. To first order a small
change x of one latent changes the picture by J x, by squared length x^T G x with G = E[J^T J]. G comes from products
with random directions u of the picture, since E[(J^T u)(J^T u)^T] = J^T J where E[u u^T] = 1: one backward pass gives a
sample at every latent. What latents that lie side by side do together is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tatok.autoencoders.frozen import FrozenAutoencoder

__all__ = ["channel_metric", "moments", "picture_metric"]

SMALLEST_SHARE = 1e-3  # of the metric's largest eigenvalue: directions that draw nothing keep some weight
IMAGES_AT_ONCE = 4  # whose backward pass is held in memory
MARGIN = 2  # latents at a border are drawn as others are not


def moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean [A] and covariance [A, A] of the latents in batches [B, A, h, w]."""
    rows_VA = torch.cat([batch.float().movedim(1, -1).flatten(0, -2) for batch in batches])
    return rows_VA.mean(0), torch.cov(rows_VA.T)


def channel_metric(covariance_AA: Tensor) -> Tensor:
    """The metric [A, A] in which every channel has a deviation of 1."""
    return torch.diag(1 / covariance_AA.diagonal().clamp_min(1e-12))


def picture_metric(autoencoder: FrozenAutoencoder, latents_BAhw: Tensor) -> Tensor:
    """G [A, A] over the latents given, of squared pixel differences in [-1, 1], from one random direction an image."""
    metric_AA = latents_BAhw.new_zeros(latents_BAhw.shape[1], latents_BAhw.shape[1], dtype=torch.float64)
    num_rows = 0
    for few in latents_BAhw.split(IMAGES_AT_ONCE):
        with torch.enable_grad():
            latents = few.detach().float().requires_grad_()
            images = autoencoder.decode(latents)
            (gradient,) = torch.autograd.grad((images * torch.randn_like(images)).sum(), latents)
        margin = MARGIN if min(gradient.shape[-2:]) > 2 * MARGIN else 0
        inner = gradient[..., margin : gradient.shape[-2] - margin, margin : gradient.shape[-1] - margin]
        rows_VA = inner.movedim(1, -1).flatten(0, -2)
        metric_AA += rows_VA.double().T @ rows_VA.double()
        num_rows += len(rows_VA)
    values, vectors = torch.linalg.eigh(metric_AA / num_rows)
    return ((vectors * values.clamp_min(SMALLEST_SHARE * values.max())) @ vectors.T).float()
