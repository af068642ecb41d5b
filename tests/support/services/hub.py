"""A stand-in for Hugging Face's hub: the few answers by which its file system lists and reads one repository."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "people/photos"
REVISION = "0" * 40
_API = f"/api/datasets/{REPOSITORY}"
_FILES = f"/datasets/{REPOSITORY}/resolve/main/"


@dataclass
class Hub:
    """`files` are those of the repository, by path; `status` is answered instead of a file's bytes."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    status: int | None = None

    def entries(self, folder: str, *, recursive: bool) -> list[Mapping[str, Any]]:
        below = f"{folder}/" if folder else ""
        found: dict[str, Mapping[str, Any]] = {}
        for path, data in sorted(self.files.items()):
            if not path.startswith(below):
                continue
            names = path.removeprefix(below).split("/")
            for depth in range(1, len(names)):
                name = below + "/".join(names[:depth])
                if recursive or depth == 1:
                    found[name] = {"type": "directory", "path": name, "oid": "0", "size": 0}
            if recursive or len(names) == 1:
                found[path] = {"type": "file", "path": path, "oid": "0", "size": len(data)}
        return list(found.values())


@contextmanager
def hugging_face_hub() -> Iterator[Hub]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            if path in (_API, f"{_API}/revision/main"):
                self._answer_json({"id": REPOSITORY, "sha": REVISION, "siblings": []})
            elif path.startswith(f"{_API}/tree/main"):
                folder = path.removeprefix(f"{_API}/tree/main").strip("/")
                entries = hub.entries(folder, recursive="recursive=true" in parts.query.lower())
                if entries or not folder:
                    self._answer_json(entries)
                else:
                    self._answer(404, error="EntryNotFound")
            elif path.startswith(_FILES):
                self._answer_file(path.removeprefix(_FILES))
            else:
                self._answer(404, error="RepoNotFound")

        def _answer_file(self, path: str) -> None:
            if hub.status is not None:
                self._answer(hub.status)
            elif path not in hub.files:
                self._answer(404, error="EntryNotFound")
            else:
                data, wanted = hub.files[path], self.headers.get("Range")
                if wanted is None:
                    self._answer(200, data)
                else:
                    first, _, last = wanted.removeprefix("bytes=").partition("-")
                    self._answer(206, data[int(first) : int(last or len(data)) + 1])

        def _answer_json(self, document: object) -> None:
            self._answer(200, json.dumps(document).encode())

        def _answer(self, status: int, body: bytes = b"", *, error: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if error is not None:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True  # clients keep their connections
    hub = Hub(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
