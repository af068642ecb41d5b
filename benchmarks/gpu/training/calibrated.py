"""Set a checkpoint's DTF threshold so that photos keep a wanted mean count: what `tatok calibrate` does, without Ray.

python -m benchmarks.gpu.training.calibrated CHECKPOINT TAR --tokens 56 [--device cuda]
"""

from __future__ import annotations

import argparse

from tatok.evaluation.calibration import EncodedPhotos, calibrate
from tatok.model.checkpoint import write_dtf
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.photos import centre_crops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--tokens", type=float, default=56)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    tokenizer = Tokenizer.load(options.checkpoint, options.device)
    found = calibrate(EncodedPhotos(tokenizer, centre_crops(options.photos, 256)), options.tokens, tokenizer.dtf)
    write_dtf(options.checkpoint, found.dtf)
    print(f"mean {found.mean_tokens:.2f} tokens ({found.min_tokens} to {found.max_tokens}) at {found.dtf.threshold:g}")


if __name__ == "__main__":
    main()
