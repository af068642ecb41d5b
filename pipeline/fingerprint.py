"""What the tokens of a data set depend on, as named text entries that can be compared and shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import PIL
from PIL import features

from pipeline.filters import filter_identity
from schemas.errors import ConfigError
from schemas.job import JobConfig
from schemas.tokens import SCHEMA_VERSION

if TYPE_CHECKING:
    from tatok.tokenizer import Tokenizer

__all__ = [
    "TokenizerSpec",
    "decoder_identity",
    "decoding_identity",
    "describe_difference",
    "require_equal",
    "run_fingerprint",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """What the pipeline must know of a tokenizer that lives in another process."""

    identity: Mapping[str, str]
    fingerprint: str
    vocab_size: int
    patch_size: int
    num_global: int

    @staticmethod
    def of(tokenizer: Tokenizer) -> TokenizerSpec:
        """Read the spec off a loaded tokenizer."""
        return TokenizerSpec(
            identity=dict(tokenizer.identity),
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            patch_size=tokenizer.patch_size,
            num_global=tokenizer.num_global,
        )

    def but(self, **entries: str) -> TokenizerSpec:
        """The spec of a tokenizer whose identity has these entries instead."""
        identity = {**self.identity, **entries}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return replace(self, identity=identity, fingerprint=fingerprint)


def decoder_identity(decoder: str = "pillow", video_decoder: str = "pyav") -> dict[str, str]:
    """The libraries of this process whose versions change pixels; decoders are preprocessing's and video's.

    Raises ConfigError where the decoder is not installed.
    """
    libraries = {"decoder": decoder, "pillow": PIL.__version__, "littlecms2": str(features.version("littlecms2"))}
    libraries |= {name: str(features.version(name)) for name in ("libjpeg_turbo", "jpg_2000", "webp", "avif")}
    packages = ["av", "decord2"] if video_decoder == "decord" else ["av"]
    libraries |= {name: version(name) for name in packages}
    if decoder != "pillow":
        try:
            from pipeline import fast
        except ImportError as error:
            raise ConfigError(f"preprocessing.decoder is {decoder}: {error}; pip install simplejpeg") from error
        libraries |= fast.identity()
    return libraries


def decoding_identity(config: JobConfig) -> dict[str, str]:
    """What rows depend on in a process that decodes for this job; it must be the same in all, and in the driver.

    Raises ConfigError where the decoder or the filter is missing.
    """
    return decoder_identity(config.preprocessing.decoder, config.video.decoder) | filter_identity(config.filter)


def run_fingerprint(config: JobConfig, tokenizer: TokenizerSpec) -> dict[str, str]:
    """Every setting and version that changes a row; how the work is spread is not among them.

    Limits are left out on purpose: they decide which samples become rows, never what a row holds, and a user who
    raises one to go on after too many rejects must be able to.
    """
    entries = {"schema": SCHEMA_VERSION, "vocab_size": str(tokenizer.vocab_size)}
    entries |= {f"tokenizer.{name}": value for name, value in tokenizer.identity.items()}
    entries |= {
        f"preprocessing.{name}": json.dumps(value)
        for name, value in config.preprocessing.model_dump(mode="json").items()
    }
    entries |= {f"video.{name}": json.dumps(value) for name, value in config.video.model_dump(mode="json").items()}
    entries["image_field"] = json.dumps(config.image_field)
    if config.label_from_folder:  # absent where it is off, as in data sets older than it
        entries["label_from_folder"] = "true"
    if config.dedup != "none":
        entries["dedup"] = config.dedup
    entries["patch_entropy"] = json.dumps(config.write.patch_entropy)
    if config.write.patch_worth:
        entries["patch_worth"] = "true"
    entries |= decoder_identity(config.preprocessing.decoder, config.video.decoder) | filter_identity(config.filter)
    return dict(sorted(entries.items()))


def describe_difference(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The entries that differ, as lines `name: old -> new`."""
    return [
        f"{name}: {old.get(name, '(none)')} -> {new.get(name, '(none)')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def require_equal(what: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise ConfigError, which lists what differs, where two processes of a run would give other tokens."""
    lines = describe_difference(expected, found)
    if lines:
        raise ConfigError(
            f"the {what} processes differ, so their tokens would too:\n  "
            + "\n  ".join(lines)
            + "\ninstall the same packages and checkpoint on every node"
        )
