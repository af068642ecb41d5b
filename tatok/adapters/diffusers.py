"""VQModel of the library `diffusers`: VQ-Diffusion's, Kandinsky's MoVQ, aMUSEd's, or one's own.

`subfolder` names it within a pipeline's repository ("vqvae", "movq"). Pixels are taken in [-1, 1], but in [0, 1] where
the config says `lookup_from_codebook`, as aMUSEd's pipelines alone do; `pixel_range` says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tatok.adapters.saved_model import SavedModel, checked_device, open_saved_model, require, tensors_sha256
from tatok.model.pixels import to_float, to_pixels
from tatok.precision import Precision, check_precision, computing
from tatok.schemas.errors import ConfigError

__all__ = ["VQModelTokenizer", "load", "pretrained"]

_STEM = "diffusion_pytorch_model"
_RANGES = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0)}


class VQModelTokenizer:
    """A VQModel; codes are looked up in float32, image by image."""

    covered_options = ("path", "revision", "subfolder")

    def __init__(self, model: Any, precision: Precision, pixel_range: str, identity: Mapping[str, str]) -> None:
        self.identity = identity
        self.vocab_size = int(model.config.num_vq_embeddings)
        self.patch_size = 2 ** (len(model.config.block_out_channels) - 1)
        self._model = model
        self._precision: Precision = precision
        self._low, self._high = _RANGES[pixel_range]

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> codes [B, h, w]."""
        images = (to_float(pixels) + 1) / 2 * (self._high - self._low) + self._low
        with computing(self._precision, pixels.device):
            vectors = self._model.encode(images).latents
        height, width = vectors.shape[2:]
        with computing("float32", pixels.device):
            found = [self._model.quantize(image)[2][2] for image in vectors.float().split(1)]
        return torch.cat(found).view(-1, height, width)

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B, h, w] -> uint8 [B, 3, height, width]."""
        return self.decode_embedded(self.embed(codes))

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> the vectors that stand for them, [B, C, h, w]."""
        return self._model.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()

    def decode_embedded(self, vectors: Tensor) -> Tensor:
        """[B, C, h, w] -> uint8 [B, 3, H, W]."""
        model = self._model
        by_vectors = vectors if model.config.norm_type == "spatial" else None  # MoVQ's decoder looks at them, too
        with computing(self._precision, vectors.device):
            images = model.decoder(model.post_quant_conv(vectors), by_vectors).float()
        return to_pixels((images - self._low) / (self._high - self._low) * 2 - 1)


def pretrained(model_class: Any, saved: SavedModel) -> Any:
    """A model of a class of `diffusers`, with the saved weights as float32, on the CPU.

    By the library, which also knows the names that older versions gave to weights. Raises ConfigError where there are
    no safetensors, or they do not fit the config.
    """
    files = saved.weight_files(_STEM)
    for name in {f"{_STEM}.safetensors"} if files is None else {f"{_STEM}.safetensors.index.json", *files.values()}:
        saved.fetch(name)
    try:
        model, left = model_class.from_pretrained(
            saved.fetch("config.json").parent,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = next((line.strip() for line in reversed(str(error).splitlines()) if "size mismatch" in line), str(error))
        raise ConfigError(f"{saved.place}: weights are damaged or do not fit config.json: {said[:300]}") from error
    misfits = [f"{what.removesuffix('_keys')}: {', '.join(map(str, names))}" for what, names in left.items() if names]
    if misfits:
        raise ConfigError(f"{saved.place}: weights do not fit config.json: {'; '.join(misfits)[:300]}")
    return model.eval().requires_grad_(False)


def load(
    device: str,
    *,
    path: str,
    revision: str | None = None,
    subfolder: str = "",
    pixel_range: str | None = None,
    precision: Precision = "float32",
) -> VQModelTokenizer:
    """The VQModel in a folder, or in a repository of the hub (`owner/name`), onto a device.

    Raises ConfigError where it is another model, has no safetensors, or its weights do not fit its config.
    """
    chosen = checked_device(device)
    check_precision(precision, chosen)
    library = require("diffusers", "diffusers")
    saved = open_saved_model(path, revision, subfolder)
    if "config.json" not in saved.names and "model_index.json" in saved.names:
        raise ConfigError(f"{saved.place} is a whole pipeline; set tokenizer_options.subfolder: vqvae, or movq")
    document = saved.config()
    if document.get("_class_name") != "VQModel":
        raise ConfigError(
            f"{saved.place}: config.json is of a {document.get('_class_name')}; this adapter takes a VQModel, since "
            "other autoencoders of diffusers have no codes"
        )
    if pixel_range not in (None, *_RANGES):
        raise ConfigError(f"tokenizer_options.pixel_range is {pixel_range!r}; it is one of {', '.join(_RANGES)}")
    chosen_range = pixel_range or ("0..1" if document.get("lookup_from_codebook") else "-1..1")
    model = pretrained(library.VQModel, saved)
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    identity = {
        "model": f"VQModel {json.dumps(settings, sort_keys=True)}",
        "weights_sha256": tensors_sha256(model.state_dict()),
        "pixel_range": chosen_range,
        "diffusers": ".".join(library.__version__.split(".")[:2]),
    }
    return VQModelTokenizer(model.to(chosen), precision, chosen_range, identity)
