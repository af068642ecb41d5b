from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
import yaml

from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig, load_job
from tatok.schemas.settings import validated
from tests.support.places import ROOT

JOBS = sorted((ROOT / "jobs").glob("tokenize-*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_example_job_validates(path: Path) -> None:
    assert load_job(path).source


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_example_job_follows_the_schema_for_editors(path: Path) -> None:
    schema = JobConfig.model_json_schema()
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError, match="bath_size"):
        jsonschema.validate({"source": "a.tar", "output": "o", "resources": {"bath_size": 4}}, schema)


def test_local_example_states_the_defaults() -> None:
    example = load_job(next(path for path in JOBS if path.name == "tokenize-local.yaml"))
    assert example == JobConfig(source=example.source, output=example.output)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_an_example_job_names_what_is_there_or_a_placeholder(path: Path) -> None:
    """Nobody has data/shards-0000.tar or s3://my-photos: that a name must be replaced is to be seen."""
    job = load_job(path)
    named = [*job.source, job.output, *filter(None, (job.checkpoint, job.tokenizer, job.filter))]
    assert [name for name in named if "YOUR-" not in name and not (path.parent / name).exists()] == []


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_key_of_an_example_job_is_commented(path: Path) -> None:
    """Beside it, or on the line above."""
    lines = ["", *path.read_text().splitlines()]
    bare = [
        line
        for above, line in pairwise(lines)
        if line and not line.lstrip().startswith("#") and " # " not in line and not above.lstrip().startswith("#")
    ]
    assert bare == []


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0", "mps:0"])
def test_a_job_names_no_single_gpu(device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validated(JobConfig, {"source": "a.tar", "output": "o", "device": device}, origin="job.yaml")
    kind = device.partition(":")[0]
    assert f"a GPU of its own, which it sees as {kind}:0; say device: {kind}" in str(caught.value)
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value)
    for other in ("cuda", "cpu", "mps", None):
        assert JobConfig(source="a.tar", output="o", device=other).device == other


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    for device in (None, "cuda"):
        assert JobConfig(source="a.tar", output="o", device=device, precision="tf32").precision == "tf32"
    for wrong, words in (
        ({"device": "cpu", "precision": "tf32"}, "which cpu does not have"),
        ({"precision": "half"}, "bfloat16"),
    ):
        with pytest.raises(ConfigError, match=words):
            validated(JobConfig, {"source": "a.tar", "output": "o", **wrong}, origin="job.yaml")


def test_one_source_may_stand_alone() -> None:
    assert JobConfig(source="a.tar", output="out").source == ("a.tar",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source: a.tar\noutput: o\nbatchsize: 4\n", "batchsize"),
        ("source: a.tar\n", "output"),
        ("source: a.tar\noutput: o\nresources: {batch_size: 0}\n", "resources.batch_size"),
        ("- a\n- b\n", "mapping"),
        ("source: [\n", "YAML"),
        ("source: " + "[" * 3000, "YAML"),
        ("source: 2001-99-99\n", "YAML"),
        ("source: " + "9" * 5000, "YAML"),
        ("source: !!timestamp ''\n", "YAML"),
        ("source: a.tar\n? [a, b]\n: c\n", "YAML"),
    ],
)
def test_wrong_job_file_names_itself_and_the_setting(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert words in str(caught.value)
    assert "job.yaml" in str(caught.value)


def test_missing_job_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_job(tmp_path / "nowhere.yaml")


def test_origin_is_named() -> None:
    with pytest.raises(ConfigError, match="the command line"):
        validated(JobConfig, {"source": "a"}, origin="the command line")
