"""Words that are suggested in place of unknown ones."""

from __future__ import annotations

from shardmerge.base.errors import did_you_mean, misspelt


def test_a_word_in_other_case_is_the_nearest() -> None:
    """Its letters alone would be as near to others."""
    known = ["demo_B", "demo_C", "demo_copy"]
    assert misspelt("demo_b", known) == "demo_B"
    assert did_you_mean("DEMO_C", known) == "Did you mean 'demo_C'?"


def test_what_is_like_none_is_no_misspelling() -> None:
    assert misspelt("kl", ["demo_B"]) is None
    assert did_you_mean("kl", ["demo_B"]) == "Known here: demo_B."
