"""The loader bench in small: every loader sees every row once, batches keep the budget, figures end up in tables."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loader import run as loader
from benchmarks.loader.one import process_tree_bytes
from benchmarks.loader.packing import TOKENS, Row, Source, pack_rows, rows_of
from benchmarks.loader.results import Failure, Measurement, Place, Results, tables
from benchmarks.loader.s3 import s3_server, upload
from tatok.dataset.batches import PackedBatch
from tatok.dataset.parts import TokenizedData
from tests.support.places import DOCS
from tests.support.synthetic_tokens import write_synthetic

NUM_ROWS = 300
# The other peers live in a virtual environment of the bench's own.
HERE = [each for each in loader.LOADERS if each.module in ("loader_tatok", "loader_datasets", "loader_webdataset")]
WAYS = [(each.module, variant) for each in HERE for variant in each.local]
REMOTE_WAYS = [(each.module, variant) for each in HERE for variant in each.s3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_synthetic(str(folder / "parts"), NUM_ROWS, rows_per_part=75)
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> TokenizedData:
    return TokenizedData.open(folder / "parts")


def form_of(folder: Path, data: TokenizedData, module: str, form: str) -> Path:
    if form != "parts" and not (folder / form).exists():
        import_module(module).FORMATS[form](data, folder / form)
    return folder / form


def documents(batch: PackedBatch) -> list[tuple[bytes, bytes, int]]:
    """Tokens, places and number of globals of each, as they stand in the parts."""
    cuts = batch.cu_seqlens.tolist()
    found = []
    for number, (start, stop) in enumerate(pairwise(cuts)):
        assert (batch.document_ids[start:stop] == number).all()
        is_patch = batch.kinds[start:stop].numpy() == 1
        positions = batch.positions[start:stop].numpy()
        assert (positions[~is_patch] == -1).all()
        frame, row, column = positions[is_patch].T
        assert (frame == 0).all()
        tokens = batch.tokens[start:stop].numpy().astype(np.uint16)
        found.append((tokens.tobytes(), (row * 16 + column).astype(np.uint16).tobytes(), int((~is_patch).sum())))
    return found


def expected(data: TokenizedData) -> Counter[tuple[bytes, bytes, int]]:
    rows = [row for part in data.parts for row in rows_of(data, part.name)]
    assert len(rows) == NUM_ROWS
    return Counter((row.tokens.tobytes(), row.places.tobytes(), row.num_global) for row in rows)


def check(batches: list[PackedBatch], data: TokenizedData) -> None:
    assert all(len(batch.tokens) <= TOKENS and batch.cu_seqlens[-1] == len(batch.tokens) for batch in batches)
    assert all(batch.max_seqlen == batch.cu_seqlens.diff().max() for batch in batches)
    found = [document for batch in batches for document in documents(batch)]
    assert Counter(found) == expected(data)
    assert found != list(expected(data)), "the order is not the dataset's"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("module", "variant"), WAYS, ids=[f"{module}-{variant}" for module, variant in WAYS])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # WebDataset leaves its tars to the garbage collector
def test_every_loader_sees_every_row_once(
    folder: Path, data: TokenizedData, tmp_path: Path, module: str, variant: str, num_workers: int
) -> None:
    make, form = import_module(module).VARIANTS[variant]
    url = form_of(folder, data, module, form)
    source = Source(url=str(url), cache=tmp_path, num_workers=num_workers, seed=3)
    batches = list(make(source))
    check(batches, data)
    del batches
    gc.collect()


@pytest.mark.parametrize(
    ("module", "variant"), REMOTE_WAYS, ids=[f"{module}-{variant}" for module, variant in REMOTE_WAYS]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_loader_reads_from_a_bucket(
    s3_bucket: str, folder: Path, data: TokenizedData, tmp_path: Path, module: str, variant: str
) -> None:
    make, form = import_module(module).VARIANTS[variant]
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    url = upload(form_of(folder, data, module, form), endpoint, s3_bucket)
    source = Source(url=url, cache=tmp_path / "cache", num_workers=0, seed=3, endpoint_url=endpoint)
    check(list(make(source)), data)
    assert variant != "cached" or list((tmp_path / "cache").iterdir())
    gc.collect()


@pytest.mark.parametrize("name", ["tatok", "datasets", "WebDataset"])
def test_what_is_timed_reads_what_the_loader_writes(name: str) -> None:
    each = next(each for each in loader.LOADERS if each.name == name)
    adapter = import_module(each.module)
    for variant, form in {**each.local, **each.s3}.items():
        assert adapter.VARIANTS[variant][1] == form
        assert form == "parts" or form in adapter.FORMATS


def test_windows_are_packed_one_after_the_other() -> None:
    rows = [Row(np.full(16, number, np.uint16), np.empty(0, np.uint16), 16) for number in range(10)]
    batches = list(pack_rows(iter(rows), seed=0, num_rows=4))
    assert [sorted(set(batch.tokens.tolist())) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_run_is_measured_in_a_process_of_its_own(folder: Path, data: TokenizedData, tmp_path: Path) -> None:
    setting = loader.Setting(loader=loader.LOADERS[0], variant="stream", form="parts", num_workers=0)
    measured = loader.run_once(setting, str(folder / "parts"), tmp_path, data, seed=1, endpoint=None)
    assert isinstance(measured, Measurement), measured.message
    assert measured.num_tokens == data.num_tokens
    assert 0 < measured.first_batch_seconds <= measured.seconds
    assert measured.cpu_seconds > 0
    assert measured.imports_bytes > 50 << 20, "torch alone takes more"
    assert measured.peak_bytes > 0
    assert not list(tmp_path.iterdir()), "the cache is taken away"


def test_a_run_that_cannot_be_is_told(data: TokenizedData, tmp_path: Path) -> None:
    setting = loader.Setting(loader=loader.LOADERS[0], variant="stream", form="parts", num_workers=0)
    failed = loader.run_once(setting, str(tmp_path / "nowhere"), tmp_path, data, seed=1, endpoint=None)
    assert isinstance(failed, Failure)
    assert "nowhere" in failed.message


def test_too_few_rows_are_no_measurement(folder: Path, data: TokenizedData, tmp_path: Path) -> None:
    setting = loader.Setting(loader=loader.LOADERS[0], variant="stream", form="parts", num_workers=0)
    more = replace(data, parts=(*data.parts, data.parts[0]))
    failed = loader.run_once(setting, str(folder / "parts"), tmp_path, more, seed=1, endpoint=None)
    assert isinstance(failed, Failure)
    assert "gave 300 rows" in failed.message
    assert "not 375 rows" in failed.message


def test_the_memory_of_children_counts() -> None:
    before = process_tree_bytes(os.getpid())
    code = "block = bytearray(200 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert process_tree_bytes(os.getpid()) - before > 150 << 20
        child.communicate(b"\n")


def measurement(loader: str, seconds: float) -> Measurement:
    return Measurement(
        loader=loader,
        variant="way",
        num_workers=0,
        num_tokens=4_000_000,
        num_batches=500,
        first_batch_tokens=8000,
        first_batch_seconds=0.05,
        seconds=seconds,
        cpu_seconds=seconds * 1.5,
        peak_bytes=300 << 20,
        imports_bytes=200 << 20,
    )


def results() -> Results:
    place = Place(
        name="local",
        tried=[measurement("tatok", 1.0), measurement("slow", 4.0), measurement("quick", 3.0)],
        failures=[Failure(loader="slow", variant="way", num_workers=2, message="cut off after 9 s")],
        rounds=[
            [measurement("tatok", 1.0), measurement("slow", 4.0), measurement("quick", 2.0)],
            [measurement("tatok", 2.0), measurement("slow", 5.0), measurement("quick", 6.0)],
            [measurement("tatok", 1.0), measurement("slow", 8.0), measurement("quick", 3.0)],
        ],
    )
    return Results(num_rows=70_000, num_tokens=4_000_000, machine={"cores": "2"}, versions={"a": "1"}, places=[place])


def test_ratios_are_of_one_round() -> None:
    place = results().places[0]
    assert place.times_as_fast("slow") == [4.0, 2.5, 8.0]
    assert place.times_as_fast_as_the_best_peer() == [2.0, 2.5, 3.0]
    assert place.times_as_fast("slow", steady=True) == pytest.approx([3.95 / 0.95, 4.95 / 1.95, 7.95 / 0.95])


def test_tables_say_what_was_measured() -> None:
    text = tables(results())
    assert "70,000 rows, 4,000,000 tokens; cores 2; a 1." in text
    assert "| slow | way | 0 | 0.80 (0.50-1.00) | 4.00 (2.50-8.00) |" in text
    assert "against the quickest peer of each round: 2.50 (2.00-3.00) times as fast; from the first" in text
    assert "| slow | way | 1.00 | cut off after 9 s |" in text
    assert Results.from_json(results().to_json()) == results()


def test_the_document_quotes_the_measurements() -> None:
    measured = Results.from_json((DOCS / "results" / "loader.json").read_text())
    assert tables(measured) in (DOCS / "results" / "loader.md").read_text()


def test_the_s3_server_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="requirements-loader"), s3_server(tmp_path):
        pass
