"""`python -m tatok` is `tatok`."""

from __future__ import annotations

from tatok.jobs.cli import run

if __name__ == "__main__":  # not in the processes that it spawns, which import it again
    run()
