"""The VQ models of Janus (LlamaGen's VQ-16), Chameleon and Emu3, as the library `transformers` has them.

`path` names the VQ model alone or the whole language model that carries it: of that, the VQ model's weights are read,
and from the hub only the files that hold them are fetched. All three take pixels in [-1, 1], as those who trained them
gave them; what `transformers`' processors do beside (resizing, Chameleon's scale of 0.0078 a level) is not done.

Codes are looked up in float32 and image by image, so that the table of distances to 16,384 entries stays small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.adapters.saved_model import checked_device, fitted, open_saved_model, require, tensors_sha256
from tatok.model.pixels import to_float, to_pixels
from tatok.precision import Precision, check_precision, computing
from tatok.schemas.errors import ConfigError

__all__ = ["Emu3VQ", "EncoderVQ", "JanusVQ", "load"]

_CODEBOOK = "quantize.embedding.weight"
_NO_PART_OF_IT = ("transformers_version", "dtype", "torch_dtype", "architectures", "_name_or_path")


class EncoderVQ:
    """An encoder of images and its codebook: all that the library has of Chameleon's VQ model, so it cannot decode."""

    covered_options = ("path", "revision", "subfolder")

    def __init__(self, model: Any, precision: Precision, identity: Mapping[str, str]) -> None:
        self.identity = identity
        self.vocab_size = int(model.quantize.embedding.num_embeddings)
        self.patch_size = 2 ** (len(model.config.channel_multiplier) - 1)
        self._model = model
        self._precision: Precision = precision

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> codes [B, h, w]."""
        with self._computing(pixels, self._precision):
            vectors = self._model.quant_conv(self._model.encoder(to_float(pixels)))
        height, width = vectors.shape[2:]
        with self._computing(pixels, "float32"):
            found = [self._model.quantize(image)[2] for image in vectors.float().split(1)]
        return torch.cat(found).view(-1, height, width)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> the vectors that stand for them, [B, C, h, w]."""
        return self._model.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()

    def _computing(self, tensor: Tensor, precision: Precision) -> Any:
        return computing(precision, tensor.device)


class JanusVQ(EncoderVQ):
    """LlamaGen's VQ-16, which Janus took over: 16,384 codes of unit length, 16 pixels a step.

    LlamaGen compares directions, so the codebook is brought to unit length here: then the nearest entry is that of the
    closest direction. The library's own `encode` compares lengths, too, while its `decode` brings codes to unit length.
    """

    def __init__(self, model: Any, precision: Precision, identity: Mapping[str, str]) -> None:
        super().__init__(model, precision, identity)
        codebook = model.quantize.embedding.weight
        codebook.copy_(F.normalize(codebook, dim=-1))

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B, h, w] -> uint8 [B, 3, height, width]."""
        return self.decode_embedded(self.embed(codes))

    def decode_embedded(self, vectors: Tensor) -> Tensor:
        """[B, C, h, w] -> uint8 [B, 3, H, W]."""
        with self._computing(vectors, self._precision):
            images = self._model.decoder(self._model.post_quant_conv(vectors))
        return to_pixels(images.float())


class Emu3VQ(EncoderVQ):
    """Emu3's VQ model: 32,768 codes, 8 pixels a step, four frames of a clip a step in time.

    An image is a still clip of four frames, and the first of them when decoded, as in the library.
    """

    def __init__(self, model: Any, precision: Precision, identity: Mapping[str, str]) -> None:
        super().__init__(model, precision, identity)
        self._frames_a_step = int(model.config.temporal_downsample_factor)

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> codes [B, h, w]."""
        return self._encoded(pixels.unsqueeze(1).expand(-1, self._frames_a_step, -1, -1, -1)).squeeze(1)

    def encode_clips(self, pixels: Tensor) -> Tensor:
        """uint8 [B, T, 3, H, W] -> codes [B, T / 4, h, w]; raises ConfigError where T is no multiple of it."""
        num_frames, step = pixels.shape[1], self._frames_a_step
        if num_frames % step:
            raise ConfigError(
                f"clips have {num_frames} frames; this model takes multiples of {step}",
                remedy=f"set video.frames_per_clip to {-(-num_frames // step) * step}",
            )
        return self._encoded(pixels)

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B, h, w] -> uint8 [B, 3, height, width]."""
        return self.decode_embedded(self.embed(codes))

    def decode_clips(self, codes: Tensor, num_frames: int, height: int, width: int) -> Tensor:
        """Codes [B, t, h, w] -> uint8 [B, num_frames, 3, height, width]."""
        return self._decoded(self._model.quantize.embedding(codes).permute(0, 1, 4, 2, 3).contiguous())

    def decode_embedded(self, vectors: Tensor) -> Tensor:
        """[B, C, h, w] -> uint8 [B, 3, H, W]."""
        return self._decoded(vectors.unsqueeze(1))[:, 0]

    def _encoded(self, clips: Tensor) -> Tensor:
        # Not by the library's `encode`, which cuts images to their sizes and would cut clips along the wrong sides.
        with self._computing(clips, self._precision):
            hidden = self._model.encoder(to_float(clips))
            vectors = self._model.quant_conv(hidden.transpose(1, 2)).transpose(1, 2)
        with self._computing(clips, "float32"):
            return torch.cat([self._model.quantize(clip) for clip in vectors.float().split(1)])

    def _decoded(self, vectors: Tensor) -> Tensor:
        """[B, t, C, h, w] -> uint8 [B, T, 3, H, W]."""
        with self._computing(vectors, self._precision):
            hidden = self._model.post_quant_conv(vectors.transpose(1, 2)).transpose(1, 2)
            frames = self._model.decoder(hidden, vectors)
        num_clips, num_steps, _, height, width = vectors.shape
        shape = (num_clips, num_steps * self._frames_a_step, 3, height * self.patch_size, width * self.patch_size)
        return to_pixels(frames.float()).reshape(shape)


_KINDS: dict[str, tuple[str, str, type[EncoderVQ]]] = {  # model_type -> its module, its class, ours
    "chameleon_vqgan": ("transformers.models.chameleon.modeling_chameleon", "ChameleonVQVAE", EncoderVQ),
    "janus_vqgan": ("transformers.models.janus.modeling_janus", "JanusVQVAE", JanusVQ),
    "emu3_vqgan": ("transformers.models.emu3.modeling_emu3", "Emu3VQVAE", Emu3VQ),
}
_CARRIERS = {"chameleon": "chameleon_vqgan", "janus": "janus_vqgan", "emu3": "emu3_vqgan"}


def load(
    device: str,
    *,
    path: str,
    revision: str | None = None,
    subfolder: str = "",
    precision: Precision = "float32",
) -> EncoderVQ:
    """The VQ model in a folder, or in a repository of the hub (`owner/name`), onto a device.

    Raises ConfigError where it is none of the three, has no safetensors, or its weights do not fit its config.
    """
    chosen = checked_device(device)
    check_precision(precision, chosen)
    library = require("transformers", "transformers")
    saved = open_saved_model(path, revision, subfolder)
    document = saved.config()
    model_type = document.get("model_type")
    kind = _CARRIERS.get(str(model_type), model_type)
    if kind not in _KINDS:
        raise ConfigError(
            f"{saved.place}: config.json is of model_type {model_type!r}; this adapter knows "
            f"{', '.join(sorted(_CARRIERS))} and their VQ models alone",
            remedy="write a tokenizer of your own around it (tatok.tokenizer.protocol)",
        )
    module, name, adapter = _KINDS[str(kind)]
    model_class = getattr(require(module, "transformers"), name)
    config = model_class.config_class.from_dict(document.get("vq_config", document))
    tensors = saved.part(_CODEBOOK)
    model: nn.Module = fitted(lambda: model_class(config), tensors, saved.place).to(chosen)
    settings = {name: value for name, value in config.to_dict().items() if name not in _NO_PART_OF_IT}
    identity = {
        "model": f"{name} {json.dumps(settings, sort_keys=True)}",
        "weights_sha256": tensors_sha256(tensors),
        "transformers": ".".join(library.__version__.split(".")[:2]),
    }
    return adapter(model, precision, identity)
