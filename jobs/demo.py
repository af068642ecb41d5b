"""The demo: the main job on a few photos, then what it wrote, its statistics and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.originals import NotFound, Recipe, read_originals, source_places
from pipeline.progress import ProgressDisplay
from pipeline.run import RunSummary, run_job
from schemas.errors import ConfigError
from schemas.job import JobConfig, Output
from tatok.heat import heat_scale
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
    config = JobConfig(source=(photos,), output=str(output), write=Output(patch_worth=True))
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
    console.print(f"\nPicture (original, worth of each patch, kept patches, reconstruction): [bold]{picture}[/bold]")
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


def _draw(config: JobConfig, table: pa.Table) -> Image.Image:
    table = table.slice(0, MOST_PICTURED)
    places = source_places(table)
    originals = read_originals(places, Recipe.of_job(config))
    sequences = token_sequences(table)
    tokenizer = Tokenizer.load()
    rebuilt = tokenizer.decode(sequences).cpu().numpy()
    rows = []
    for place, key, image, sequence in zip(places, table.column("key").to_pylist(), rebuilt, sequences, strict=True):
        found = originals[place]
        original = found.why if isinstance(found, NotFound) else found.pixels[0]
        rows.append(PictureRow(title=key, original=original, rebuilt=image, sequence=sequence))
    return draw_picture(rows, heat_scale(sequences, criterion=tokenizer.dtf.criterion))
