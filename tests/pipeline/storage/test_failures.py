"""What stores raise in fact: through a real client from a server that gives a chosen answer, or none."""

from __future__ import annotations

import errno
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.storage.failures import is_permanent
from tatok.schemas.errors import SourceError
from tatok.schemas.records import Shard


@contextmanager
def answering(status: int, body: bytes = b"", cut_after: int | None = None) -> Iterator[str]:
    """A server that gives one answer to everything; a cut one has the whole body's length in its header."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if cut_after is None else body[:cut_after])

        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def failure(uri: str, num_bytes: int = 0) -> SourceError:
    shard = Shard(uri=uri, kind="webdataset", start=0, stop=None, num_bytes=num_bytes, shard_id="s")
    with pytest.raises(SourceError) as caught:
        list(read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))
    return caught.value


def s3_error(endpoint: str) -> BaseException:
    import s3fs

    store = s3fs.S3FileSystem(
        key="k",
        secret="s",
        endpoint_url=endpoint,
        config_kwargs={"retries": {"max_attempts": 1}},
        skip_instance_cache=True,
    )
    store.retries = 1
    with pytest.raises(Exception) as caught:
        store.cat_file("bucket/a.tar")
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", True),
        (403, "InvalidAccessKeyId", True),
        (404, "NoSuchKey", True),
        (404, "NoSuchBucket", True),
        (503, "SlowDown", False),
        (500, "InternalError", False),
        (400, "RequestTimeout", False),
    ],
)
def test_answers_of_an_s3_store(status: int, code: str, expected: bool) -> None:
    pytest.importorskip("s3fs", reason="needs s3fs")
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told so</Message></Error>".encode()
    with answering(status, body) as endpoint:
        assert is_permanent(s3_error(endpoint)) is expected


@pytest.mark.parametrize(("status", "expected"), [(404, True), (403, True), (410, True), (503, False), (500, False)])
def test_answers_of_a_web_server(status: int, expected: bool) -> None:
    with answering(status) as url:
        assert failure(f"{url}/a.tar").is_permanent is expected


def test_a_server_that_is_not_there_may_come_back() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert not failure(f"http://127.0.0.1:{port}/a.tar").is_permanent


def test_a_body_that_is_cut_is_no_fault_of_the_archive() -> None:
    with answering(200, b"\0" * 100_000, cut_after=20_000) as url:
        error = failure(f"{url}/a.tar", num_bytes=100_000)
    assert not error.is_permanent


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(errno.ENOENT, "no such file"), True),
        (PermissionError(errno.EACCES, "no"), True),
        (TimeoutError(), False),
        (ConnectionResetError(), False),
        (OSError(errno.EIO, "input/output error"), False),
        (OSError(errno.ENOSPC, "no space left"), False),
        (ValueError("?"), False),
    ],
)
def test_the_operating_system(error: BaseException, expected: bool) -> None:
    assert is_permanent(error) is expected
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    assert is_permanent(wrapped) is expected


def test_a_source_error_crosses_processes_whole() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(SourceError("cannot read a.tar", is_permanent=True, remedy="look")))
    assert (type(error), str(error), error.is_permanent) == (SourceError, "cannot read a.tar", True)
    assert error.remedy == "look"
