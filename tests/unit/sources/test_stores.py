"""Where models come from is open: a third kind of source is locked, planned with and fetched."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from helpers.models import llama
from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path, load_json
from shardmerge.base.identities import LockedFile
from shardmerge.base.safetensors import Header, parse_header
from shardmerge.plan.decide import load_plan
from shardmerge.plan.plan import Plan
from shardmerge.recipe.settings import load_settings
from shardmerge.run.targets import fetch_options
from shardmerge.sources import stores
from shardmerge.sources.lock import Lock
from shardmerge.sources.store import Origin, Store


@dataclass(frozen=True)
class Unpacked:
    """How a file came."""

    how: str


class ZipStore(Store):
    """A zip archive, `zip:PATH`, whose files jobs unpack one by one."""

    kind = "zip"
    title = "zip archive"
    known_by: ClassVar[tuple[str, ...]] = ("sha256",)
    remote = True
    repo_form = "archive, `zip:PATH`"

    @classmethod
    def claims(cls, location: str) -> bool:
        return location.startswith("zip:")

    @classmethod
    def told(cls, origin: Origin) -> str:
        return f"the archive {origin.repo}" if origin.repo else "an archive"

    @classmethod
    def fetch(
        cls, origin: Origin, name: str, locked: LockedFile, target: Path, **options: Any
    ) -> Unpacked:
        with zipfile.ZipFile(origin.repo.removeprefix("zip:")) as archive:
            data = archive.read(name)
        assert hashlib.sha256(data).hexdigest() == locked.sha256
        with atomic_path(target) as part:
            part.write_bytes(data)
        return Unpacked("unpacked")

    @property
    def where(self) -> str:
        return self.location

    def _file(self) -> Path:
        return Path(self.location.removeprefix("zip:"))

    def _bytes(self, name: str) -> bytes:
        with zipfile.ZipFile(self._file()) as archive:
            return archive.read(name)

    def names(self) -> Collection[str]:
        if not self._file().is_file():
            raise UserError("there is no such archive", self.where)
        with zipfile.ZipFile(self._file()) as archive:
            return archive.namelist()

    def origin(self) -> Origin:
        return Origin(self.location, None, hashlib.sha1(self._file().read_bytes()).hexdigest())

    def identity(self, name: str) -> LockedFile:
        data = self._bytes(name)
        return LockedFile(len(data), sha256=hashlib.sha256(data).hexdigest())

    def read(self, name: str, locked: LockedFile, origin: Origin) -> bytes:
        return self._bytes(name)

    def headers(self, names: Collection[str]) -> Mapping[str, Header]:
        found = {}
        for name in names:
            data = self._bytes(name)
            end = 8 + int.from_bytes(data[:8], "little")
            found[name] = parse_header(data[:end], len(data), name)
        return found

    def spans(self, spans: Sequence[tuple[str, int, int]], origin: Origin) -> list[bytes]:
        return [self._bytes(name)[begin:end] for name, begin, end in spans]

    def path(self, name: str, origin: Origin) -> str:
        return str(self.context.models / f"zip@{origin.commit}" / name)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in a folder and one in an archive, and the third kind of source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stores, "STORES", (*stores.STORES, ZipStore))
    llama(Path("a"), 1)
    folder = llama(Path("b"), 2)
    with zipfile.ZipFile("b.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return tmp_path


def planned(second: str, lines: list[str] | None = None, **config: Any) -> Plan:
    """Return the plan of a sum of two models."""
    models = [{"model": model, "parameters": {"weight": 0.5}} for model in ("./a", second)]
    recipe = {"name": "out", "merge_method": "linear", "models": models, "dtype": "float16"}
    Path("r.yaml").write_text(json.dumps(recipe))
    settings = load_settings({"recipes": ["r.yaml"], **config})
    return load_plan(settings, say=(lines if lines is not None else []).append)


class TestThirdKind:
    def test_is_locked_and_planned_with(self, work: Path) -> None:
        plan = planned("zip:b.zip")
        locked = Lock.from_json(load_json("r.lock.json"), "r.lock.json").sources["zip:b.zip"]
        digits = hashlib.sha1(Path("b.zip").read_bytes()).hexdigest()
        assert (locked.kind, locked.origin) == ("zip", ("zip:b.zip", None, digits))
        assert all(file.sha256 for file in locked.files.values())
        (shard,) = plan.shards
        path = f"resources/models/zip@{digits}/model.safetensors"
        assert shard.sources == ("a/model.safetensors", path)
        assert plan.fetches[path].file == "model.safetensors"
        assert planned("zip:b.zip") == plan

    def test_gives_the_same_sum(self, work: Path) -> None:
        """What a job makes depends on the content, not on where it lies."""
        (of_zip,) = planned("zip:b.zip").shards
        (of_folder,) = planned("./b").shards
        assert of_zip.digest == of_folder.digest

    def test_is_fetched_by_the_same_job(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = planned("zip:b.zip")
        import fetch  # the job's script

        for path, job in plan.fetches.items():
            options = [*fetch_options(job), f"--output={path}", "--record=record.json"]
            monkeypatch.setattr(sys, "argv", ["fetch.py", *options])
            fetch.main()
            assert Path(path).read_bytes() == Path("b", job.file).read_bytes()
        assert load_json("record.json") == {"how": "unpacked"}

    def test_is_named_under_sources(self, work: Path) -> None:
        plan = planned("lab/b", sources={"lab/b": "zip:b.zip"})
        assert any("zip@" in path for path in plan.fetches)

    def test_another_place_than_the_locked_one(self, work: Path) -> None:
        planned("lab/b", sources={"lab/b": "zip:b.zip"})
        with pytest.raises(UserError, match=r"locked from the archive zip:b\.zip but is now .*'b'"):
            planned("lab/b", sources={"lab/b": "b"})

    def test_is_missing(self, work: Path) -> None:
        with pytest.raises(UserError, match="no such archive"):
            planned("zip:c.zip")

    def test_a_lock_of_it_is_checked(self, work: Path) -> None:
        planned("zip:b.zip")
        text = Path("r.lock.json").read_text()
        for before, after, says in (
            ('"repo": "zip:b.zip"', '"repo": "o/m"', "'o/m' is no archive, `zip:PATH`"),
            ('"kind": "zip"', '"kind": "tar"', "'tar' is none of `file`, `hub`, `local` and `zip`"),
        ):
            assert before in text
            Path("r.lock.json").write_text(text.replace(before, after))
            with pytest.raises(UserError, match=says):
                planned("zip:b.zip")


class TestFetching:
    def test_from_nowhere(self) -> None:
        with pytest.raises(UserError, match="no place that files are fetched from"):
            stores.remote_store("./folder")

    def test_a_folder_is_not_fetched(self, tmp_path: Path) -> None:
        store = stores.store_type("local")
        with pytest.raises(UserError, match="is read where it is"):
            store.fetch(Origin(), "x", LockedFile(1), tmp_path / "x")
