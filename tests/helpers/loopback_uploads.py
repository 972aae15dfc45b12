"""Uploads to the loopback Hub: create, pre-upload, LFS (whole and in parts), commit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from helpers.loopback_store import is_lfs

#: LFS objects larger than this go up in parts of this size.
PART_BYTES = 6 << 20


class UploadHandlers:
    """The handlers of POST and PUT, mixed into the server's request handler."""

    def do_POST(self) -> None:
        self._begin()
        data = self._upload_body()
        if data is None or self._go_wrong():
            return
        path, repo = self.path_of, r"([^/]+/[^/]+)"
        if not self._may_write():
            return
        if path == "/api/repos/create":
            self._create(json.loads(data))
        elif path == "/api/validate-yaml":
            self._validate_card(json.loads(data)["content"])
        elif match := re.fullmatch(rf"/api/models/{repo}/preupload/(.+)", path):
            self._preupload(match[1], match[2], json.loads(data)["files"])
        elif match := re.fullmatch(rf"/api/models/{repo}/branch/(.+)", path):
            self._branch(match[1], match[2])
        elif match := re.fullmatch(rf"/api/models/{repo}/tag/(.+)", path):
            self._tag(match[1], match[2], json.loads(data)["tag"])
        elif path == "/api/collections":
            self._make_collection(json.loads(data))
        elif match := re.fullmatch(r"/api/collections/([^/]+/[^/]+)/items", path):
            self._add_item(match[1], json.loads(data)["item"])
        elif match := re.fullmatch(rf"/{repo}\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(data)["objects"])
        elif match := re.fullmatch(r"/_lfs/([0-9a-f]{64})/complete", path):
            self._complete(match[1], json.loads(data)["parts"])
        elif match := re.fullmatch(rf"/api/models/{repo}/commit/(.+)", path):
            self._commit(match[1], match[2], [json.loads(line) for line in data.splitlines()])
        else:
            self.error(404)

    def do_PUT(self) -> None:
        self._begin()
        data = self._upload_body()
        if data is None or self._go_wrong():
            return
        match = re.fullmatch(r"/_lfs/([0-9a-f]{64})(?:/(\d+))?", self.path_of)
        place = self._store / (f"{match[1]}.{match[2]}" if match[2] else match[1])
        place.write_bytes(data)
        if not match[2]:
            self._keep(match[1], place)
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.reply(200, b"", [("ETag", f'"{etag}"')])

    @property
    def _store(self) -> Path:
        folder = self.server.store.root / ".lfs"
        folder.mkdir(exist_ok=True)
        return folder

    def _upload_body(self) -> bytes | None:
        """Return what the client sends; a ``pause`` holds it, a ``drop`` hangs up midway."""
        left = int(self.headers.get("Content-Length") or 0)
        fault = self.server.take_fault(self.command, self.path_of, body=True)
        blocks = []
        while left:
            if fault and sum(map(len, blocks)) >= fault.after:
                if fault.kind == "drop":
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return None
                self.server.wait_released()
                fault = None
            block = self.rfile.read(min(left, 1 << 16))
            if not block:
                return None  # the client has gone
            blocks.append(block)
            left -= len(block)
            self.request_row.sent += len(block)
        return b"".join(blocks)

    def _may_write(self) -> bool:
        if self.path_of.startswith("/_lfs/") or self.token in self.server.writers:
            return True
        if self.token:
            self.error(403, "", "You have read access but not the required permissions")
        else:
            self.error(401, "", "Invalid username or password.")
        return False

    def _create(self, row: dict[str, Any]) -> None:
        repo = f"{row.get('organization') or 'loop'}/{row['name']}"
        folder = self.server.store.root / repo
        if folder.exists():
            self.error(409, "", "You already created this model repo")
            return
        folder.mkdir(parents=True)
        private = row.get("visibility") == "private"
        (folder / ".hub.json").write_text(json.dumps({"private": private}))
        self.reply(200, {"url": f"{self.server.url}/{repo}", "name": repo})

    def _branch(self, repo: str, branch: str) -> None:
        if self.find(repo, "main"):
            main = self.server.store.root / repo
            target = main.with_name(f"{main.name}@{branch}")
            if target.exists():
                self.error(409, "", "Reference already exists")
                return
            shutil.copytree(main, target)
            self.reply(200, {})

    def _tag(self, repo: str, revision: str, tag: str) -> None:
        """Keep a copy of a commit under a tag, which never moves."""
        if found := self.find(repo, revision):
            target = found[0].with_name(f"{repo.partition('/')[2]}@{tag}")
            if target.exists():
                self.error(409, "", "Tag reference exists already")
                return
            shutil.copytree(found[0], target)
            self.server.tags.add((repo, tag))
            self.reply(200, {})

    def _make_collection(self, row: dict[str, Any]) -> None:
        slug = f"{row['namespace']}/{row['title'].lower().replace(' ', '-')}-{'0' * 24}"
        if slug in self.server.collections:
            self.reply(409, {"slug": slug, "error": "You already have a collection of this name"})
            return
        owner = {"name": row["namespace"]}
        kept = {key: row[key] for key in ("title", "private")}
        usual = {"items": [], "lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0}
        made = {"slug": slug, "owner": owner, "theme": "blue", "upvotes": 0, **usual, **kept}
        self.server.collections[slug] = made
        self.reply(200, made)

    def _add_item(self, slug: str, item: dict[str, Any]) -> None:
        found = self.server.collections[slug]
        if any(row["id"] == item["id"] for row in found["items"]):
            self.error(409, "", "Item already in collection")
            return
        number = len(found["items"])
        # the Hub's identifiers of items are numbers in hexadecimal digits
        found["items"].append({"_id": f"{number:024x}", "position": number, **item})
        self.reply(200, found)

    def _validate_card(self, content: str) -> None:
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            yaml.safe_load(match[1] if match else "")
        except yaml.YAMLError as error:
            self.reply(400, {"errors": [{"message": str(error)}], "warnings": []})
            return
        self.reply(200, {"errors": [], "warnings": []})

    def _preupload(self, repo: str, revision: str, rows: list[dict[str, Any]]) -> None:
        if not (found := self.find(repo, revision)):
            return
        there = {entry.path: entry for entry in self.server.store.entries(found[0])}
        files = []
        for row in rows:
            lfs = is_lfs(row["path"], row["size"])
            entry = there.get(row["path"])
            oid = entry and (entry.sha256 if entry.lfs else entry.git_oid)
            mode = "lfs" if lfs else "regular"
            files.append(
                {"path": row["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self.reply(200, {"files": files})

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        rows = []
        for row in objects:
            oid, size = row["oid"], row["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.server.uploaded:
                href = f"{self.server.url}/_lfs/{oid}"
                upload: dict[str, Any] = {"href": href}
                if size > PART_BYTES:
                    count = -(-size // PART_BYTES)
                    parts = {str(n): f"{href}/{n}?Signature=secret" for n in range(1, count + 1)}
                    upload["href"] = f"{href}/complete"
                    upload["header"] = {"chunk_size": str(PART_BYTES), **parts}
                answer["actions"] = {"upload": upload}
            rows.append(answer)
        self.reply(200, {"transfer": "basic", "objects": rows})

    def _complete(self, oid: str, parts: list[dict[str, Any]]) -> None:
        whole = self._store / oid
        with open(whole, "wb") as file:
            for part in parts:
                file.write((self._store / f"{oid}.{part['partNumber']}").read_bytes())
        self._keep(oid, whole)
        self.reply(200, {})

    def _keep(self, oid: str, file: Path) -> None:
        if hashlib.sha256(file.read_bytes()).hexdigest() == oid:
            self.server.uploaded[oid] = file

    def _commit(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> None:
        if not (found := self.find(repo, revision)):
            return
        folder = found[0]
        with tempfile.TemporaryDirectory(dir=self._store) as new:
            for line in lines:
                value = line["value"]
                if line["key"] not in ("file", "lfsFile"):
                    continue
                place = Path(new) / value["path"]
                place.parent.mkdir(parents=True, exist_ok=True)
                if line["key"] == "file":
                    place.write_bytes(base64.b64decode(value["content"]))
                elif value["oid"] in self.server.uploaded:
                    shutil.copyfile(self.server.uploaded[value["oid"]], place)
                else:
                    self.error(
                        400, "", f"LFS pointer pointed to a file that does not exist: {place}"
                    )
                    return
            shutil.copytree(new, folder, dirs_exist_ok=True)
        commit = self.server.store.commit_of(repo, folder)
        self.server.commits.append([line["value"] for line in lines])
        url = f"{self.server.url}/{repo}/commit/{commit}"
        self.reply(200, {"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})
