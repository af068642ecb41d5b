"""The bundled checkpoint; CARD.md says what it is."""
