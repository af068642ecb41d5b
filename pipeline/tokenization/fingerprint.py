"""What the tokens of a dataset depend on, as named text entries that can be compared and shown."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING

import PIL
from PIL import features

from tatok.pipeline.decode.filters import filter_identity
from tatok.pipeline.images.extras import installed_versions
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.tokens import SCHEMA_VERSION

if TYPE_CHECKING:
    pass

__all__ = [
    "decoder_identity",
    "decoding_identity",
    "run_fingerprint",
]


def decoder_identity(decoder: str = "pillow", video_decoder: str = "pyav") -> dict[str, str]:
    """The libraries of this process whose versions change pixels; decoders are preprocessing's and video's.

    Raises ConfigError if the decoder is not installed.
    """
    libraries = {"decoder": decoder, "pillow": PIL.__version__, "littlecms2": str(features.version("littlecms2"))}
    libraries |= {name: str(features.version(name)) for name in ("libjpeg_turbo", "jpg_2000", "webp", "avif")}
    packages = ["av", "decord2"] if video_decoder == "decord" else ["av"]
    libraries |= {name: version(name) for name in packages}
    if decoder != "pillow":
        try:
            from tatok.pipeline.images import simplejpeg
        except ImportError as error:
            raise ConfigError(f"preprocessing.decoder is {decoder}: {error}; pip install simplejpeg") from error
        libraries |= simplejpeg.identity()
    return libraries


def decoding_identity(config: JobConfig) -> dict[str, str]:
    """What rows depend on in a process that decodes for this job; it must be the same in all, and in the driver.

    The plug-ins that are installed for HEIC and JPEG XL are among it: which samples are rows may not depend on the
    process that met them. They are not in `run_fingerprint`. An extra that is installed later changes no row that is
    there, it only makes rows of samples that were left out or rejected, as a limit that is raised does; and a dataset
    of JPEGs must not refuse to be resumed because of it. The price: HEIC and JPEG XL rows of a dataset that is resumed
    after such a plug-in was upgraded come from two versions of it.

    Raises ConfigError if the decoder or the filter is missing.
    """
    identity = decoder_identity(config.preprocessing.decoder, config.video.decoder)
    return identity | installed_versions() | filter_identity(config.filter)


def run_fingerprint(config: JobConfig, tokenizer: TokenizerSpec) -> dict[str, str]:
    """Every setting and version that changes a row; how the work is spread is not among them.

    Limits are left out on purpose: they decide which samples become rows, never what a row holds, and a user who
    raises one to resume after too many rejects must be able to.
    """
    entries = {"schema": SCHEMA_VERSION, "vocab_size": str(tokenizer.vocab_size)}
    entries |= {f"tokenizer.{name}": value for name, value in tokenizer.identity.items()}
    entries |= {
        f"preprocessing.{name}": json.dumps(value)
        for name, value in config.preprocessing.model_dump(mode="json").items()
    }
    entries |= {f"video.{name}": json.dumps(value) for name, value in config.video.model_dump(mode="json").items()}
    entries["image_field"] = json.dumps(config.image_field)
    if config.label_from_folder:  # absent where it is off, as in datasets older than it
        entries["label_from_folder"] = "true"
    if config.dedup != "none":
        entries["dedup"] = config.dedup
    entries["patch_entropy"] = json.dumps(config.write.patch_entropy)
    if config.write.patch_worth:
        entries["patch_worth"] = "true"
    if not tokenizer.has_entropy:  # absent where it is there, as in all datasets of TaTok
        entries["entropy"] = "none"
    if tokenizer.codes_per_position != 1:
        entries["codes_per_position"] = str(tokenizer.codes_per_position)
    entries |= decoder_identity(config.preprocessing.decoder, config.video.decoder) | filter_identity(config.filter)
    return dict(sorted(entries.items()))
