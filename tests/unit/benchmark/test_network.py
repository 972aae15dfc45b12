"""A node without a network is known at once, and the libraries of the Hub are told."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.loopback_hub import LoopbackHub
from shardmerge.benchmark import network


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "0")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch


def test_a_hub_that_answers_is_used(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines: list[str] = []
    with LoopbackHub(tmp_path) as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert not network.use_cache_where_offline(lines.append)
    assert lines == []
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_one_that_refuses_is_not(environment: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        environment.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        lines: list[str] = []
        assert network.use_cache_where_offline(lines.append)
    assert lines == ["the Hub cannot be reached from here; data sets come from the cache"]
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_one_that_says_nothing_is_waited_for_briefly(environment: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        environment.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert network.use_cache_where_offline(lambda line: None, patience=0.2)
        assert time.monotonic() - began < 60


def test_who_says_offline_is_not_asked_again(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(network, "_answers", lambda *_: pytest.fail("was asked"))
    environment.setenv("HF_DATASETS_OFFLINE", "1")
    assert network.use_cache_where_offline(pytest.fail)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
