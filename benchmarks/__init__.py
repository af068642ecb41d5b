"""What was measured, and how: run as python -m benchmarks.ROOM.FILE from the top of the checkout."""

from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
