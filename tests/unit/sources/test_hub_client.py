"""Waiting, masking, progress."""

from __future__ import annotations

import email.utils
import logging
from typing import Any, Never

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from shardmerge.base.text import human_bytes, human_time
from shardmerge.sources.hub import client
from shardmerge.sources.hub.progress import Meter

TOKEN = "hf_abcdefghijABCDEFGHIJ"


def failure(status: Any, url: Any = "http://127.0.0.1:9/o/m/resolve/x", **fields: Any) -> Any:
    request = httpx2.Request("GET", url)
    return HfHubHTTPError("no", response=httpx2.Response(status, headers=fields, request=request))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    monkeypatch.setenv("HF_TOKEN", TOKEN)


class TestMask:
    def test_the_token_in_use_and_all_that_look_like_one(self) -> None:
        text = client.mask(f"a {TOKEN} b hf_otherOTHER c Authorization: Bearer xyz.1 d")
        assert text == "a *** b *** c Authorization: Bearer *** d"

    def test_a_token_of_another_form(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "my-own-hub's-token")
        assert client.mask("at my-own-hub's-token!") == "at ***!"

    def test_signed_addresses(self) -> None:
        text = client.mask("GET 'https://cdn/x/y?Signature=abc&Key=d' failed")
        assert text == "GET 'https://cdn/x/y?***' failed"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("at https://me:pass@hub.example/o/m", "at https://hub.example/o/m"),
            ("'http://token@hub:80'", "'http://hub:80'"),
            ("https://me:p@ss@hub/x?Key=1#y", "https://hub/x?***"),
            ("s3://id:key@bucket/x", "s3://bucket/x"),
            (
                "mail me@example.org about https://hub/a@b",
                "mail me@example.org about https://hub/a@b",
            ),
        ],
    )
    def test_users_and_passwords(self, text: str, shown: str) -> None:
        assert client.mask(text) == shown

    def test_what_the_client_library_logs(self, capsys: pytest.CaptureFixture[str]) -> None:
        handler = logging.getLogger("huggingface_hub").handlers[0]
        record = logging.makeLogRecord({"msg": "PUT %s", "args": ("https://a:b@cdn/x?Sig=c",)})
        assert handler.filter(record)
        assert record.getMessage() == "PUT https://cdn/x?***"

    def test_brief_errors_are_masked(self) -> None:
        error = httpx2.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}'")
        assert TOKEN not in client.brief(error)


class TestDelay:
    def test_seconds_that_the_server_asks_for(self) -> None:
        assert client.delay(failure(503, **{"Retry-After": "7"}), 0) == 7

    def test_a_date_that_the_server_asks_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1.8e9
        monkeypatch.setattr("shardmerge.sources.hub.client.time.time", lambda: now)
        date = email.utils.formatdate(now + 30, usegmt=True)
        assert client.delay(failure(429, **{"Retry-After": date}), 0) == 30

    def test_the_rate_limit_of_the_hub(self) -> None:
        assert client.delay(failure(429, RateLimit='"api";r=0;t=55'), 0) == 55
        assert client.delay(failure(500, RateLimit='"api";r=9;t=55'), 0) < 1

    def test_no_server_makes_us_wait_for_ever(self) -> None:
        assert client.delay(failure(429, **{"Retry-After": "999999"}), 0) == 900

    def test_grows_up_to_a_minute(self) -> None:
        waits = [client.delay(httpx2.ReadTimeout("slow"), n) for n in range(12)]
        assert 0.4 <= waits[0] <= 0.6
        assert waits[4] > 3 * waits[1]
        assert max(waits) <= 72


class TestIsTransient:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520])
    def test_the_server_is_busy(self, status: int) -> None:
        assert client.is_transient(failure(status))

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
    def test_the_answer_is_final(self, status: int) -> None:
        assert not client.is_transient(failure(status))

    def test_a_link_to_storage_grows_old(self) -> None:
        assert client.is_refused_link(failure(403, url="https://storage.example/x?Signature=old"))
        assert not client.is_refused_link(failure(403))
        assert not client.is_refused_link(failure(404, url="https://storage.example/x"))

    def test_a_bad_header_stays_bad(self) -> None:
        assert not client.is_transient(httpx2.LocalProtocolError("Illegal header value"))
        assert client.is_transient(httpx2.ConnectError("refused"))


class TestRetrying:
    def test_waits_and_tries_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waits, lines, outcomes = [], [], [failure(503), httpx2.ReadError("cut"), "there"]
        monkeypatch.setattr(client, "pause", waits.append)

        def call() -> Any:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        assert client.retrying(call, "o/m", progress=lines.append) == "there"
        assert len(waits) == 2
        assert lines[0].startswith("o/m: HTTP 503; trying again in")

    def test_gives_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waits = []
        monkeypatch.setattr(client, "pause", waits.append)

        def call() -> Never:
            raise failure(503)

        with pytest.raises(HfHubHTTPError):
            client.retrying(call, "o/m", attempts=3)
        assert len(waits) == 2

    def test_a_fresh_link_to_storage_is_asked_for_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits, error = [], failure(403, url="https://storage.example/x?Signature=old")
        monkeypatch.setattr(client, "pause", waits.append)

        def call() -> Never:
            raise error

        with pytest.raises(HfHubHTTPError):
            client.retrying(call, "o/m")
        assert len(waits) == 1
        told = str(client.hub_error(error, "o/m"))
        assert "refused by the storage server storage.example (HTTP 403), a fresh link too" in told
        assert "Signature" not in told

    def test_what_came_renews_patience(self) -> None:
        patience, error = client.RetryLimits(1), failure(403, url="https://storage.example/x")
        assert patience.wait(error) is not None
        assert patience.wait(error, gained=True) is not None
        assert patience.wait(error) is None


class TestExplain:
    @pytest.mark.parametrize(
        ("status", "words"),
        [(401, "does not accept the token"), (403, "not the right"), (429, "too many requests")],
    )
    def test_statuses(self, status: int, words: str) -> None:
        assert words in client.hub_error(failure(status), "o/m").message

    def test_a_status_without_a_sentence_of_its_own(self) -> None:
        error = client.hub_error(failure(503), "o/m", "main")
        assert str(error).startswith("o/m@main: cannot be asked for: the Hub answers HTTP 503")

    @pytest.mark.parametrize(
        "error",
        [failure(401), failure(403), failure(503), httpx2.ConnectError("no")],
        ids=["401", "403", "503", "no answer"],
    )
    def test_never_the_password_of_the_endpoint(
        self, monkeypatch: pytest.MonkeyPatch, error: Any
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "https://me:s3cret@hub.example")
        text = str(client.hub_error(error, "o/m", "main"))
        assert "s3cret" not in text and "me:" not in text

    def test_never_the_token(self) -> None:
        error = client.hub_error(httpx2.ConnectError(f"at Bearer {TOKEN}"), "o/m")
        assert TOKEN not in str(error)
        assert "http://127.0.0.1:9 does not answer" in str(error)


class TestProgress:
    @pytest.mark.parametrize(
        ("count", "text"),
        [
            *((0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_995_000, "10.0 MB")),
            *((4_930_000_000, "4.93 GB"), (138e9, "138 GB"), (414e12, "414 TB")),
        ],
    )
    def test_bytes(self, count: float | int, text: str) -> None:
        assert human_bytes(count) == text

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (3900, "1 h 05 min"), (7199, "2 h 00 min")],
    )
    def test_times(self, seconds: float | int, text: str) -> None:
        assert human_time(seconds) == text

    def test_a_line_with_bytes_rate_and_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, lines = [100.0], []
        monkeypatch.setattr("shardmerge.sources.hub.progress.time.monotonic", lambda: now[0])
        meter = Meter("w", 1_000_000_000, lines.append)
        now[0] = 104.0
        meter.add(200_000_000, 300_000_000)
        assert lines == []
        now[0] = 105.0
        meter.add(50_000_000, 350_000_000)
        assert lines == ["w: 350 MB of 1.00 GB (35 %), 50.0 MB/s, 13 s left"]
        assert meter.moved == 250_000_000
