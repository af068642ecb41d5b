"""Decoders without work, by the node that they are on: what is decoded beside the model crosses no network."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Set
from dataclasses import dataclass
from typing import Any

__all__ = ["Decoder", "IdleDecoders"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoder:
    """A decoder's actor and where it is."""

    actor: Any
    node: str


class IdleDecoders:
    """Handed out in the order in which they came, as far as nodes allow; None stands for a tokenizer that decodes."""

    def __init__(self) -> None:
        self._by_node: dict[str, deque[Decoder | None]] = {}  # no node without any
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nodes(self) -> Set[str]:
        """Where there are some."""
        return self._by_node.keys()

    def add(self, decoder: Decoder | None) -> None:
        """It has nothing to do."""
        self._by_node.setdefault("" if decoder is None else decoder.node, deque()).append(decoder)
        self._count += 1

    def take(self, node: str, tokenizer_nodes: Container[str] = ()) -> Decoder | None:
        """One of the node, else one of a node without tokenizers, which nobody has for neighbour, else any.

        Call it only where there is one.
        """
        if node not in self._by_node:
            node = next((each for each in self._by_node if each not in tokenizer_nodes), next(iter(self._by_node)))
        decoders = self._by_node[node]
        decoder = decoders.popleft()
        if not decoders:
            del self._by_node[node]
        self._count -= 1
        return decoder
