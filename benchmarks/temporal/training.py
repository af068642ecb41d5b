"""A checkpoint before and after training on clips, on real clips and held-out photos that neither has seen.

    make bench-clip-training

Both have the threshold of the first. Every clip is coded temporally at it, so what counts is tokens and error
together: their cost is the squared error plus what the threshold asks of a token, which is what the coder minimises.
`surprisal_bits` is what the prior thinks of a patch's code, over all patches of all frames but the first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from textwrap import fill

import torch
from torch import Tensor

import tatok.weights
from benchmarks.temporal.clips import SIDE, psnr, read_clip
from benchmarks.temporal.report import TRAINING_HEADING, split_document
from tatok import Tokenizer
from tatok.training.config import load_training_config
from tatok.training.photos import centre_crops
from tatok.training.run import train

__all__ = ["Coded", "Comparison", "code_clip", "code_photos", "section"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """What coding came to: `cost` is in squared pixel values, `surprisal_bits` those of a patch (see above)."""

    tokens: int
    psnr_db: float
    cost: float
    surprisal_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One clip, or all photos, under both checkpoints."""

    name: str
    num_frames: int
    before: Coded
    after: Coded


def _cost(tokenizer: Tokenizer, tokens: int, rebuilt: Tensor, pixels: Tensor) -> float:
    squares = float((rebuilt.double() - pixels.double()).square().sum())
    return squares + tokens * tokenizer.dtf.threshold * 127.5**2


def code_clip(tokenizer: Tokenizer, clip_T3HW: Tensor) -> Coded:
    """Temporally; its first frame's surprisal is left out."""
    (sequence,) = tokenizer.encode_clips(clip_T3HW[None])
    rebuilt = tokenizer.decode_clips([sequence])[0]
    (first,) = tokenizer.encode(clip_T3HW[:1])
    num_following = (len(clip_T3HW) - 1) * first.grid.num_positions
    return Coded(
        tokens=sequence.num_tokens,
        psnr_db=psnr(rebuilt, clip_T3HW),
        cost=_cost(tokenizer, sequence.num_tokens, rebuilt, clip_T3HW),
        surprisal_bits=(sequence.entropy.surprisal_bits - first.entropy.surprisal_bits) / max(num_following, 1),
    )


def code_photos(tokenizer: Tokenizer, photos: Sequence[Tensor]) -> Coded:
    """As images."""
    sequences, rebuilt = [], []
    for photo in photos:
        sequences += tokenizer.encode(photo[None])
        rebuilt.append(tokenizer.decode(sequences[-1:])[0])
    tokens = sum(sequence.num_tokens for sequence in sequences)
    pixels, shown = torch.stack(list(photos)), torch.stack(rebuilt)
    num_patches = sum(sequence.grid.num_positions for sequence in sequences)
    return Coded(
        tokens=tokens,
        psnr_db=psnr(shown, pixels),
        cost=_cost(tokenizer, tokens, shown, pixels),
        surprisal_bits=sum(sequence.entropy.surprisal_bits for sequence in sequences) / num_patches,
    )


_TEXT = """
`make bench-clip-training` (`benchmarks/temporal/training.py`): the bundled checkpoint before and after training its
decoder and prior on a moving camera over photos (`examples/train-clips-256.yaml`: {steps}). Neither has seen these
clips or photos; codes of images are the same under both, kept sets need not be. The first frames of each clip, {fps:g}
a second, at the same threshold. *Cost* is what the coder minimises: squared error and, at the threshold, tokens. Bits
are the mean surprisal of a patch's code, kept or not, in frames that follow another; for photos, in all. Over the
clips the cost after such training is {least:.3f} to {most:.3f} of that before, {middle:.3f} in the median.
"""
_COLUMNS = (
    "",
    "frames",
    "tokens before",
    "after",
    "PSNR before",
    "after",
    "bits a patch before",
    "after",
    "cost after / before",
)


def section(clips: Sequence[Comparison], photos: Comparison, *, fps: float, steps: str) -> str:
    """The part of docs/results/temporal.md about it."""
    rows = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for each in (*clips, photos):
        before, after = each.before, each.after
        rows.append(
            f"| {each.name} | {each.num_frames} | {before.tokens:,} | {after.tokens:,} | {before.psnr_db:.2f} | "
            f"{after.psnr_db:.2f} | {before.surprisal_bits:.2f} | {after.surprisal_bits:.2f} | "
            f"{after.cost / before.cost:.3f} |"
        )
    costs = sorted(each.after.cost / each.before.cost for each in clips)
    text = _TEXT.format(fps=fps, steps=steps, least=costs[0], middle=median(costs), most=costs[-1])
    return TRAINING_HEADING + "\n" + fill(text.strip(), 118) + "\n\n" + "\n".join(rows) + "\n"


def default_folder() -> str:
    """The bundled checkpoint."""
    return str(Path(tatok.weights.__file__).parent)


def main() -> None:
    """Train, or resume, or find it done; then code everything with both checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="examples/train-clips-256.yaml")
    parser.add_argument("--start-from", default=default_folder())
    parser.add_argument("--output", default="runs/clips-256", help="folder of the training run")
    parser.add_argument("--photos", required=True, help="photos to train on")
    parser.add_argument("--heldout", required=True, help="photos to measure on")
    parser.add_argument("--videos", type=Path, required=True, help="folder of the clips to measure on")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--document", type=Path, required=True)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--num-photos", type=int, default=100)
    options = parser.parse_args()
    recipe = load_training_config(options.recipe).model_copy(
        update={"output": options.output, "photos": (options.photos,), "heldout": (options.heldout,)}
    )
    trained = train(recipe, torch.device("cpu"), start_from=options.start_from)
    steps = ", ".join(f"{s.steps} steps of {s.batch_size} clips of {s.num_frames} frames" for s in recipe.stages)

    before = Tokenizer.load(options.start_from, device="cpu")
    after = Tokenizer.load(trained, device="cpu").with_dtf(before.dtf)
    clips = []
    for path in sorted(options.videos.iterdir()):
        clip = read_clip(path, options.fps, options.frames)
        coded = [code_clip(tokenizer, clip) for tokenizer in (before, after)]
        clips.append(Comparison(name=path.stem, num_frames=len(clip), before=coded[0], after=coded[1]))
        print(clips[-1], flush=True)
    photos = list(centre_crops([options.heldout], SIDE, options.num_photos))
    coded = [code_photos(tokenizer, photos) for tokenizer in (before, after)]
    of_photos = Comparison(name="held-out photos", num_frames=len(photos), before=coded[0], after=coded[1])
    about = {"before": before.fingerprint, "after": after.fingerprint, "fps": options.fps, "steps": steps}
    document = {"about": about, "clips": [asdict(each) for each in clips], "photos": asdict(of_photos)}
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    head, _ = split_document(options.document)
    text = section(clips, of_photos, fps=options.fps, steps=steps)
    options.document.write_text(f"{head.rstrip()}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
