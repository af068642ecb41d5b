"""A job's storage options reach every file system that is opened, and leave no trace."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from tatok.pipeline.storage.options import options_of, storage_options
from tatok.pipeline.storage.source_file import open_source
from tatok.schemas.errors import ConfigError, SourceError
from tests.support.fake_tokenizer import load_fake
from tests.support.runs import job, run


def test_options_hold_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_NAME", "from the environment")
    options = {"memory": {"first": {"env": "PLANTED_NAME"}, "nested": {"second": {"env": "PLANTED_NAME"}, "third": 3}}}
    with storage_options(options):
        fs, _ = fsspec.core.url_to_fs("memory://a")
        assert fs.storage_options["first"] == "from the environment"
        assert fs.storage_options["nested"] == {"second": "from the environment", "third": 3}
    assert not fsspec.core.url_to_fs("memory://a")[0].storage_options
    monkeypatch.delenv("PLANTED_NAME")
    with pytest.raises(ConfigError, match=r"storage\.memory\.first refers to the environment variable PLANTED_NAME"):
        storage_options(options).__enter__()


def test_endpoint_and_key_of_the_job_file(
    s3_bucket: str, photo_shards: Callable[..., str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Driver and workers get to a bucket that only `storage` says how to reach."""
    request.getfixturevalue("local_ray")
    credentials = {"key": {"env": "AWS_ACCESS_KEY_ID"}, "secret": {"env": "AWS_SECRET_ACCESS_KEY"}}
    storage = {"s3": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} | credentials}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody answers
        config = job(photo_shards(1, 5), tmp_path / "out", storage=storage).model_copy(
            update={"output": f"s3://{s3_bucket}/by-storage"}
        )
        assert run(config, load_tokenizer=functools.partial(load_fake)).num_rows == 5
        with storage_options(storage):
            recorded = fsspec.filesystem("s3").cat_file(f"{s3_bucket}/by-storage/_run.json").decode()
    assert '"AWS_ACCESS_KEY_ID"' in recorded
    assert '"testing"' not in recorded


def test_what_the_job_does_not_say_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"):
        monkeypatch.delenv(name, raising=False)
    with storage_options({"s3": {"config_kwargs": {"read_timeout": 99, "retries": {"mode": "adaptive"}}}}):
        options = options_of("s3")
        assert options["config_kwargs"] == {
            "connect_timeout": 5,
            "read_timeout": 99,
            "retries": {"mode": "adaptive", "max_attempts": 2},
        }, "the job's own go before, one by one"
        assert options_of("gs")["requests_timeout"] == 120
        assert options_of("abfss")["read_timeout"] == 20
        assert options_of("https")["client_kwargs"]["timeout"]["sock_read"] == 20
        assert options_of("file") == {}


@pytest.mark.timeout(60)
def test_a_silent_server_is_not_waited_for_without_end(silent_url: str) -> None:
    patience = {"client_kwargs": {"timeout": {"sock_read": 0.5}}}
    with storage_options({"http": patience}), pytest.raises(SourceError, match=f"cannot open {silent_url}/a.tar"):
        open_source(f"{silent_url}/a.tar")
    options = {"endpoint_url": silent_url, "config_kwargs": {"read_timeout": 0.5}, "skip_instance_cache": True}
    with (
        storage_options({"s3": options}),
        pytest.raises(SourceError, match=r"cannot open s3://photos/a\.tar") as caught,
    ):
        open_source("s3://photos/a.tar")
    assert not caught.value.is_permanent, "it may answer the next time"
