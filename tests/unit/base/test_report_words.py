"""Numbers and names as people read them, and what a terminal is given."""

from __future__ import annotations

import io

import pytest

from shardmerge.base.text import human_bytes, human_seconds, plural, ranges
from shardmerge.report.terminal import Terminal


class TestNumbers:
    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994_999, "9.99 MB"),
            (9_995_001, "10.0 MB"),
            (99_960_000, "100 MB"),
            (999_600_000, "1.00 GB"),
            (137_953_000_000, "138 GB"),
            (5 * 10**18, "5000 PB"),
        ],
    )
    def test_bytes_have_three_digits(self, count: int, text: str) -> None:
        assert human_bytes(count) == text

    def test_seconds(self) -> None:
        assert human_seconds(0.0432) == "0.043 s"
        assert human_seconds(12.3) == "12 s"
        assert human_seconds(185) == "3 min 5 s"
        assert human_seconds(7800) == "2 h 10 min"

    def test_plural(self) -> None:
        assert plural(1, "shard") == "1 shard"
        assert plural(1500, "file") == "1,500 files"

    def test_ranges_join_neighbours_in_any_order(self) -> None:
        assert ranges([72, 0, 1, 2, 9, 73, 9]) == "0-2, 9, 72-73"
        assert ranges([]) == ""


class TestTerminal:
    def test_a_pipe_gets_no_colour(self) -> None:
        terminal = Terminal.of(io.StringIO())
        assert not terminal.colour
        assert terminal.bold("x") == terminal.dim("x") == "x"

    def test_a_terminal_gets_colour_unless_it_says_no(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Screen(io.StringIO):
            encoding = "utf-8"

            def isatty(self) -> bool:
                return True

        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        assert Terminal.of(Screen()).bold("x") == "\x1b[1mx\x1b[0m"
        monkeypatch.setenv("NO_COLOR", "1")
        assert Terminal.of(Screen()).bold("x") == "x"

    def test_width_follows_the_window_within_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for columns, width in (("20", 40), ("77", 77), ("500", 140)):
            monkeypatch.setenv("COLUMNS", columns)
            assert Terminal.of(io.StringIO()).width == width

    def test_bars_are_as_long_as_their_share(self) -> None:
        assert Terminal().bar(0.5, 4) == "██  "
        assert Terminal().bar(0.3125, 4) == "█▎  "
        assert Terminal().bar(7.0, 4) == "████"
        assert Terminal(unicode=False).bar(0.5, 4) == "##  "
