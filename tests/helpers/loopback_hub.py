"""A loopback Hub that the real huggingface_hub client accepts, with faults on demand.

Repositories are folders ``ROOT/OWNER/NAME`` (branch main) and ``ROOT/OWNER/NAME@REVISION``. A
commit's id is the hash of its files, so a folder renamed to ``NAME@old`` is still found by the
commit that it was. ``.hub.json`` in a folder may say ``{"gated": true, "private": true,
"readers": ["hf_..."]}``. Data sets are such folders
too. Large files are served from another origin (``localhost`` instead of
``127.0.0.1``) behind a signed redirect, as the Hub does. Uploads: see ``loopback_uploads``.

By hand: ``PYTHONPATH=tests python -m helpers.loopback_hub ROOT [PORT]`` prints the address to put
in HF_ENDPOINT.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.loopback_datasets import DatasetHandlers
from helpers.loopback_downloads import DownloadHandlers
from helpers.loopback_store import Store
from helpers.loopback_uploads import UploadHandlers

_BODY_FAULTS = ("drop", "corrupt", "slow", "norange", "wrongrange", "pause")


@dataclass
class Fault:
    """What goes wrong, for requests whose path matches.

    Args:
        path: Regular expression, searched in the unquoted path.
        kind: ``status`` (answer so), ``hang`` (never answer), ``drop`` (close after some bytes),
            ``pause`` (stop after some bytes until ``release``), ``corrupt`` (first byte wrong),
            ``slow``, ``norange`` (ignore Range), ``wrongrange`` (send another one).
        times: How often.
        method: HTTP method.
        status: Of kind ``status``.
        headers: Of kind ``status``.
        after: Bytes before ``drop`` or ``pause``.
        seconds: Of ``hang``, and per 64 KiB of ``slow``.
    """

    path: str
    kind: str
    times: int = 1
    method: str = "GET"
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    seconds: float = 0.05


@dataclass
class Request:
    """A request that the Hub has seen; ``sent`` counts the bytes of the body sent so far."""

    method: str
    path: str
    range: str | None
    auth: bool
    status: int = 0
    sent: int = 0


class LoopbackHub(http.server.ThreadingHTTPServer):
    """The server; a context manager that serves in a thread.

    Args:
        root: Folder of repositories.
        port: TCP port, 0 for any.
    """

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.store = Store(root)
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.writers: set[str] = set()
        self.uploaded: dict[str, Path] = {}
        self.tags: set[tuple[str, str]] = set()
        self.collections: dict[str, dict[str, Any]] = {}
        self.commits: list[list[dict[str, Any]]] = []
        self.guard = threading.Lock()
        self._released = threading.Event()

    @property
    def url(self) -> str:
        """The address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no news."""

    def fault(self, path: str, kind: str, **more: Any) -> Fault:
        """Let the next matching request go wrong."""
        self.faults.append(Fault(path, kind, **more))
        return self.faults[-1]

    def release(self) -> None:
        """Let transfers that a ``pause`` holds go on."""
        self._released.set()

    def wait_released(self) -> None:
        """Wait for ``release``, in a handler."""
        self._released.wait(60)

    def requests(self, path: str, method: str = "GET") -> list[Request]:
        """Return the requests whose path matches, in order."""
        return [r for r in self.log if r.method == method and re.search(path, r.path)]

    def take_fault(self, method: str, path: str, body: bool) -> Fault | None:
        """Return the next fault for a request, once."""
        with self.guard:
            for fault in self.faults:
                fits = fault.method == method and re.search(fault.path, path)
                if fits and fault.times > 0 and (fault.kind in _BODY_FAULTS) == body:
                    fault.times -= 1
                    return fault
        return None


class _Handler(
    DatasetHandlers, DownloadHandlers, UploadHandlers, http.server.BaseHTTPRequestHandler
):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_: object) -> None:
        """The log is ``server.log``."""

    def do_GET(self) -> None:
        self._begin()
        if self._go_wrong():
            return
        path, query = self.path_of, parse_qs(urlsplit(self.path).query)
        repo = r"([^/]+/[^/]+)"
        if self.answer_dataset(path):
            return
        if path == "/_log":
            self.reply(200, [vars(request) for request in self.server.log])
        elif path == "/api/whoami-v2":
            self.reply(200, {"type": "user", "name": "loop", "orgs": []})
        elif match := re.fullmatch(r"/api/collections/([^/]+/[^/]+)", path):
            if found := self.server.collections.get(match[1]):
                self.reply(200, found)
            else:
                self.error(404, "", "Collection not found")
        elif match := re.fullmatch(rf"/api/models/{repo}/refs", path):
            self._refs(match[1])
        elif match := re.fullmatch(rf"/api/models/{repo}(?:/revision/(.+))?", path):
            self._model_info(match[1], match[2] or "main", "blobs" in query)
        elif match := re.fullmatch(rf"/{repo}/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif match := re.fullmatch(rf"/_cdn/{repo}/([^/]+)/(.+)", path):
            if entry := self._entry(*match.groups()):
                self._body(entry, [])
        else:
            self.error(404)

    do_HEAD = do_GET

    @property
    def path_of(self) -> str:
        """The request's path, unquoted, without its query."""
        return unquote(urlsplit(self.path).path)

    @property
    def token(self) -> str:
        """The token that the request brings, or an empty text."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _begin(self) -> None:
        self.request_row = Request(
            self.command, self.path_of, self.headers.get("Range"), bool(self.token)
        )
        self.server.log.append(self.request_row)

    def _go_wrong(self) -> bool:
        fault = self.server.take_fault(self.command, self.path_of, body=False)
        if fault is None:
            return False
        if fault.kind == "status":
            self.reply(fault.status, {}, list(fault.headers.items()))
        else:
            time.sleep(fault.seconds)
            self.close_connection = True
        return True

    def reply(
        self,
        status: int,
        body: bytes | dict | list = b"",
        fields: list[tuple[str, str]] = (),
        length: int | None = None,
    ) -> None:
        """Answer; with a length the body is left to the caller."""
        if not isinstance(body, bytes):
            body, fields = (
                json.dumps(body).encode(),
                [("Content-Type", "application/json"), *fields],
            )
        self.request_row.status = status
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD" and length is None:
            self.wfile.write(body)

    def error(self, status: int, code: str = "", message: str = "") -> None:
        """Answer with an error as the Hub words it."""
        rows = [("X-Error-Code", code), ("X-Error-Message", message)]
        self.reply(status, {"error": message}, [row for row in rows if row[1]])


def main() -> None:
    """Serve a folder until interrupted."""
    hub = LoopbackHub(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    hub.writers.add("hf_loopbackwriter")
    print(hub.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        hub.serve_forever()


if __name__ == "__main__":
    main()
