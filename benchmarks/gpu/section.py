"""Run one section of the kit in this process: python3 -m benchmarks.gpu.section NAME --out FILE.json ...

Imports little by itself: a section's decoder processes import this module again.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import sys
import time
from pathlib import Path

STOPS_EARLIER_S = 2.0


def main() -> int:
    """Run the section; its measurements go to the file as they are made."""
    started_s = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--photos", type=Path, action="append", default=[])
    options = parser.parse_args()
    # Where it hangs, the log says in which call.
    faulthandler.dump_traceback_later(max(options.seconds - 1.0, 1.0), exit=False)

    import torch

    from benchmarks.gpu.index import spec_of
    from benchmarks.gpu.measure import Section, write_json

    spec = spec_of(options.name)
    device = torch.device(options.device)
    if spec.needs_cuda and device.type != "cuda":
        write_json(options.out, {"skipped": "needs CUDA"})
        return 0
    section = Section(
        device=device,
        tiny=options.tiny,
        photos=options.photos,
        path=options.out,
        stops_at_s=started_s + options.seconds - STOPS_EARLIER_S,
    )
    getattr(importlib.import_module(spec.module), spec.function)(section)
    faulthandler.cancel_dump_traceback_later()
    return 0


if __name__ == "__main__":
    sys.exit(main())
