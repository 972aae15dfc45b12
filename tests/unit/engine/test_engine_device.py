"""What is computed on a card takes its own way through the engine; here host memory plays it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from helpers import method_bytes
from helpers.method_bytes import GOLDEN
from shardmerge.engine import native, stream
from shardmerge.engine.device import Host, HostBuffer, host_buffer


class Card(Host):
    """Memory of its own that nothing shares with the slots."""

    def __init__(self, device: str, made: list[str], held: bool) -> None:
        made.append(device)
        self.held = held

    def room(self, length: int) -> bool:
        return self.held

    def inputs(self, buffer: HostBuffer, length: int) -> torch.Tensor:
        return buffer.tensor[:length].clone()

    def outputs(self, buffer: HostBuffer) -> torch.Tensor:
        return torch.full_like(buffer.tensor, 0xAA)

    def deliver(self, results: torch.Tensor, buffer: HostBuffer, begin: int, end: int) -> None:
        buffer.tensor[begin:end].copy_(results[begin:end])


def pinned_buffer(size: int, *, tensor: bool, pinned: bool) -> HostBuffer:
    assert tensor and pinned
    return host_buffer(size, tensor=True)


@pytest.mark.parametrize("held", [False, True])
def test_every_lane_computes_on_the_card_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    made: list[str] = []
    monkeypatch.setattr(native, "is_usable", lambda: False)
    monkeypatch.setattr(stream, "check_device", lambda device: None)
    monkeypatch.setattr(stream, "_current", contextlib.nullcontext)
    monkeypatch.setattr(stream, "Cuda", lambda device: Card(device, made, held))
    monkeypatch.setattr(stream, "host_buffer", pinned_buffer)
    found = method_bytes.by_the_engine(tmp_path, {"device_block": 5000}, 1, "cuda:1")
    assert found == {name: GOLDEN["hashes"][name] for name in found}
    assert set(made) == {"cuda:1"} and len(made) == 4  # two lanes for each of two shards
