"""What moved between two locks."""

from __future__ import annotations

import dataclasses
from typing import Any

from shardmerge.base.identities import LockedFile
from shardmerge.sources.changes import describe_changes
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor

OLD = LockedSource(
    kind="hub",
    repo="o/m",
    revision="main",
    commit="a" * 40,
    config={"rope_theta": 10000, "hidden_size": 8},
    files={"w": LockedFile(5_000_000_000, sha256="1"), "t": LockedFile(10, git_oid="2")},
    tensors={
        "x": LockedTensor("w", "F16", (2, 2), 0, 8),
        "y": LockedTensor("w", "F16", (2,), 8, 12),
    },
)


def moved(old: Any, new: Any) -> Any:
    return describe_changes(Lock({"o/m": old}), Lock({"o/m": new}))


class TestDescribeChanges:
    def test_nothing_moved(self) -> None:
        assert moved(OLD, OLD) == []

    def test_everything_moved(self) -> None:
        new = dataclasses.replace(
            OLD,
            commit="b" * 40,
            config={"rope_theta": 1000000, "vocab_size": 3},
            files={"w": LockedFile(4_930_000_000, sha256="9"), "n": LockedFile(10, git_oid="3")},
            tensors={
                "x": LockedTensor("w", "BF16", (2, 2), 0, 8),
                "z": LockedTensor("w", "F16", (2,), 8, 12),
            },
        )
        assert moved(OLD, new) == [
            "o/m: main moved from aaaaaaaaaaaa to bbbbbbbbbbbb",
            "o/m: config.json: hidden_size is gone (was 8)",
            "o/m: config.json: rope_theta changed from 10000 to 1000000",
            "o/m: config.json: vocab_size is new: 3",
            "o/m: n is new (10 B)",
            "o/m: t is gone",
            "o/m: w has another content (4.93 GB)",
            "o/m: 1 tensor is new: z",
            "o/m: 1 tensor is gone: y",
            "o/m: 1 tensor is of another dtype: x",
        ]

    def test_many_tensors_are_counted(self) -> None:
        new = dataclasses.replace(
            OLD,
            tensors={f"layer.{i}": LockedTensor("w", "F16", (2,), i, i + 4) for i in range(9)},
        )
        first = moved(OLD, new)[0]
        assert first == (
            "o/m: 9 tensors are new: layer.0, layer.1, layer.2, layer.3, layer.4, and 4 more"
        )

    def test_sources_that_come_and_go(self) -> None:
        lines = describe_changes(Lock({"a/b": OLD, "o/m": OLD}), Lock({"c/d": OLD, "o/m": OLD}))
        assert lines == ["c/d: new", "a/b: no longer used"]

    def test_from_the_hub_into_a_folder(self) -> None:
        folder = dataclasses.replace(OLD, kind="local", repo=None, revision=None, commit=None)
        assert moved(OLD, folder) == ["o/m: it moved from aaaaaaaaaaaa to a folder"]
