"""The adversary of a tokenizer: discriminators that tell rebuilt photos from real ones, and what they learn.

Two views: heads on the feature maps of a frozen ImageNet network (as in Projected GANs, arXiv 2111.01007; a tokenizer
with such a discriminator halves its rFID in GigaTok, arXiv 2504.08736), and a small convolutional one on the pixels,
which sees texture that the features do not. Hinge losses; the pixels' discriminator sees both sides through the same
kind of random change (arXiv 2006.10738); LeCam's pull towards moving averages (arXiv 2104.03310) keeps few photos from
being learnt by heart.

Shapes: B batch, C channels, h and w of a feature map, H and W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["Adversary", "Views"]

LECAM_WEIGHT, LECAM_DECAY = 0.001, 0.99
_HEAD_CHANNELS = 128


class Views(NamedTuple):
    """What the discriminators see of images: pixels [B, 3, H, W] and the frozen network's maps [B, C, h, w]."""

    images_B3HW: Tensor
    features: list[Tensor]

    def detached(self) -> Views:
        """The same without a gradient."""
        return Views(self.images_B3HW.detach(), [each.detach() for each in self.features])


class _Conv(nn.Module):
    """A convolution of spectral norm 1, whose norm is estimated in float32 whatever the products are computed in."""

    def __init__(self, channels: int, to_channels: int, side: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, (side - 1) // 2
        self.convolution = nn.Conv2d(channels, to_channels, side)
        spectral_norm(self.convolution)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.convolution.weight
        return F.conv2d(x, weight, self.convolution.bias, self.stride, self.padding)


class _FeatureHead(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.GroupNorm(1, channels, affine=False),
            _Conv(channels, _HEAD_CHANNELS, 1),
            nn.LeakyReLU(0.2),
            _Conv(_HEAD_CHANNELS, _HEAD_CHANNELS, 3),
            nn.LeakyReLU(0.2),
            _Conv(_HEAD_CHANNELS, 1, 1),
        )


class _PixelHead(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            _Conv(3, 64, 4, 2),
            nn.LeakyReLU(0.2),
            _Conv(64, 128, 4, 2),
            nn.LeakyReLU(0.2),
            _Conv(128, 256, 4, 2),
            nn.LeakyReLU(0.2),
            _Conv(256, 1, 3),
        )


def _changed(images_B3HW: Tensor) -> Tensor:
    """Brightness, saturation, contrast and place changed at random, each image its own way, differentiably."""
    num, device = len(images_B3HW), images_B3HW.device

    def drawn(low: float, high: float) -> Tensor:
        return torch.rand(num, 1, 1, 1, device=device) * (high - low) + low

    x = images_B3HW + drawn(-0.3, 0.3)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * drawn(0.5, 1.5)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * drawn(0.7, 1.3)
    height, width = x.shape[-2:]
    most = max(1, min(height, width) // 8)
    # One shift for the batch: both sides of a comparison are changed by the same kind of draw, not the same draw.
    down, right = (int(torch.randint(-most, most + 1, ())) for _ in range(2))
    return torch.roll(x, (down, right), dims=(2, 3))


class Adversary(nn.Module):
    """The discriminators; `views_channels` are the channels of the frozen network's maps."""

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, views_channels: list[int]) -> None:
        super().__init__()
        self.feature_heads = nn.ModuleList(_FeatureHead(channels) for channels in views_channels)
        self.pixel_head = _PixelHead()
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def forward(self, views: Views) -> list[Tensor]:
        """One map of verdicts [B, 1, h, w] a head, high where the images look real."""
        verdicts = [head(each) for head, each in zip(self.feature_heads, views.features, strict=True)]
        return [*verdicts, self.pixel_head(_changed(views.images_B3HW))]

    def loss_of_rebuilt(self, rebuilt: Views) -> Tensor:
        """What the tokenizer minimises; its gradient reaches the images, not the discriminators' weights.

        Call it under `requires_grad_(False)`.
        """
        return -torch.stack([verdict.float().mean() for verdict in self(rebuilt)]).mean()

    def own_loss(self, real: Views, rebuilt: Views) -> Tensor:
        """What the discriminators minimise: hinge losses of both sides and LeCam's term; moves the averages."""
        of_real, of_fake = self(real.detached()), self(rebuilt.detached())
        pairs = [(r.float(), f.float()) for r, f in zip(of_real, of_fake, strict=True)]
        hinge = torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in pairs]).mean()
        mean_real = torch.stack([r.mean() for r, _ in pairs]).mean()
        mean_fake = torch.stack([f.mean() for _, f in pairs]).mean()
        lecam = torch.stack(
            [F.relu(r - self.fake_mean).square().mean() + F.relu(self.real_mean - f).square().mean() for r, f in pairs]
        ).mean()
        with torch.no_grad():
            self.real_mean.lerp_(mean_real, 1 - LECAM_DECAY)
            self.fake_mean.lerp_(mean_fake, 1 - LECAM_DECAY)
        return hinge + LECAM_WEIGHT * lecam
