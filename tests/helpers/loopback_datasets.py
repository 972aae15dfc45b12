"""Data sets of the loopback Hub: folders as those of models, below ``/datasets`` and its API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helpers.loopback_store import Entry

_REPO = r"([^/]+/[^/]+)"


class DatasetHandlers:
    """The handlers of what the client of data sets asks, mixed into the request handler."""

    def answer_dataset(self, path: str) -> bool:
        """Answer a request for a data set; return whether it was one."""
        if match := re.fullmatch(rf"/datasets/{_REPO}/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif match := re.fullmatch(rf"/api/datasets/{_REPO}(?:/revision/(.+))?", path):
            self._dataset_info(match[1], match[2] or "main")
        elif match := re.fullmatch(rf"/api/datasets/{_REPO}/tree/([^/]+)/?(.*)", path):
            self._tree(*match.groups())
        else:
            return False
        return True

    def _dataset_info(self, repo: str, revision: str) -> None:
        if found := self.find(repo, revision):
            folder, commit = found
            files = [entry.sibling(False) for entry in self.server.store.entries(folder)]
            about = {"id": repo, "sha": commit, "private": False, "gated": False, "tags": []}
            self.reply(200, about | {"disabled": False, "siblings": files})

    def _tree(self, repo: str, revision: str, below: str) -> None:
        if found := self.find(repo, revision):
            entries = self.server.store.entries(found[0])
            under = [e for e in entries if e.path.startswith(f"{below}/" if below else "")]
            self.reply(200, [_row(entry) for entry in under])


def _row(entry: Entry) -> dict[str, Any]:
    return {"type": "file", "oid": entry.git_oid, "size": entry.size, "path": entry.path}
