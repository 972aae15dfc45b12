"""What is computed on a card takes its own way through the engine; here host memory plays it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from helpers import engine_cases as cases
from helpers import kernel_cases, method_bytes
from helpers.engine_cases import Models, call_of, normal
from helpers.method_bytes import GOLDEN
from shardmerge.algebra import expression as ex
from shardmerge.engine import native, stream
from shardmerge.engine.device import Host, HostBuffer, check_device, host_buffer


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


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cards that are used, one for each lane."""
    made: list[str] = []
    monkeypatch.setattr(stream, "check_device", lambda device: None)
    monkeypatch.setattr(stream, "_current", contextlib.nullcontext)
    monkeypatch.setattr(stream, "Cuda", lambda device: Card(device, made, held=True))
    return made


def test_what_native_code_computes_stays_on_the_processor(
    tmp_path: Path, cards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = kernel_cases.ordinary("iso_c", (60, 40))
    models = Models(tmp_path, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)})
    inputs = [models.source(m) for m in models.tensors]
    tensors = {
        "sum": ("F16", ex.Linear(((0.5, inputs[0]), (0.5, inputs[1])))),
        "slerp": ("BF16", call_of("slerp", kernel_cases.ordinary("slerp", (60, 40)), inputs[:2])),
        "copy": ("F32", inputs[0]),
    }
    on_cpu = models.build(models.spec(tensors)).sha256
    with monkeypatch.context() as patch:
        patch.setattr(stream, "check_device", lambda device: pytest.fail("asks for a card"))
        assert models.build(models.spec(tensors), device="cuda").sha256 == on_cpu
    assert cards == []
    # beside them in one shard, in windows of their own or in a common one
    tensors = {"first": ("F16", call_of("iso_c", group, inputs)), **tensors}
    for cut in (cases.SMALL, {}):
        with cases.tuned(**cut):
            monkeypatch.setattr(stream, "host_buffer", pinned_buffer)
            on_card = models.build(models.spec(tensors), device="cuda:1").sha256
            monkeypatch.setattr(stream, "host_buffer", host_buffer)
            assert models.build(models.spec(tensors)).sha256 == on_card
    assert set(cards) == {"cuda:1"}


def test_without_native_code_the_card_computes_if_there_is_one(
    tmp_path: Path, cards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "is_usable", lambda: False)
    monkeypatch.setattr(stream, "host_buffer", lambda *a, **b: host_buffer(*a, tensor=True))
    models = Models(tmp_path, {"a": {"w": normal((60, 40), 1, "F16", 1.0)}})
    spec = models.spec({"w": ("F16", ex.Linear(((0.5, models.source("a")),)))})
    models.build(spec, device="cuda")
    assert set(cards) == {"cuda"}
    cards.clear()
    monkeypatch.setattr(stream, "check_device", check_device)  # there is none
    if not torch.cuda.is_available():
        models.build(spec, device="cuda")
        assert cards == []


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
