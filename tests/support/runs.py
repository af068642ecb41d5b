"""Whole runs by the fake tokenizer, and what they left."""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tatok.pipeline.monitoring.events import Event
from tatok.pipeline.run import RunSummary, run_job
from tatok.schemas.job import JobConfig
from tatok.schemas.records import SampleFacts
from tests.support.fake_tokenizer import load_fake

IN_PLACE_TOO = pytest.mark.parametrize("num_decoders", [1, 0], ids=["decoders", "in-place"])
_LONG = pytest.mark.long
MOSTLY_BY_DECODERS = pytest.mark.parametrize(
    "num_decoders", [1, pytest.param(0, marks=_LONG)], ids=["decoders", "in-place"]
)
MOSTLY_IN_PLACE = pytest.mark.parametrize(
    "num_decoders", [pytest.param(1, marks=_LONG), 0], ids=["decoders", "in-place"]
)


def job(source: str, output: Path, **sections: object) -> JobConfig:
    resources = {"batch_size": 4, "num_decoders": 1, **sections.pop("resources", {})}  # type: ignore[dict-item]
    document = {
        "source": source,
        "output": str(output),
        "preprocessing": {"image_size": 64},
        "resources": resources,
        **sections,
    }
    return JobConfig.model_validate(document)


def run(config: JobConfig, events: list[Event] | None = None, **options: object) -> RunSummary:
    on_event = events.append if events is not None else lambda event: None
    return run_job(config, **{"load_tokenizer": load_fake, "on_event": on_event, **options})  # type: ignore[arg-type]


def rows(output: Path) -> list[dict[str, object]]:
    table = ds.dataset(output / "data").to_table()
    return sorted(table.to_pylist(), key=lambda row: (row["source_uri"], row["source_index"]))


def rejects(output: Path) -> list[dict[str, object]]:
    return ds.dataset(output / "_rejects").to_table().to_pylist()


def write_gated_filters(folder: Path, last: str) -> Path:
    """Write my_filters.py: `everything` keeps all, `odd` odd labels; a shard whose name ends in `last` waits.

    It waits until there is the file that is returned, lest a job be over before it is interrupted.
    """
    gate = folder / "gate"
    text = f"""
    import time
    from pathlib import Path

    def everything(facts):
        while facts.uri.endswith({last!r}) and not Path({str(gate)!r}).exists():
            time.sleep(0.05)
        return True

    def odd(facts):
        return everything(facts) and (int(facts.label) % 2 == 1 or "even")
    """
    (folder / "my_filters.py").write_text(textwrap.dedent(text))
    return gate


DECODERS_WANTED = "decoders-wanted"
"""File beside a source's folder: while fewer processes have decoded, `note_decoder` takes its time."""


def note_decoder(facts: SampleFacts) -> bool:
    """A filter that keeps all, and leaves a mark for each in a file named by the process that decoded it."""
    beside = Path(facts.uri).parent.parent
    folder, wanted = beside / "decoded", beside / DECODERS_WANTED
    folder.mkdir(exist_ok=True)
    with (folder / f"decoder-{os.getpid()}").open("a") as file:
        file.write(".")
    if wanted.exists() and len(list(folder.iterdir())) < int(wanted.read_text()):
        time.sleep(0.3)
    return True
