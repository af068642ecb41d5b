"""The command that shows the main job on a few photos: demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tatok.jobs.exit_codes import EXIT_INCOMPLETE
from tatok.jobs.verbosity import Quiet, Verbose, Verbosity
from tatok.schemas.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image
    from rich.table import Table

    from tatok.schemas.job import JobConfig

__all__ = ["demo"]

MOST_PICTURED = 9


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the dataset.")] = Path("demo-output"),
    photos: Annotated[str | None, typer.Option(help="Tars to use instead of the demo photos.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Tokenize a few photos on a local Ray; print what was written, its statistics and the path of a picture."""
    from tatok.examples import demo_photos
    from tatok.jobs.text.run import print_summary
    from tatok.pipeline.monitoring.progress import ProgressDisplay
    from tatok.pipeline.run import run_job
    from tatok.schemas.job import JobConfig, Output

    verbosity = Verbosity.of(quiet, verbose)
    source = photos or demo_photos()
    config = JobConfig(source=(source,), output=str(output), write=Output(patch_worth=True))
    with ProgressDisplay(level=verbosity) as display:
        summary = run_job(config, on_event=display)
    if not summary.num_rows:
        raise ConfigError(f"no photo of {source} could be tokenized; see {output}/{summary.layout.rejects}")
    _show(config, output)
    if summary.status != "complete":
        print_summary(summary)
        raise typer.Exit(EXIT_INCOMPLETE)


def _show(config: JobConfig, output: Path) -> None:
    """Print files, statistics and the picture's path."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from rich.console import Console

    parts = [pq.read_table(part) for part in sorted((output / "data").glob("*.parquet"))]
    table = pa.concat_tables(parts).sort_by("num_tokens")
    console = Console()
    console.print(f"\n[bold]Written to {output}[/bold]")
    for path in sorted(p for p in output.rglob("*") if p.is_file() and not p.is_relative_to(output / ".tmp")):
        console.print(f"  {path.relative_to(output)}  {path.stat().st_size:,} bytes", highlight=False)
    console.print(_statistics(table))
    picture = output.with_name(f"{output.name}.png")  # beside the dataset: a folder of Parquet is read as one table
    _draw(config, table.slice(0, MOST_PICTURED)).save(picture)
    console.print(f"\nPicture (original, worth of each patch, kept patches, reconstruction): [bold]{picture}[/bold]")


def _statistics(table: pa.Table) -> Table:
    import numpy as np
    from rich.table import Table

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
    from tatok.dataset.rows import token_sequences
    from tatok.pipeline.decode.originals import NotFound, Recipe, read_originals, source_places
    from tatok.report.heat import heat_scale
    from tatok.report.picture import PictureRow, draw_picture
    from tatok.tokenizer.tokenizer import Tokenizer

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
