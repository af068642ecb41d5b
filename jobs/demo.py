"""The demo: the main job on a few photos, then what it wrote, its statistics and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.decode import decode_image
from pipeline.plan import plan_shards
from pipeline.progress import ProgressDisplay
from pipeline.read import read_samples
from pipeline.run import RunSummary, run_job
from schemas.errors import ConfigError
from schemas.job import JobConfig
from schemas.records import Clip, Reject
from tatok.picture import PictureRow, draw_picture
from tatok.rows import token_sequences
from tatok.tokenizer import Tokenizer

__all__ = ["PICTURE", "demo_photos", "run_demo"]

PICTURE = "picture.png"
MOST_PICTURED = 9


def demo_photos() -> str:
    """The brace pattern of the photos that come with the project; raises ConfigError outside a checkout."""
    folder = Path(__file__).parents[1] / "examples" / "photos"
    if not (folder / "demo-0000.tar").exists():
        raise ConfigError(f"the demo photos are not at {folder}; name tars of your own with --photos")
    return f"{folder}/demo-{{0000..0002}}.tar"


def run_demo(photos: str, output: Path, display: ProgressDisplay) -> RunSummary:
    """Tokenize `photos` (a path or pattern) into `output`; print files, statistics and the picture's path."""
    config = JobConfig(source=(photos,), output=str(output))
    with display:
        summary = run_job(config, on_event=display)
    if not summary.num_rows:
        raise ConfigError(f"no photo of {photos} could be tokenized; see {output}/rejects")
    parts = [pq.read_table(part) for part in sorted((output / "data").glob("*.parquet"))]
    table = pa.concat_tables(parts).sort_by("num_tokens")
    console = Console()
    console.print(f"\n[bold]Written to {output}[/bold]")
    for path in sorted(p for p in output.rglob("*") if p.is_file() and not p.is_relative_to(output / ".tmp")):
        console.print(f"  {path.relative_to(output)}  {path.stat().st_size:,} bytes", highlight=False)
    console.print(_statistics(table))
    picture = output / PICTURE
    _draw(config, table).save(picture)
    console.print(f"\nPicture (original, entropy, kept patches, reconstruction): [bold]{picture}[/bold]")
    return summary


def _statistics(table: pa.Table) -> Table:
    view = Table(title="Tokens of each photo, and the conditional entropy of its patches in bits", title_justify="left")
    for heading in ("key", "tokens", "global", "patch", "bits", "kept", "dropped"):
        view.add_column(heading, justify="left" if heading == "key" else "right", no_wrap=True)
    columns = ("key", "num_tokens", "num_global_tokens", "num_patch_tokens")
    bits = ("entropy_bits", "kept_entropy_bits", "residual_bits")
    for row in table.select([*columns, *bits]).to_pylist():
        view.add_row(*(str(row[name]) for name in columns), *(f"{row[name]:,.0f}" for name in bits))
    mean = float(np.mean(table.column("num_tokens").to_numpy()))
    view.add_section()
    view.add_row("mean", f"{mean:.1f}")
    return view


def _clips(config: JobConfig) -> Iterator[Clip | Reject]:
    for shard in plan_shards(config.source):
        for sample in read_samples(shard, max_sample_bytes=config.limits.max_sample_bytes):
            if not isinstance(sample, Reject):
                yield decode_image(sample, config.preprocessing, config.limits)


def _draw(config: JobConfig, table: pa.Table) -> Image.Image:
    table = table.slice(0, MOST_PICTURED)
    originals = {(clip.uri, clip.index): clip for clip in _clips(config) if isinstance(clip, Clip)}
    sequences = token_sequences(table)
    rebuilt = Tokenizer.load().decode(sequences).cpu().numpy()
    places = zip(table.column("source_uri").to_pylist(), table.column("source_index").to_pylist(), strict=True)
    return draw_picture(
        [
            PictureRow(title=clip.key, original=clip.pixels[0], rebuilt=image, sequence=sequence)
            for clip, image, sequence in zip((originals[p] for p in places), rebuilt, sequences, strict=True)
        ]
    )
