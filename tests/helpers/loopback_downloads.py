"""What the loopback Hub serves: metadata, redirects to storage, bodies with faults."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from helpers.loopback_hub import Fault
    from helpers.loopback_store import Entry

CHUNK = 1 << 16


class DownloadHandlers:
    """The handlers of GET and HEAD, mixed into the server's request handler."""

    def find(self, repo: str, revision: str) -> tuple[Path, str] | None:
        """Return (folder, commit), or answer with an error."""
        settings = self.server.store.settings(repo)
        hidden = settings.get("private") and self.token not in (
            *settings.get("readers", []),
            *self.server.writers,
        )
        folders = {} if hidden else self.server.store.folders(repo)
        for name, folder in folders.items():
            commit = self.server.store.commit_of(repo, folder)
            if revision in (name, commit):
                return folder, commit
        if folders:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            self.error(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return None

    def _refs(self, repo: str) -> None:
        if self.find(repo, "main"):
            rows: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
            for name, folder in self.server.store.folders(repo).items():
                is_tag = (repo, name) in self.server.tags
                kind, ref = ("tags", "refs/tags") if is_tag else ("branches", "refs/heads")
                commit = self.server.store.commit_of(repo, folder)
                rows[kind].append({"name": name, "ref": f"{ref}/{name}", "targetCommit": commit})
            self.reply(200, rows)

    def _model_info(self, repo: str, revision: str, blobs: bool) -> None:
        if not (found := self.find(repo, revision)):
            return
        folder, commit = found
        settings = self.server.store.settings(repo)
        self.reply(
            200,
            {
                "id": repo,
                "modelId": repo,
                "sha": commit,
                "private": bool(settings.get("private")),
                "gated": "manual" if settings.get("gated") else False,
                "disabled": False,
                "tags": [],
                "siblings": [entry.sibling(blobs) for entry in self.server.store.entries(folder)],
            },
        )

    def _entry(self, repo: str, revision: str, name: str) -> Entry | None:
        for folder in self.server.store.folders(repo).values():
            if self.server.store.commit_of(repo, folder) == revision:
                return next(e for e in self.server.store.entries(folder) if e.path == name)
        self.error(404)
        return None

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        if not (found := self.find(repo, revision)):
            return
        folder, commit = found
        settings = self.server.store.settings(repo)
        if settings.get("gated") and self.token not in settings.get("readers", []):
            message = "Access to this model is restricted; you are not in the authorized list."
            self.error(403 if self.token else 401, "GatedRepo", message)
            return
        entry = next((e for e in self.server.store.entries(folder) if e.path == name), None)
        fields = [("X-Repo-Commit", commit), ("Accept-Ranges", "bytes")]
        if entry is None:
            self.reply(404, b"", [*fields, ("X-Error-Code", "EntryNotFound")])
        elif entry.lfs:
            place = f"http://localhost:{self.server.server_port}/_cdn/{repo}/{commit}/{quote(name)}"
            xet = f"{self.server.url}/api/models/{repo}/xet-read-token/{commit}"
            fields += [
                ("X-Linked-Size", str(entry.size)),
                ("X-Linked-Etag", f'"{entry.sha256}"'),
                ("X-Xet-Hash", hashlib.sha256(entry.sha256.encode()).hexdigest()),
                ("Link", f'<{xet}>; rel="xet-auth"'),
                ("Location", f"{place}?Signature=secret-of-the-redirect"),
            ]
            self.reply(302, b"", fields)
        else:
            self._body(entry, [*fields, ("ETag", f'"{entry.git_oid}"')])

    def _body(self, entry: Entry, fields: list[tuple[str, str]]) -> None:
        fault = self.server.take_fault(self.command, self.path_of, body=True)
        kind = fault.kind if fault else ""
        first, last, status = 0, entry.size - 1, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and kind != "norange":
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            if first >= entry.size:
                self.reply(416, b"", [("Content-Range", f"bytes */{entry.size}")])
                return
            if kind == "wrongrange":
                first = first // 2
            fields = [*fields, ("Content-Range", f"bytes {first}-{last}/{entry.size}")]
            status = 206
        self.reply(status, b"", fields, length=last - first + 1)
        if self.command == "HEAD":
            return
        for chunk in self._chunks(entry.file, first, last + 1, fault):
            self.request_row.sent += len(chunk)  # before the client can have it
            self.wfile.write(chunk)
        if kind == "drop":
            self.close_connection = True
            self.connection.shutdown(2)

    def _chunks(self, file: Path, begin: int, end: int, fault: Fault | None) -> Iterator[bytes]:
        kind = fault.kind if fault else ""
        stop = min(end, begin + fault.after) if kind in ("drop", "pause") else end
        with open(file, "rb") as source:
            source.seek(begin)
            while begin < end:
                if begin == stop and kind == "drop":
                    return
                if begin == stop and kind == "pause":
                    self.wfile.flush()
                    self.server.wait_released()
                    stop = end
                chunk = source.read(min(CHUNK, (stop if begin < stop else end) - begin))
                begin += len(chunk)
                if kind == "corrupt":
                    chunk, kind = bytes([chunk[0] ^ 1]) + chunk[1:], ""
                if kind == "slow":
                    time.sleep(fault.seconds)
                yield chunk
