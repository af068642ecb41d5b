"""An S3 endpoint that fails when it is told to: a proxy before a real server, for throttling, hangs and cut bodies."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["slow_down", "hang", "drop", "truncate", "lose_answer", "forbid"]
HANG_S = 9.0  # longer than the clients' read timeout in tests
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_FORBIDDEN = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_OF_CONNECTION = frozenset({"connection", "transfer-encoding", "keep-alive", "expect", "content-length"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to the next `times` requests of `method` whose path holds `path`.

    "slow_down" and "forbid" answer 503 and 403; "hang" answers after a client has given up; "drop" breaks the
    connection in the middle of the body; "truncate" sends half of the body as if that were all; "lose_answer" carries
    the request out and then breaks the connection.
    """

    kind: FaultKind
    method: Literal["GET", "PUT"]
    path: str
    times: int


class FaultyS3:
    """The proxy; `faults` may change while it serves, and `num_served` counts what each of them did."""

    def __init__(self) -> None:
        self.num_served: dict[Fault, int] = {}
        self._lock = threading.Lock()

    def set(self, *faults: Fault) -> None:
        """These faults from now on, and no others."""
        with self._lock:
            self.num_served = dict.fromkeys(faults, 0)

    def take(self, method: str, path: str) -> FaultKind | None:
        """The fault that this request meets, which counts as served."""
        with self._lock:
            for fault, served in self.num_served.items():
                if fault.method == method and fault.path in path and served < fault.times:
                    self.num_served[fault] += 1
                    return fault.kind
        return None


@contextmanager
def faulty_s3(port: int, server_port: int) -> Iterator[FaultyS3]:
    """Serve at `port` what the server at `server_port` does, but for the faults."""
    control = FaultyS3()

    class Handler(_Proxy):
        faults, upstream_port = control, server_port

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield control
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: FaultyS3
    upstream_port: int

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faults.take(self.command, self.path)
        if fault in ("slow_down", "forbid"):
            text = _SLOW_DOWN if fault == "slow_down" else _FORBIDDEN
            self._answer(503 if fault == "slow_down" else 403, [("Content-Type", "application/xml")], text)
            return
        if fault == "hang":
            time.sleep(HANG_S)
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in _OF_CONNECTION}
        upstream.request(self.command, self.path, body=body or None, headers=kept | {"Content-Length": str(len(body))})
        response = upstream.getresponse()
        content = response.read()
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _OF_CONNECTION]
        upstream.close()
        if fault == "lose_answer":
            self.close_connection = True
        elif self.command == "HEAD":
            self._answer(
                response.status, [*headers, ("Content-Length", response.getheader("Content-Length", "0"))], None
            )
        elif fault == "drop":
            self._answer(response.status, headers, content, send=len(content) // 2)
            self.close_connection = True
        elif fault == "truncate":
            self._answer(response.status, headers, content[: len(content) // 2])
        else:
            self._answer(response.status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes | None, send: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            self.wfile.write(body[:send])

    def log_message(self, *_: object) -> None:
        pass
