"""The notebook runs: its cells in this process, and as a whole in a kernel of its own."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import EXAMPLES

NOTEBOOK = EXAMPLES / "first_hour.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def test_ten_cells_as_they_were_written() -> None:
    """Nothing of a machine that ran it stays in the file."""
    assert len(cells()) == 10
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}


@pytest.mark.usefixtures("local_ray")
def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One after another, with three epochs of training; each has its last line looked at as a notebook would."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    assert sum("epochs=100" in source for source in sources) == 1
    for number, source in enumerate(sources):
        exec(compile(source.replace("epochs=100", "epochs=3"), f"cell {number}", "exec"), namespace)
    assert namespace["photos"].stats().num_rows == 9
    assert "nats a token" in capsys.readouterr().out
    assert [image.shape for image in namespace["drawn"]] == [(256, 256, 3)] * 6


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_it_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headless, on the Ray of this session: no warning, nothing on standard error, pictures where there are to be."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("TATOK__DEVICE", "cpu")  # of a cluster that is named a job waits for a GPU, and says so
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = [output.get("text", "") for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert said == []
    pictures = [output.data.get("image/png") for cell in code for output in cell.outputs if "data" in output]
    decoded = [base64.b64decode(picture) for picture in pictures if picture]
    assert len(decoded) == 3  # the sheet, the picture rebuilt, what the generator drew
    assert all(picture.startswith(b"\x89PNG") for picture in decoded)
    progress, summary = (output.data["text/plain"] for output in code[1].outputs)
    assert progress.startswith("shards 3 of 3  rows 9")
    assert summary.startswith("RunSummary(")
