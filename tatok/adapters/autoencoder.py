"""Continuous autoencoders of the library `diffusers`, to train over their latents (`autoencoder: diffusers`).

AutoencoderKL is Stable Diffusion's and FLUX's, AutoencoderTiny its small stand-in (TAESD). `subfolder` names one within
a pipeline's repository ("vae"). Latents are the means of the encoder's distribution, without its scaling factor.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tatok.adapters.diffusers import pretrained
from tatok.adapters.saved_model import checked_device, open_saved_model, require
from tatok.schemas.errors import ConfigError

__all__ = ["SavedAutoencoder", "load"]

_KINDS = ("AutoencoderKL", "AutoencoderTiny")


class SavedAutoencoder(nn.Module):
    """An autoencoder of `diffusers` as tatok.autoencoders.frozen.Autoencoder describes one."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.channels = int(network.config.latent_channels)
        widths = getattr(network.config, "block_out_channels", None) or network.config.encoder_block_out_channels
        self.factor = 2 ** (len(widths) - 1)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [-1, 1] -> latents [B, C, h, w]."""
        encoded = self.network.encode(images_B3HW)
        latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> [B, 3, H, W], about [-1, 1]."""
        images: Tensor = self.network.decode(latents_BChw).sample
        return images


def load(device: str, *, path: str, revision: str | None = None, subfolder: str = "") -> SavedAutoencoder:
    """The autoencoder in a folder, or in a repository of the hub (`owner/name`), onto a device.

    Raises ConfigError where it is another model, has no safetensors, or its weights do not fit its config.
    """
    chosen = checked_device(device)
    library = require("diffusers", "diffusers")
    saved = open_saved_model(path, revision, subfolder)
    if "config.json" not in saved.names and "model_index.json" in saved.names:
        raise ConfigError(f"{saved.place} is a whole pipeline; set subfolder: vae in autoencoder_options")
    kind = saved.config().get("_class_name")
    if kind not in _KINDS:
        raise ConfigError(f"{saved.place}: config.json is of a {kind}; this loads {' and '.join(_KINDS)}")
    network = pretrained(getattr(library, kind), saved)
    return SavedAutoencoder(network).to(chosen)
