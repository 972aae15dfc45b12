"""Text of large tables in which many keys have one object."""

import json

from shardmerge.base.digest import digest
from shardmerge.base.sharedjson import shared_digest, shared_json

TERMS = [["a", 0.5], ["ü", 1e-30]]
TABLE = {
    "z": {f"t{i}": TERMS for i in (3, 1, 2)},
    'a "quoted" name': [{"x": TERMS, "b": None}, {"x": TERMS}, 1],
    "empty": [{}, [], {"k": {}}],
    "plain": [True, 1, 1.0, -0.0, "é"],
}


def test_texts_are_those_of_json() -> None:
    assert shared_json(TABLE) == json.dumps(TABLE)
    assert shared_digest(TABLE) == digest(TABLE)
    assert shared_json(TERMS) == json.dumps(TERMS)


def test_equal_values_of_other_types_are_not_taken_for_each_other() -> None:
    values = {"a": 1, "b": 1.0, "c": True}
    assert shared_json(values) == '{"a": 1, "b": 1.0, "c": true}'
    assert shared_digest(values) == digest(values)
