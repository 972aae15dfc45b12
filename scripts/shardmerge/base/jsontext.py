"""JSON of strangers: read whole within limits, or refused with a sentence.

What is returned keeps to the limits below in length, depth and size of numbers, and every text in
it can be written as UTF-8. So no caller has to check this again.
"""

from __future__ import annotations

import json
import re
from typing import Any

from shardmerge.base.errors import UserError

#: Bytes of a text; the largest tokenizers have a fifth of that.
MAX_BYTES = 200_000_000
#: Values in all, as the commas and brackets of the text tell.
MAX_VALUES = 8_000_000
#: Lists and objects within each other.
MAX_DEPTH = 200
#: Digits of a whole number. ``model_max_length`` has 31 in many tokenizers.
MAX_DIGITS = 100
#: How an escaped half of a character begins; two of them make one.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBER = re.compile(f"(?<![0-9])[0-9]{{{MAX_DIGITS + 1}}}")
#: What such a number leaves of itself in every tenth character, which is quicker to look through.
_TENTH = re.compile(f"[0-9]{{{MAX_DIGITS // 10},}}")


def parse_json(
    data: str | bytes, where: str, what: str = "is not JSON", unique: bool = False
) -> Any:
    """Return the value of a JSON text; infinite numbers and NaN may be among it.

    Args:
        data: The text, or its UTF-8.
        where: What to say in errors.
        what: What to say of a text that is none.
        unique: Whether a name that is given twice in an object is an error; if not, the last
            counts.

    Raises:
        UserError: If it is no JSON, or beyond a limit.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"has {len(data)} bytes, more than any real one", where)
    try:
        text = data if isinstance(data, str) else str(data, "utf-8")
        if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
            raise UserError(f"holds more than {MAX_VALUES} values", where)
        hook = _no_duplicates if unique else None
        # only a text that has so many digits in a row needs a look at each number
        digits = _whole if _has_long_number(text) else None
        value = json.loads(text, object_pairs_hook=hook, parse_int=digits)
    except UnicodeDecodeError:
        raise UserError(f"{what} (it is not UTF-8)", where) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} ({error})", where) from None
    if not _is_shallow(value):
        raise UserError(f"has more than {MAX_DEPTH} lists and objects within each other", where)
    if _HALF.search(text) and not _is_whole(value):
        raise UserError(f"{what} (it holds one half of a character, as `\\ud800` writes it)", where)
    return value


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is given twice")
    return table


def _has_long_number(text: str) -> bool:
    around = (
        text[max(0, 10 * found.start() - 10) : 10 * found.end() + 10]
        for found in _TENTH.finditer(text[::10])
    )
    return any(map(_NUMBER.search, around))


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


#: What the reader of JSON makes of objects and lists.
_NESTED = frozenset((dict, list))


def _is_shallow(value: Any) -> bool:
    level = [value] if type(value) in _NESTED else []
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in _NESTED
        ]
        if not level:
            return True
    return False


def _is_whole(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
