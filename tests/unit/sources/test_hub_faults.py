"""Whatever goes wrong on the way: the file comes whole, or a sentence says why not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_cases import WEIGHTS, FetchCase, fetch_case
from shardmerge.base.identities import LockedFile
from shardmerge.sources.hub import client


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with fetch_case(tmp_path, monkeypatch) as made:
        yield made


class TestFaults:
    @pytest.mark.parametrize("after", [0, 1, 65536, 400_000])
    def test_a_dropped_connection_goes_on_where_it_was(self, case: FetchCase, after: int) -> None:
        case.server.fault("/_cdn/", "drop", after=after)
        case.fetch()
        assert case.arrived()
        assert case.ranges() == [None, f"bytes={after}-" if after else None]
        assert case.sent() == len(case.content)

    def test_many_drops(self, case: FetchCase) -> None:
        case.server.fault("/_cdn/", "drop", after=100_000, times=6)
        case.fetch(retries=0)
        assert case.arrived()
        assert case.sent() == len(case.content)

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_busy_server_is_waited_for(self, case: FetchCase, status: int) -> None:
        case.server.fault("/resolve/", "status", status=status, headers={"Retry-After": "4"})
        case.server.fault("/_cdn/", "status", status=status, headers={"Retry-After": "5"})
        case.fetch()
        assert case.arrived()
        assert case.waits == [4, 5]

    def test_storage_that_refuses_an_old_link_is_asked_anew(self, case: FetchCase) -> None:
        case.server.fault("/_cdn/", "status", status=403)
        case.fetch()
        assert case.arrived()
        assert len(case.server.requests("/resolve/")) == 2

    def test_storage_that_refuses_fresh_links_too(self, case: FetchCase) -> None:
        case.keep(1000)
        case.server.fault("/_cdn/", "status", status=403, times=99)
        text = case.told()
        assert "refused by the storage server localhost (HTTP 403), a fresh link too" in text
        assert len(case.server.requests("/resolve/")) == 2
        assert len(case.waits) == 1

    @pytest.fixture
    def hurried(self, case: FetchCase, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wait for a second, once; after that what is slow is this machine."""

        def pause(seconds: float) -> None:
            case.waits.append(seconds)
            monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "60")

        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
        monkeypatch.setattr(client, "pause", pause)

    def test_a_server_that_hangs(self, case: FetchCase, hurried: None) -> None:
        case.server.fault("/_cdn/", "hang", seconds=2)
        case.fetch()
        assert case.arrived()
        assert any("ReadTimeout" in line for line in case.lines)

    def test_a_server_that_stops_in_the_middle(self, case: FetchCase, hurried: None) -> None:
        case.server.fault("/_cdn/", "pause", after=200_000)
        case.fetch()
        assert case.arrived()
        assert case.ranges() == [None, "bytes=200000-"]

    def test_a_server_that_ignores_ranges(self, case: FetchCase) -> None:
        case.keep(1000)
        case.server.fault("/_cdn/", "norange")
        case.fetch()
        assert case.arrived()
        assert case.sent() == len(case.content)

    def test_a_server_that_sends_another_range(self, case: FetchCase) -> None:
        case.keep(1000)
        case.server.fault("/_cdn/", "wrongrange")
        case.fetch()
        assert case.arrived()
        assert case.ranges() == ["bytes=1000-", None]

    def test_a_range_that_the_server_does_not_have(self, case: FetchCase) -> None:
        case.keep(1000)
        case.server.fault("/_cdn/", "status", status=416)
        case.fetch()
        assert case.arrived()
        assert case.ranges() == ["bytes=1000-", None]

    def test_wrong_bytes_once(self, case: FetchCase) -> None:
        case.server.fault("/_cdn/", "corrupt")
        case.fetch()
        assert case.arrived()
        assert case.ranges() == [None, None]
        assert any("another hash; starting over" in line for line in case.lines)

    def test_wrong_bytes_always(self, case: FetchCase) -> None:
        case.server.fault("/_cdn/", "corrupt", times=99)
        text = case.told()
        assert text.startswith(
            f"o/m@{case.commit[:12]}/{WEIGHTS}: is not what the lock names, twice"
        )
        assert len(case.ranges()) == 2
        assert list(case.target.parent.iterdir()) == []

    def test_a_file_of_another_size(self, case: FetchCase) -> None:
        case.locked = LockedFile(len(case.content) + 5, sha256=case.entry.sha256)
        assert "the server has 614520 bytes instead of 614525" in case.told()
        assert list(case.target.parent.iterdir()) == []

    def test_nothing_ever_comes(self, case: FetchCase) -> None:
        case.server.fault("/_cdn/", "status", status=503, times=99)
        text = case.told(retries=3)
        assert "gave up after 4 attempts in a row without a byte" in text
        assert "the Hub answers HTTP 503" in text
        assert len(case.waits) == 3
        assert case.waits == sorted(case.waits)

    def test_no_network(self, case: FetchCase, monkeypatch: pytest.MonkeyPatch) -> None:
        case.keep(1000)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
            text = case.told(retries=1)
        assert "does not answer" in text
        assert "1.00 kB of 615 kB are kept; run again to go on from there." in text
        assert case.part.stat().st_size == 1000

    def test_the_file_is_gone_from_the_hub(self, case: FetchCase) -> None:
        case.entry.file.rename(case.folder / "other.safetensors")
        case.commit = case.server.store.commit_of("o/m", case.folder)
        assert "is not there (HTTP 404)" in case.told()

    def test_the_commit_is_gone_from_the_hub(self, case: FetchCase) -> None:
        case.commit = "0" * 40
        assert f"has no revision '{'0' * 40}'" in case.told()

    def test_redirect_signatures_are_not_told(self, case: FetchCase) -> None:
        case.server.fault("/_cdn/", "status", status=404)
        assert "secret-of-the-redirect" not in case.told()
