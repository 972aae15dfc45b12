"""What local files are known by: stamps, identities, and hashes of what a sample cannot tell."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardmerge.base import identities as module
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.identities import Identities, stamp_of
from shardmerge.engine import watch as watch_module
from shardmerge.engine.watch import Watch
from shardmerge.package.known import hash_source, known_hashes, source_states, with_states
from shardmerge.plan.description import DescribedSource

LARGE = 8 << 20


@pytest.fixture
def small(tmp_path: Path) -> Any:
    path = tmp_path / "small.bin"
    path.write_bytes(random.Random(1).randbytes(5000))
    return path


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of which half is no part of its sample."""
    for user in (module, watch_module):
        monkeypatch.setattr(user, "FULL_HASH_BYTES", 1 << 20)
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(2).randbytes(LARGE))
    return path


def cached(folder: Path) -> Identities:
    return Identities(folder / ".shardmerge" / "identities.json")


def edit_in_place(path: Path, offset: int, data: bytes) -> None:
    """Change bytes of a file and set its time of change back."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stamp_of(path).content == (LARGE if path.stem == "large" else 5000,
                                      before.st_mtime_ns, before.st_ino, before.st_dev)  # fmt: skip


def zeros_between_samples(path: Path) -> None:
    """Write zeros where no block of the sample lies."""
    step = (LARGE - (64 << 10)) // 63
    edit_in_place(path, 40 * step + (66 << 10), bytes(32 << 10))


class TestIdentities:
    def test_edit_with_size_and_time_kept(self, small: Path, tmp_path: Path) -> None:
        known = cached(tmp_path)
        before = known.of(small)
        known.save()
        edit_in_place(small, 100, b"other")
        assert cached(tmp_path).of(small).sha256 != before.sha256

    def test_touched_file_is_the_same(self, small: Path, tmp_path: Path) -> None:
        known = cached(tmp_path)
        before = known.of(small)
        known.save()
        small.chmod(0o600)
        os.link(small, tmp_path / "second")
        assert cached(tmp_path).of(small) == before

    def test_unchanged_file_is_not_read_again(
        self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = cached(tmp_path)
        before = known.of(small)
        known.save()
        monkeypatch.setattr(module, "sha256_of", None)
        assert cached(tmp_path).of(small) == before

    @pytest.mark.parametrize(
        "damage",
        ["[]", "{", '{"KEY": 3}', '{"KEY": []}', '{"KEY": [1, 2, 3, 4, 5, {}, "x"]}', "\x00"],
    )
    def test_damaged_cache_is_made_anew(self, small: Path, tmp_path: Path, damage: str) -> None:
        path = tmp_path / ".shardmerge" / "identities.json"
        path.parent.mkdir()
        path.write_text(damage.replace("KEY", str(small.resolve())))
        assert cached(tmp_path).of(small).sha256

    def test_file_that_is_written_meanwhile(
        self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def slow(path: Any) -> str:
            path.write_bytes(b"more")
            return "0" * 64

        monkeypatch.setattr(module, "sha256_of", slow)
        with pytest.raises(UserError, match="changed while it was read"):
            cached(tmp_path).of(small)


class TestFull:
    """A file of which a part was zeroed between two blocks of its sample."""

    def test_change_that_the_sample_does_not_tell(self, large: Path, tmp_path: Path) -> None:
        locked = cached(tmp_path).of(large)
        first = hash_source(large, locked.identity, cached(tmp_path))
        zeros_between_samples(large)
        assert cached(tmp_path).of(large).is_like(locked)
        for _ in range(2):
            with pytest.raises(UserError, match="where its sample does not tell it") as error:
                hash_source(large, locked.identity, cached(tmp_path))
            assert "snakemake lock" in str(error.value) and "large.bin" in str(error.value)
        # locked anew, it has another identity, so that all that is made of it is made anew
        anew = cached(tmp_path).of(large)
        assert anew.identity == f"sha256:{anew.sha256}" != f"sha256:{first['sha256']}"
        assert hash_source(large, anew.identity, cached(tmp_path))["sha256"] == anew.sha256

    def test_restored_file_passes_again(self, large: Path, tmp_path: Path) -> None:
        content = large.read_bytes()
        identity = cached(tmp_path).of(large).identity
        hash_source(large, identity, cached(tmp_path))
        zeros_between_samples(large)
        with pytest.raises(UserError):
            hash_source(large, identity, cached(tmp_path))
        edit_in_place(large, 0, content)
        assert hash_source(large, identity, cached(tmp_path))["passed"]

    def test_other_than_locked(self, large: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="than when it was locked"):
            hash_source(large, "sha256:" + "0" * 64, cached(tmp_path))
        with pytest.raises(UserError, match="than when it was locked"):
            hash_source(large, "sample:" + "0" * 64, cached(tmp_path))

    @pytest.mark.parametrize("damage", ["[]", "{}", '{"seen": 3}', '{"seen": ["x"], "sha256": 1}'])
    def test_damaged_note_is_made_anew(self, large: Path, tmp_path: Path, damage: str) -> None:
        identity = cached(tmp_path).of(large).identity
        hash_source(large, identity, cached(tmp_path))
        (note,) = (tmp_path / ".shardmerge" / "hashed").iterdir()
        note.write_text(damage)
        assert hash_source(large, identity, cached(tmp_path))["passed"]
        assert json.loads(note.read_text())["sample"] == identity.partition(":")[2]


class TestWhatIsTold:
    SAMPLE, HASH = "sample:" + "a" * 64, "sha256:" + "b" * 64
    SOURCE = DescribedSource(kind="local", files={"x": SAMPLE, "y": HASH, "z": "git:" + "c" * 40})

    def test_hashed_or_sampled(self) -> None:
        assert with_states(self.SOURCE, {})["checked"] == {
            "x": "sampled",
            "y": "hashed",
            "z": "hashed",
        }
        found = with_states(self.SOURCE, {self.SAMPLE: "d" * 64})
        assert found["checked"]["x"] == "hashed"
        assert found["sha256"] == {"x": "d" * 64}
        description = SimpleNamespace(sources={"m": self.SOURCE})
        assert source_states(description, {}) == {"hashed": 2, "sampled": 1}

    def test_two_contents_of_one_sample(self) -> None:
        with pytest.raises(UserError, match="changed where its sample does not tell it"):
            known_hashes([{self.SAMPLE: "d" * 64}, {self.SAMPLE: "e" * 64}])


class TestWatch:
    def test_content_that_was_not_planned(self, small: Path, tmp_path: Path) -> None:
        identity = cached(tmp_path).of(small).identity
        Watch(cached(tmp_path)).begin(small, identity)
        edit_in_place(small, 0, b"other")
        with pytest.raises(UserError, match="another content than the plan was made for"):
            Watch(cached(tmp_path)).begin(small, identity)

    def test_change_while_it_is_read(self, small: Path, large: Path, tmp_path: Path) -> None:
        for path in (small, large):
            watch = Watch(cached(tmp_path))
            watch.begin(path, cached(tmp_path).of(path).identity)
            watch.confirm()
            edit_in_place(path, 8, b"other")
            with pytest.raises(UserError, match="changed while it was read"):
                watch.confirm()

    def test_another_name_or_mode_is_no_change(
        self, small: Path, large: Path, tmp_path: Path
    ) -> None:
        for path in (small, large):
            watch = Watch(cached(tmp_path))
            watch.begin(path, cached(tmp_path).of(path).identity)
            path.chmod(0o600)
            os.link(path, tmp_path / f"{path.stem}.second")
            watch.confirm()

    def test_a_touch_is_no_change_where_the_content_is_known(
        self, small: Path, large: Path, tmp_path: Path
    ) -> None:
        """Snakemake touches what a job was to make and found there, in another workflow too."""
        for path in (small, large):
            watch = Watch(cached(tmp_path))
            watch.begin(path, f"sha256:{sha256_of(path)}")
            os.utime(path)
            watch.confirm()
            watch.confirm({path: sha256_of(path)})

    def test_a_touch_is_told_where_a_sample_alone_is_known(
        self, large: Path, tmp_path: Path
    ) -> None:
        watch = Watch(cached(tmp_path))
        watch.begin(large, cached(tmp_path).of(large).identity)
        os.utime(large)
        with pytest.raises(UserError, match="changed while it was read"):
            watch.confirm()

    def test_replaced_file(self, small: Path, tmp_path: Path) -> None:
        watch = Watch()
        watch.begin(small)
        other = tmp_path / "other"
        other.write_bytes(small.read_bytes())
        os.replace(other, small)
        with pytest.raises(UserError, match="changed while it was read"):
            watch.confirm()
