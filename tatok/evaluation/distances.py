"""Distances between two sets of images, in the feature space of a network: Fréchet, and kernel (for small sets).

The formulas are torchmetrics' (Fréchet: arXiv 1706.08500; kernel: arXiv 1801.01401, cubic polynomial, unbiased). The
network decides what the figures mean: only those of the published Inception weights compare with published FIDs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.evaluation.features import EfficientNetLiteFeatures, MobileNetFeatures
from tatok.model.pixels import to_float
from tatok.schemas.errors import ConfigError

__all__ = [
    "SMALLEST_SET",
    "ImageDistances",
    "ImageFeatures",
    "PooledFeatures",
    "TorchScriptFeatures",
    "image_distances",
    "load_features",
]

SMALLEST_SET = 50  # images; a kernel distance of subsets of half of these is already mostly noise
NUM_SUBSETS, SUBSET_SIZE = 100, 1000  # as published kernel distances have them

# Networks trained at 224 say little of images of 32, so these are enlarged. A side of 64 costs MobileNetV2 17 s for
# 10,000 images on two CPU cores, 96 costs 45 s, 128 costs 90 s. On CIFAR-10 (kernel distance of 1,200 test images to
# 1,200 others, slightly blurred, noisy, compressed, or without three classes) 96 stood out from chance only 1.1 to 1.4
# times as clearly as 64.
SMALLEST_SIDE = 64

EFFICIENTNET_SCALE = 0.1  # to MobileNetV2's: over images its pooled features vary by 2.4, those by 0.25


class PooledFeatures(nn.Module):
    """uint8 images [B, 3, H, W] -> the means over space of a trunk's feature maps, float32 [B, num_features].

    All of the trunk's maps are pooled, fine ones too: in the trial beside `SMALLEST_SIDE` they stood out from chance
    1.4 to 6.5 times as clearly as the 1,280 features of the last layer alone. Images with a side below that are
    enlarged (bicubic), as Inception's own preprocessing enlarges to 299. Features are multiplied by `scale`: the
    kernel's cube is of little use to features of several units, whose few strongest channels then drown the rest.
    """

    def __init__(self, trunk: EfficientNetLiteFeatures | MobileNetFeatures, scale: float = 1.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.scale = scale
        with torch.inference_mode():
            self.num_features = self(torch.zeros(1, 3, SMALLEST_SIDE, SMALLEST_SIDE, dtype=torch.uint8)).shape[1]

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """The pooled features; see the class."""
        images = to_float(pixels_B3HW)
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST_SIDE:
            scale = SMALLEST_SIDE / min(height, width)
            size = (round(height * scale), round(width * scale))
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
        return torch.cat([features.float().mean((2, 3)) for features in self.trunk(images)], dim=1) * self.scale


class TorchScriptFeatures(nn.Module):
    """A network of the user's, such as the published Inception: a TorchScript file, uint8 [B, 3, H, W] -> [B, F].

    The network does its own resizing and scaling. A `forward` that has an argument `return_features`, as NVIDIA's
    inception-2015-12-05.pt has, is given True for it. Raises ConfigError where the file is no such network.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        try:
            with warnings.catch_warnings():
                # torch.export is to follow, but the Inception that the field compares with is a TorchScript file.
                warnings.filterwarnings(
                    "ignore", message=".*torch.jit.load.* is deprecated", category=DeprecationWarning
                )
                self.network = torch.jit.load(str(path), map_location="cpu").eval()
            arguments = {argument.name for argument in self.network.forward.schema.arguments}
            self.options = {"return_features": True} if "return_features" in arguments else {}
            with torch.inference_mode():
                self.num_features = self(torch.zeros(1, 3, 299, 299, dtype=torch.uint8)).shape[1]
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{path} is not a TorchScript network of uint8 images [B, 3, H, W]: {str(error).strip()[:300]}"
            ) from error

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """The network's features, float32 [B, num_features]."""
        features: Tensor = self.network(pixels_B3HW, **self.options)
        return features.float().flatten(1)


def load_features(name: str) -> PooledFeatures | TorchScriptFeatures:
    """The network behind a name: "mobilenet" (the reports'), "efficientnet", or a TorchScript file's path.

    EfficientNet is the training loss's network: its figures flatter what was trained with it. Raises ConfigError where
    the network is not installed, or the file not one.
    """
    if name == "mobilenet":
        return PooledFeatures(MobileNetFeatures()).eval()
    if name == "efficientnet":
        return PooledFeatures(EfficientNetLiteFeatures(), EFFICIENTNET_SCALE).eval()
    if not Path(name).is_file():
        raise ConfigError(f"features are {name!r}; give mobilenet, efficientnet or the path of a TorchScript file")
    return TorchScriptFeatures(name).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDistances:
    """`kernel` is the mean over random subsets, `kernel_std` their standard deviation.

    `frechet` is None where a set has no more images than there are features: its covariance is then singular and the
    distance mostly bias. Compare Fréchet distances of equally many images only: the bias shrinks with their number.
    """

    frechet: float | None
    kernel: float
    kernel_std: float
    num_references: int
    num_images: int
    num_features: int


class ImageFeatures:
    """The features of a set of images, float32 [N, F], beside the network that made them: computed once, used often."""

    def __init__(self, network: nn.Module, batches: Iterable[Tensor], device: torch.device | str = "cpu") -> None:
        """`batches` are uint8 [B, 3, H, W]; raises ConfigError where there is none, or no such device."""
        try:
            self.network, self.device = network.to(device), torch.device(device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device is {str(device)!r}: {error}") from error
        features = [self.extract(pixels) for pixels in batches]
        if not features:
            raise ConfigError("there is no image to compute features of")
        self.features_NF = torch.cat(features)

    def __len__(self) -> int:
        return len(self.features_NF)

    @torch.inference_mode()
    def extract(self, pixels_B3HW: Tensor) -> Tensor:
        """The features of other images under the same network, float32 [B, F], on the CPU."""
        features: Tensor = self.network(pixels_B3HW.to(self.device))
        return features.float().cpu()

    def distances(self, features_NF: Tensor, *, paired: bool = False, seed: int = 0) -> ImageDistances:
        """Distances of a set with these features (made by `extract`) to this set.

        `paired`: row i of both is one photo, here as it is and there rebuilt. A photo and its rebuild are then never
        in one kernel estimate, whose expectation their likeness would lower by about 2 / N of the kernel's range: with
        few photos a rebuild would come out nearer to the originals than other originals are.
        Raises ConfigError where a set has fewer than `SMALLEST_SET` images, or torchmetrics is missing.
        """
        smallest = min(len(self), len(features_NF))
        if smallest < SMALLEST_SET:
            raise ConfigError(f"a set of {smallest} images is too small for a distance; give {SMALLEST_SET} or more")
        if paired and len(self) != len(features_NF):
            raise ValueError(f"{len(features_NF)} images cannot be pairs of {len(self)} references")
        # In double precision: a kernel distance is a small difference of large sums.
        references, images = self.features_NF.double(), features_NF.double()
        subsets = torch.stack(list(_kernel_distances(references, images, paired, torch.Generator().manual_seed(seed))))
        num_features = references.shape[1]
        return ImageDistances(
            frechet=_frechet_distance(references, images) if smallest > num_features else None,
            kernel=float(subsets.mean()),
            kernel_std=float(subsets.std(correction=0)),
            num_references=len(references),
            num_images=len(images),
            num_features=num_features,
        )


def _kernel_distances(references: Tensor, images: Tensor, paired: bool, generator: torch.Generator) -> Iterator[Tensor]:
    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError as error:
        raise ConfigError("kernel distances need torchmetrics: pip install 'tatok[eval]'") from error
    size = min(SUBSET_SIZE, len(references) // 2, len(images) // 2)
    for _ in range(NUM_SUBSETS):
        order = torch.randperm(len(references), generator=generator)
        other = order[size:] if paired else torch.randperm(len(images), generator=generator)
        yield poly_mmd(references[order[:size]], images[other[:size]])


class _Given(nn.Identity):
    """Hands torchmetrics features that exist already, where it expects a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _frechet_distance(references: Tensor, images: Tensor) -> float:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ConfigError("Fréchet distances need torchmetrics: pip install 'tatok[eval]'") from error
    metric = FrechetInceptionDistance(feature=_Given(references.shape[1])).set_dtype(torch.float64)
    metric.update(references, real=True)
    metric.update(images, real=False)
    return float(metric.compute())


def image_distances(
    references: Iterable[Tensor], images: Iterable[Tensor], network: nn.Module, *, device: torch.device | str = "cpu"
) -> ImageDistances:
    """Distances between two sets, each given in batches of uint8 [B, 3, H, W]; see `ImageFeatures.distances`."""
    of_references = ImageFeatures(network, references, device)
    return of_references.distances(ImageFeatures(network, images, device).features_NF)
