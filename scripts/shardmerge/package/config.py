"""config.json as text: values set, and not a byte else changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import parse_object
from shardmerge.plan.description import BuildDescription

#: What transformers calls a model's dtype, newest name first.
_DTYPE_KEYS = ("dtype", "torch_dtype")
_SPACE = re.compile(r"[ \t\n\r]*")


def set_dtype(config: str, dtype: str | None, where: str) -> str:
    """Return the text of a config.json with the model's dtype set and not a byte else changed.

    Args:
        config: The text.
        dtype: Name such as ``float16``, or None to leave the text as it is.
        where: What to say in errors.

    Raises:
        UserError: If it is not a JSON object.
    """
    table = parse_object(config, where)
    if dtype is None:
        return config
    keys = [key for key in _DTYPE_KEYS if key in table] or [_DTYPE_KEYS[0]]
    return set_values(config, dict.fromkeys(keys, dtype), where)


def output_config(config: str, description: BuildDescription, where: str) -> str:
    """Return the text of a build's config.json.

    Args:
        config: The text of its source's.
        description: Of the build: ``dtype``; ``config_whole``, what is begun with; ``config``, what
            else is set; ``config_removed``, what is taken out.
        where: What to say in errors.

    Raises:
        UserError: As ``set_values``.
    """
    if description.config_whole is not None:
        config = json.dumps(description.config_whole, indent=2, sort_keys=True) + "\n"
    text = set_dtype(config, description.dtype, where)
    text = set_values(text, description.config, where)
    return remove_keys(text, description.config_removed, where)


def set_values(config: str, values: Mapping[str, Any], where: str) -> str:
    """Return the text of a config.json with values set and not a byte else changed.

    Args:
        config: The text.
        values: By key; ``text_config.vocab_size`` is a key of the object under ``text_config``. A
            key that is not there is added as the last one of its object.
        where: What to say in errors.

    Raises:
        UserError: If it is not a JSON object, or a key's object is not there.
    """
    parse_object(config, where)
    for path, value in values.items():
        begin, key = _object_of(config, path, where)
        spans = _members(config, begin)
        found = [(b, e) for k, b, e in spans if k == key]
        if not found:
            config = _insert(config, begin, spans, f"{json.dumps(key)}: {json.dumps(value)}")
        for low, high in reversed(found):
            config = config[:low] + _set_as(config[low:high], value) + config[high:]
    return config


def remove_keys(config: str, paths: Iterable[str], where: str) -> str:
    """Return the text of a config.json without some keys and else as it was.

    Args:
        config: The text.
        paths: Keys as in ``set_values``; those that are not there are passed over.
        where: What to say in errors.

    Raises:
        UserError: If it is not a JSON object, or a key's object is not there.
    """
    parse_object(config, where)
    for path in paths:
        begin, key = _object_of(config, path, where)
        brace = config.index("{", begin) + 1
        ends = [brace, *(end for _, _, end in _members(config, begin))]
        found = [i for i, (k, _, _) in enumerate(_members(config, begin)) if k == key]
        for i in reversed(found):
            low, high = ends[i], ends[i + 1]
            comma = _skip(config, high)
            if i == 0 and config[comma] == ",":
                high = comma + 1
            config = config[:low] + config[high:]
    return config


def _object_of(config: str, path: str, where: str) -> tuple[int, str]:
    """Return where the object of a key begins, and the key in it."""
    begin = 0
    *parents, key = path.split(".")
    for parent in parents:
        begin = next((b for k, b, _ in _members(config, begin) if k == parent), -1)
        if begin < 0 or config[begin] != "{":
            raise UserError(f"has no object {parent!r}", where)
    return begin, key


def _members(text: str, begin: int) -> list[tuple[str, int, int]]:
    """Return key, and begin and end of the value, of each member of the object beginning there."""
    decode = json.JSONDecoder().raw_decode
    spans = []
    place = _skip(text, text.index("{", begin) + 1)
    while text[place] != "}":
        key, place = decode(text, place)
        low = _skip(text, _skip(text, place) + 1)
        high = decode(text, low)[1]
        spans.append((key, low, high))
        place = _skip(text, high)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return spans


def _insert(text: str, begin: int, spans: list[tuple[str, int, int]], member: str) -> str:
    """Return the text with a member more in the object that begins there, set as the last one."""
    brace = text.index("{", begin) + 1
    if not spans:
        return f"{text[:brace]}{member}{text[brace:]}"
    end = spans[-1][2]
    indentation = text[brace : _skip(text, brace)]
    return f"{text[:end]},{indentation}{member}{text[end:]}"


def _set_as(old: str, value: Any) -> str:
    """Return a value as text; a list is set as the old one is, an item a line or all in one."""
    lines = re.match(r"\[(\s*\n\s*)", old)
    if not isinstance(value, list) or not lines or not value:
        return json.dumps(value)
    close = re.search(r"\s*\]$", old)[0]
    return "[" + lines[1] + f",{lines[1]}".join(map(json.dumps, value)) + close


def _skip(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()
