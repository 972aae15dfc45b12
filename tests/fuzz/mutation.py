"""Inputs that are almost right: real ones, changed here and there by a seeded generator."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

Mutate = Callable[[random.Random, bytes], bytes]

#: Values that somebody did not think of, as JSON has them.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 10**4, 4 * 10**7, 10**8, 10**10, 10**12, 10**20),
    *(2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**100, 10**400, 10**5000),
    *(0.0, -0.0, 0.5, 1.5, 1e-320, 1e300, 1e308, -1e308, float("inf"), float("nan")),
    *("", " ", "a", "0", "1e400", "true", "null", "é", "\u202e", "\ud800", "\x00", "\x1b[31m"),
    *("\n", "a" * 300, "a" * 5000, "9" * 5000, "..", "../a", "/etc/passwd", "~", "-", "-x"),
    *("$(touch x)", "'", '"', "`id`", "{x}", "%s", "%(a)s", "([a-z._0-9]+)+!", "(?P<a>", "a{9999}"),
    *("model.layers.40000000.x.weight", "model.layers." + "9" * 20 + ".x.weight", "a@b", "a+b"),
    *([], {}, [[]], [None], {"": None}, {"a": {}}, [0] * 40, ["a", 1, None], [2**63 - 1] * 50),
)
_YAML = (
    *(
        "2001-99-99",
        "2001-01-01",
        "!!int ''",
        "!!bool x",
        "!!timestamp x",
        "!!float ''",
        "!!null x",
    ),
    *("!!binary '*'", "!!set {a}", "!!omap [a]", "!!python/name:os.system", "!x y", "&a [*a]"),
    *("&a {<<: *a}", "{<<: [*a, *a]}", "<<: 1", "{? [a] : b}", "9" * 5000, "0x" + "f" * 400),
    *("1.0e+308", "-1.0e+308", ".inf", ".nan", "1:60:60", "0o7", "07", "1_000", "~", "=", "yes"),
    *("[]", "{}", "[[[[]]]]", "''", '"\\ud800"', '"\\x07"', "|\n  a", ">-\n  b", "*nothing", "%x"),
    *("0", "-1", "1000000000000", "1e400", "base", "union", "linear", "slerp", "passthrough"),
    *("a+b", "a@b", "a@@", "+", "../x", "/", "x" * 400, "\u2028", "é", "\t", "[0, 2]", "[2, 0]"),
)
_WORD = re.compile(r"[\w.+/@-]+")


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return a text or binary file with some bytes changed, lost, doubled or put in."""
    changed = bytearray(data)
    for _ in range(_few(rng)):
        place = rng.randrange(len(changed) + 1)
        length = min(_few(rng) * rng.choice((1, 1, 8)), len(changed) - place)
        match rng.randrange(6):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(changed):
                changed[place] = rng.choice(b'\x00\x01\x7f\x80\xff{}[]",:0189-eE.\\ \n')
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                changed[place:place] = rng.randbytes(_few(rng))
            case 5:
                del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Return a JSON text with some values changed; now and then some bytes instead."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    value = [json.loads(data)]
    try:
        for _ in range(_few(rng)):
            _change(rng, value)
        return json.dumps(value[0]).encode()
    except (ValueError, RecursionError):  # too long or too deep for Python's own writer
        return mutate_bytes(rng, data)


def mutate_yaml(rng: random.Random, data: bytes) -> bytes:
    """Return a YAML text with some words or lines changed."""
    if rng.random() < 0.1:
        return mutate_bytes(rng, data)
    lines = data.decode(errors="replace").split("\n")
    for _ in range(_few(rng)):
        place = rng.randrange(len(lines))
        match rng.randrange(7):
            case 0:
                lines[place] = " " * rng.randrange(6) + lines[place].lstrip()
            case 1:
                del lines[place]
                lines = lines or [""]
            case 2:
                lines.insert(place, rng.choice(lines))
            case _:
                words = list(_WORD.finditer(lines[place]))
                if words:
                    word = rng.choice(words)
                    new = rng.choice(_YAML) if rng.random() < 0.7 else _any_word(rng, lines)
                    lines[place] = lines[place][: word.start()] + new + lines[place][word.end() :]
    return "\n".join(lines).encode(errors="replace")


def _few(rng: random.Random) -> int:
    return rng.choice((1, 1, 1, 1, 2, 2, 3, 5))


def _any_word(rng: random.Random, lines: list[str]) -> str:
    return rng.choice(_WORD.findall(rng.choice(lines)) or [""])


def _change(rng: random.Random, root: list[Any]) -> None:
    """Change one value of a tree in place."""
    holders = [root]
    for holder in holders:  # it grows as it goes
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in inner if isinstance(value, dict | list) and value]
        if len(holders) > 500:
            break
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match rng.randrange(8):
        case 0 if holder is not root:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[_odd_text(rng)] = holder.pop(key)
        case 2 if isinstance(holder, dict):
            holder[rng.choice((key, _odd_text(rng)))] = copy.deepcopy(rng.choice(ODD))
        case 3 if isinstance(holder, list):
            holder += copy.deepcopy(holder[:3])
        case 4:
            other = rng.choice(holders)
            holder[key] = copy.deepcopy(
                rng.choice([*other.values()] if isinstance(other, dict) else other)
            )
        case 5:
            for _ in range(rng.choice((1, 3, 150, 400))):
                holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
        case 6 if type(holder[key]) is int:
            holder[key] += rng.choice((-1, 1, 8, -8, 1 << 32))
        case _:
            holder[key] = copy.deepcopy(rng.choice(ODD))


def _odd_text(rng: random.Random) -> str:
    return rng.choice([value for value in ODD if isinstance(value, str)])
