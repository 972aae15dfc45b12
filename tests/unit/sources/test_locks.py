"""A lock is a stranger's file: it is what this program would write, or told in one sentence."""

from __future__ import annotations

import base64
import copy
import json
import random
import resource
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.large_models import large_plan, llama_70b
from helpers.models import llama_shapes
from shardmerge.base.errors import UserError
from shardmerge.base.identities import LockedFile
from shardmerge.plan.decide import load_plan
from shardmerge.recipe.settings import load_settings
from shardmerge.sources import hub as hub_package
from shardmerge.sources import lockschema, sources
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor, read_lock
from shardmerge.sources.sources import _write, lock_path
from shardmerge.sources.tokenizer.vocabulary import Vocabulary
from tools.bench.models import lock_of

REAL = Path(__file__).parents[3] / "config/recipes/norms-tiny.lock.json"
SHA, GIT, COMMIT = "ab" * 32, "cd" * 20, "0123456789abcdef" * 2 + "01234567"


def hub(**changes: Any) -> dict[str, Any]:
    """Return a lock of one source on the Hub, changed at the top of the source."""
    files = {
        "config.json": {"size": 10, "git_oid": GIT},
        "a/model.safetensors": {
            "size": 100,
            "sha256": SHA,
            "tensors": {"w": ["F16", [2, 3], 20, 32], "v": ["F32", [], 32, 36]},
        },
    }
    source = {"kind": "hub", "repo": "o/m", "commit": COMMIT, "config": {}, "files": files}
    return {"version": 1, "sources": {"o/m": source | changes}}


def with_file(name: str, **row: Any) -> dict[str, Any]:
    data = hub()
    files = data["sources"]["o/m"]["files"]
    files[name] = files.pop("a/model.safetensors") | row
    return data


def with_tensor(name: str, row: Any) -> dict[str, Any]:
    data = hub()
    data["sources"]["o/m"]["files"]["a/model.safetensors"]["tensors"][name] = row
    return data


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a command for a hash": (with_file("x.safetensors", sha256="$(id)"), "x.safetensors.*sha256"),
    "a command for a repository": (hub(repo="o/m $(id)"), "repo: 'o/m .*owner/name"),
    "no commit": (hub(commit="main"), "commit: 'main'"),
    "a commit with a line feed": (hub(commit=f"{COMMIT}\n"), "commit"),
    "another kind": (hub(kind="ftp"), "kind: 'ftp'"),
    "a kind of another type": (hub(kind=["hub"]), "kind"),
    "a role": (hub(role="judge"), "role"),
    "an unknown key": (hub(comit=COMMIT), "unknown key 'comit'.*\n.*Did you mean 'commit'"),
    "a configuration that is a list": (hub(config=[]), "config: is not an object"),
    "a template that is a number": (hub(chat_template=3), "chat_template"),
    "a lone surrogate": (hub(config={"a": [{"b": "\ud800"}]}), "one half of a character"),
    "a folder with a commit": (hub(kind="local", repo=None), "repo"),
    "no files": (hub(files={}), "lacks config.json"),
    "a file that leads out": (with_file("../x"), "plain path"),
    "a file like an option": (with_file("-x"), "hyphen"),
    "a wildcard": (with_file("{x}"), "brace"),
    "a size below 0": (with_file("x", size=-1), "size"),
    "a size that is true": (with_file("x", size=True), "size"),
    "a size that is a float": (with_file("x", size=100.0), "size"),
    "no identity": (with_file("x", sha256=None), "sha256"),
    "two identities": (with_file("x", git_oid=GIT), "must be known by"),
    "a sample of the Hub": (with_file("x", sample=SHA), "must be known by"),
    "an upper-case hash": (with_file("x", sha256=SHA.upper()), "sha256"),
    "an unknown dtype": (with_tensor("t", ["F5", [2], 40, 44]), "dtype 'F5'"),
    "a dtype that is a list": (with_tensor("t", [[], [2], 40, 44]), "dtype"),
    "a shape that is a number": (with_tensor("t", ["F16", 2, 40, 44]), "shape"),
    "a negative shape": (with_tensor("t", ["F16", [-2], 40, 44]), "whole numbers"),
    "a huge shape": (with_tensor("t", ["F16", [2**62] * 10_000, 40, 44]), "shape"),
    "a range beyond the file": (with_tensor("t", ["F16", [40], 40, 120]), "ends at byte 120"),
    "a range backwards": (with_tensor("t", ["F16", [2], 44, 40]), "byte 40"),
    "a range that does not fit": (with_tensor("t", ["F16", [2], 40, 45]), "has 5 bytes"),
    "overlapping tensors": (with_tensor("t", ["F16", [2], 30, 34]), "overlap"),
    "a tensor in three parts": (with_tensor("t", ["F16", [2], 40]), "dtype, shape, begin, end"),
    "a tensor's name": (with_tensor("t\x1b[2J", ["F16", [2], 40, 44]), r"t\\x1b\[2J"),
    "a file that says nothing": (hub(side_files={"config.json": {}}), "config.json: is no such"),
    "a file that is not there": (hub(side_files={"quantize_config.json": {}}), "no such file"),
    "a side file that is a list": (hub(side_files=[]), "side_files: is not an object"),
    "the content of no tensor": (hub(contents={"x": "AAAA"}), "x: is no tensor"),
    "content that is too long": (hub(contents={"v": "AAAAAAAA"}), "content of a tensor of 4 bytes"),
    "content that is no base64": (hub(contents={"v": "AAAA!A=="}), "content of a tensor of 4"),
    "content that is a number": (hub(contents={"v": 3}), "content of a tensor of 4"),
    "a vocabulary that is not there": (hub(vocabulary=SHA), "vocabulary"),
    "sources that are a list": ({"version": 1, "sources": []}, "sources: is not an object"),
    "no sources": ({"version": 1}, "sources"),
    "another version": ({"version": 2, "sources": {}}, "version 1"),
}


class TestSchema:
    def test_what_this_program_writes(self) -> None:
        for path in REAL.parent.glob("*.lock.json"):
            lock = read_lock(path)
            assert Lock.from_json(lock.to_json(), "x") == lock
        assert Lock.from_json(hub(), "x").sources["o/m"].tensors["v"].shape == ()

    @pytest.mark.parametrize("what", BROKEN)
    def test_what_it_would_not(self, what: str, tmp_path: Path) -> None:
        data, says = BROKEN[what]
        path = tmp_path / "r.lock.json"
        path.write_text(json.dumps(data, indent=1))
        with pytest.raises(UserError, match=says):
            read_lock(path)

    def test_tensors_are_looked_at_kind_by_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked, plain = [], lockschema._range

        def counted(row: Any, size: int, path: tuple[str, ...]) -> tuple[int, int]:
            asked.append(row)
            return plain(row, size, path)

        monkeypatch.setattr(lockschema, "_range", counted)
        shapes = llama_70b(12)
        data = lock_of(["o/a", "o/b"], shapes, 2).to_json()
        lock = Lock.from_json(data, "x")
        assert lock.to_json() == data
        assert {name: t.shape for name, t in lock.sources["o/a"].tensors.items()} == shapes
        kinds = len(set(shapes.values()))
        assert len(shapes) > 10 * kinds
        assert len(asked) <= (2 + 3) * kinds  # once for each file
        tensors = data["sources"]["o/b"]["files"]["model-00002-of-00003.safetensors"]["tensors"]
        for name, row in list(tensors.items())[::7]:
            for wrong in ([row[0], [True, *row[1][1:]], *row[2:]], [*row[:3], row[3] - 1], row[:3]):
                tensors[name] = wrong
                with pytest.raises(UserError, match=f"tensor '{name}'"):
                    Lock.from_json(data, "x")
            tensors[name] = row
        order = dict(reversed(tensors.items()))
        data["sources"]["o/b"]["files"]["model-00002-of-00003.safetensors"]["tensors"] = order
        assert Lock.from_json(data, "x") == lock  # in another order each row is looked at

    def test_the_line_is_told(self, tmp_path: Path) -> None:
        text = REAL.read_text()
        path = tmp_path / "r.lock.json"
        for old, new in {
            '"size": 102': '"size": -1',
            '["F16", [64], 4496, 4624]': '["F16", [65], 4496, 4624]',
        }.items():
            path.write_text(text.replace(old, new, 1))
            line = text[: text.index(old)].count("\n") + 1
            with pytest.raises(UserError, match=rf"^{path}:{line}: model 'resources/demo/"):
                read_lock(path)

    def test_blanks_and_quotes_are_allowed(self) -> None:
        for name in ("a b/it's $(x);.safetensors", "é.json"):
            assert name in Lock.from_json(with_file(name), "x").sources["o/m"].files

    def test_what_tells_of_formats(self) -> None:
        data = with_file("quantize_config.json")
        data["sources"]["o/m"] |= {
            "side_files": {"quantize_config.json": {"bits": 4}},
            "contents": {"v": "AAECAw=="},
        }
        source = Lock.from_json(data, "x").sources["o/m"]
        assert source.contents == {"v": bytes(range(4))}
        written = Lock({"o/m": source}).to_json()["sources"]["o/m"]
        assert written["contents"] == {"v": "AAECAw=="}
        assert written["side_files"] == {"quantize_config.json": {"bits": 4}}

    def test_nothing_else_is_written(self, tmp_path: Path) -> None:
        """What a listing or a folder gave is held to the same: text that no file can hold."""
        source = LockedSource(
            kind="local",
            repo=None,
            revision=None,
            commit=None,
            config={"name": "\ud800"},
            files={"w": LockedFile(4, sha256=SHA), "config.json": LockedFile(4, sha256=SHA)},
            tensors={"t": LockedTensor("w", "F32", (1,), 0, 4)},
        )
        path = tmp_path / "r.lock.json"
        with pytest.raises(UserError, match="no Unicode"):
            _write(path, Lock({"m": source}))
        assert not path.exists()


class TestVocabularies:
    @staticmethod
    def lock(text: str, name: str) -> Lock:
        data = hub(vocabulary=name) | {"vocabularies": {name: text}}
        return Lock.from_json(data, "r.lock.json")

    def test_a_bomb_costs_little(self) -> None:
        """3 GB of blanks in 3 MB."""
        squeeze = zlib.compressobj(9)
        first, block = (
            squeeze.compress(b" " * (1 << 24)) + squeeze.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
        )
        data = first + 179 * block
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        found = self.lock(base64.b64encode(data).decode(), SHA).sources["o/m"].vocabulary
        with pytest.raises(UserError, match=r"r\.lock\.json: vocabulary"):
            len(found)
        assert time.process_time() - start < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB

    @pytest.mark.parametrize(
        "data",
        [
            [["a", "b"], [2]],
            [["a", None], [1]],
            [["a", 1], []],
            [["a"], [True]],
            ["ab", [0]],
            [["a"], [], []],
            {"a": 1},
            3,
        ],
    )
    def test_tokens_that_are_none(self, data: Any) -> None:
        text = base64.b64encode(zlib.compress(json.dumps(data).encode())).decode()
        found = self.lock(text, SHA).sources["o/m"].vocabulary
        with pytest.raises(UserError, match="tokens"):
            len(found)

    def test_other_tokens_than_the_digest_says(self) -> None:
        one, other = Vocabulary.of({"a": 0}), Vocabulary.of({"b": 0})
        assert self.lock(one.text, one.digest).sources["o/m"].vocabulary.tokens == ["a"]
        with pytest.raises(UserError, match="digest"):
            len(self.lock(one.text, other.digest).sources["o/m"].vocabulary)

    @pytest.mark.parametrize("text", ["", "%", "AAAA", "x" * 1000])
    def test_no_compressed_text(self, text: str) -> None:
        found = self.lock(text, SHA).sources["o/m"].vocabulary
        with pytest.raises(UserError, match="tokens"):
            len(found)


def places(value: Any, without: Collection[str]) -> Iterator[tuple[Any, Any]]:
    """Give every container of a JSON value with each of its keys or indexes."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, (dict, list)) and key not in without:
            yield from places(item, without)


STRANGE = (
    *(None, True, -1, 0, 1.5, 1e308, 2**63, 10**30, "", "\ud800", "$(id)", "../x", "a\x1b[2J"),
    *([], [[]], {}, {"a": 1}, float("nan"), "\u202e", "x" * 5000, [0] * 1000, "F16", SHA),
)


def refuse(*arguments: Any, **options: Any) -> Any:
    raise UserError("is not asked here")


def mutated(data: Any, rng: random.Random, without: Collection[str] = ()) -> Any:
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        found = list(places(data, without))
        table, key = found[rng.randrange(len(found))]
        kind = rng.randrange(4)
        if kind == 0:
            del table[key]
        elif kind == 1 and isinstance(table, dict):
            table[str(rng.choice(STRANGE))] = table.pop(key)
        elif kind == 2:
            other, name = found[rng.randrange(len(found))]
            table[key] = copy.deepcopy(other[name])
        else:
            table[key] = rng.choice(STRANGE)
    return data


def used(lock: Lock) -> None:
    """Use all that a lock holds, as a plan does."""
    lock.to_json()
    for source in lock.sources.values():
        if source.vocabulary is not None:
            _ = source.vocabulary.ids, source.vocabulary.added, source.vocabulary.digest
        assert all(file.identity for file in source.files.values())
        for tensor in source.tensors.values():
            assert 0 <= tensor.begin <= tensor.end <= source.files[tensor.file].size


def in_one_sentence(call: Callable[[], Any]) -> bool:
    """Return whether a call succeeds; if not, it must end in one sentence."""
    try:
        call()
    except UserError as error:
        text = str(error)
        assert len(text) < 2000
        assert all(line.isprintable() for line in text.split("\n"))
        return False
    return True


class TestMutations:
    def test_of_the_data(self) -> None:
        """Of a lock of three models, shortened to some tensors of each so that all are hit."""
        data = json.loads(REAL.read_text())
        for source in data["sources"].values():
            for file in source["files"].values():
                if "tensors" in file:
                    file["tensors"] = dict(list(file["tensors"].items())[:2])
            source["files"] = dict(list(source["files"].items())[:5])
        rng = random.Random(5)
        good = sum(
            in_one_sentence(lambda: used(Lock.from_json(mutated(data, rng), "r.lock.json")))
            for _ in range(2000)
        )
        assert 20 < good < 1900

    def test_planned_with(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What passes as a lock is planned with, or told: the flagship from the Hub."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sources, "_write", lambda path, lock: None)
        monkeypatch.setattr(hub_package, "commit_of", refuse)
        monkeypatch.setattr(hub_package, "Commit", refuse)
        settings = load_settings({"recipes": ["recipe.yaml"]})
        shapes = llama_shapes(2)
        plan = large_plan(tmp_path, shapes, files=2)
        assert plan.shards
        path = lock_path(tmp_path / "recipe.yaml")
        data = json.loads(path.read_text())
        rng = random.Random(7)
        good = 0
        for _ in range(200):
            shutil.rmtree(".shardmerge", ignore_errors=True)
            path.write_text(json.dumps(mutated(data, rng, without=("config",))))
            good += in_one_sentence(lambda: load_plan(settings, say=lambda line: None))
        assert good

    def test_of_the_text(self, tmp_path: Path) -> None:
        whole = REAL.read_bytes()
        rng = random.Random(6)
        path = tmp_path / "r.lock.json"
        for _ in range(200):
            at, length = rng.randrange(len(whole)), rng.choice((0, 1, 1, 30, 5000))
            new = rng.choice((b"", b"\xff", b"{", b'"', b"9" * 5000, b"[" * 5000, b"\\ud800"))
            path.write_bytes(whole[:at] + new + whole[at + length :])
            in_one_sentence(lambda: used(read_lock(path)))
