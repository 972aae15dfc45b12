"""JSON of strangers: where its limits are."""

from __future__ import annotations

import pytest

from shardmerge.base.errors import UserError
from shardmerge.base.jsontext import MAX_DIGITS, parse_json


@pytest.mark.parametrize("before", range(11))
def test_a_number_of_too_many_digits_is_seen_wherever_it_stands(before: int) -> None:
    text = "[" + " " * before + "{}]"
    assert parse_json(text.format("7" * MAX_DIGITS), "x") == [int("7" * MAX_DIGITS)]
    with pytest.raises(UserError, match=f"a number has {MAX_DIGITS + 1} digits"):
        parse_json(text.format("7" * (MAX_DIGITS + 1)), "x")
