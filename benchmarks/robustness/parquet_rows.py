"""The same photos as a Parquet file and as a tar through two real jobs: are the datasets equal, row for row?

    make check-parquet

Each row of the table becomes a .jpg with its .cls and .json. Both jobs run on Ray; every column of every row must be
equal but for those that name the source. With `--real` the bundled checkpoint tokenizes, else the tests' fake model.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tatok.pipeline.run import run_job
from tatok.schemas.job import JobConfig
from tests.support.fake_tokenizer import load_fake

OF_THE_SOURCE = ("source_uri", "sample_id")  # the id is of the place


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsReport:
    """Two datasets of the same photos; `differing` are the columns in which they are not equal."""

    tokenizer: str
    image_size: int
    num_rows: tuple[int, int]
    num_tokens: tuple[int, int]
    num_parts: tuple[int, int]
    columns: tuple[str, ...]
    differing: tuple[str, ...]
    seconds: float

    @property
    def is_equal(self) -> bool:
        """Whether there are as many rows, all alike."""
        return self.num_rows[0] == self.num_rows[1] and not self.differing


def write_tar(table: pa.Table, path: Path) -> Path:
    """Each row as a .jpg with its .cls and .json."""
    with tarfile.open(path, "w") as tar:
        for row in table.to_pylist():
            texts = {"cls": str(row["label"]), "json": json.dumps({"class_name": row["class_name"]})}
            content = {"jpg": row["image"]["bytes"]} | {name: text.encode() for name, text in texts.items()}
            for extension, data in content.items():
                info = tarfile.TarInfo(f"{row['key']}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def compare(
    table: pa.Table, work: Path, *, image_size: int, load_tokenizer: Callable[[], Any] | None, row_group_rows: int
) -> RowsReport:
    """Tokenize `table` as Parquet and as a tar, both in `work`; `load_tokenizer` None is the bundled checkpoint."""
    pq.write_table(table, work / "photos.parquet", row_group_size=row_group_rows)
    sources, started = (work / "photos.parquet", write_tar(table, work / "photos.tar")), time.monotonic()
    tables, parts = [], []
    for source in sources:
        output = work / f"tokens-{source.suffix[1:]}"
        config = JobConfig.model_validate(
            {
                "source": [str(source)],
                "output": str(output),
                "preprocessing": {"image_size": image_size},
                "resources": {"num_tokenizers": 1, "num_decoders": 1},
                "device": "cpu",
            }
        )
        summary = run_job(config, load_tokenizer=load_tokenizer)
        if summary.status != "complete" or summary.num_rejects:
            raise RuntimeError(f"the job over {source} came to {summary.status} with rejects {dict(summary.rejects)}")
        parts.append(summary.num_parts)
        tables.append(rows_of(output))
    of_parquet, of_tar = tables
    return RowsReport(
        tokenizer="the bundled checkpoint" if load_tokenizer is None else "fake",
        image_size=image_size,
        num_rows=(len(of_parquet), len(of_tar)),
        num_tokens=tuple(sum(table.column("num_tokens").to_pylist()) for table in (of_parquet, of_tar)),
        num_parts=tuple(parts),
        columns=tuple(of_parquet.column_names),
        differing=differing_columns(of_parquet, of_tar),
        seconds=round(time.monotonic() - started, 1),
    )


def rows_of(output: Path) -> pa.Table:
    """The rows of a dataset in the order of their source, without what names it."""
    table = ds.dataset(output / "data").to_table().sort_by("source_index")
    return table.drop_columns(OF_THE_SOURCE).combine_chunks()


def differing_columns(first: pa.Table, second: pa.Table) -> tuple[str, ...]:
    """The columns that two tables do not both have, with equal values in every row."""
    names = dict.fromkeys([*first.column_names, *second.column_names])
    both = set(first.column_names) & set(second.column_names)
    return tuple(name for name in names if name not in both or not first[name].equals(second[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "table", type=Path, help="A Parquet file with columns key, image{bytes, path}, label, class_name."
    )
    parser.add_argument("--rows", type=int, help="Only the first so many; default: all.")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--real", action="store_true", help="Tokenize with the bundled checkpoint, on the CPU.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        report = compare(
            pq.read_table(options.table).slice(0, options.rows),
            Path(work),
            image_size=options.image_size,
            load_tokenizer=None if options.real else load_fake,
            row_group_rows=2500,
        )
    text = json.dumps(asdict(report), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(0 if report.is_equal else 1)


if __name__ == "__main__":
    main()
