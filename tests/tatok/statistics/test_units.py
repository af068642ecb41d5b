"""Numbers of bytes for people."""

from __future__ import annotations

import pytest

from tatok.statistics.units import bytes_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (256_000_000, "256.0 MB"),
        (1.4e9, "1.4 GB"),
        (31e15, "31,000.0 TB"),
    ],
)
def test_units_are_powers_of_a_thousand(count: float, text: str) -> None:
    assert bytes_text(count) == text
