"""A web server over a folder, as object stores and CDNs are: ranges, sizes, and statuses on demand."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class WebServer:
    """`statuses` maps a path to the status that is answered instead of a file; 0 closes the connection."""

    folder: Path
    url: str = ""
    statuses: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def serving(folder: Path, statuses: Mapping[str, int] | None = None) -> Iterator[WebServer]:
    web = WebServer(folder=folder, statuses=dict(statuses or {}))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            web.requests.append((self.command, path))
            status = web.statuses.get(path, 200)
            file = web.folder / path.lstrip("/")
            if status == 0:
                self.close_connection = True
                return
            if status == 200 and not file.is_file():
                status = 404
            data = file.read_bytes() if status == 200 else b""
            size, wanted = len(data), self.headers.get("Range")
            if status == 200 and wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or size) + 1, size)
                status, data = 206, data[start:stop]
            self.send_response(status)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
