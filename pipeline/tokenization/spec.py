"""What the pipeline must know of a tokenizer that lives in another process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tatok.tokenizer.protocol import AnyTokenizer

__all__ = ["TokenizerSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """What the pipeline must know of a tokenizer that lives in another process."""

    identity: Mapping[str, str]
    fingerprint: str
    vocab_size: int
    patch_size: int
    num_global: int
    codes_per_position: int = 1
    has_entropy: bool = True

    @staticmethod
    def of(tokenizer: AnyTokenizer) -> TokenizerSpec:
        """Read the spec off a loaded tokenizer."""
        return TokenizerSpec(
            identity=dict(tokenizer.identity),
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            patch_size=tokenizer.patch_size,
            num_global=tokenizer.num_global,
            codes_per_position=tokenizer.codes_per_position,
            has_entropy=tokenizer.has_entropy,
        )

    def but(self, **entries: str) -> TokenizerSpec:
        """The spec of a tokenizer whose identity has these entries instead."""
        identity = {**self.identity, **entries}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return replace(self, identity=identity, fingerprint=fingerprint)
