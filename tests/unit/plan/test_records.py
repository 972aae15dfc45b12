"""Records of jobs are believed only if they have the form of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.built_model import VERIFIED
from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from shardmerge.base.forms import written
from shardmerge.plan.records import load_verified


class TestVerified:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "verify.json"

    def test_is_read_as_it_was_written(self, path: Path) -> None:
        path.write_text(json.dumps(VERIFIED))
        found = load_verified(path)
        assert found.copies == 100 and found.not_sampled == ()
        write_json(path, written(found))
        assert json.loads(path.read_text()) == VERIFIED
        assert load_verified(path) == found

    @pytest.mark.parametrize("wrong", [False, "true", 1, None])
    def test_not_passed(self, path: Path, wrong: Any) -> None:
        path.write_text(json.dumps(VERIFIED | {"passed": wrong}))
        with pytest.raises(UserError, match="does not say that the model passed"):
            load_verified(path)

    @pytest.mark.parametrize("key", [key for key in VERIFIED if key != "passed"])
    def test_every_key_counts(self, path: Path, key: str) -> None:
        path.write_text(json.dumps({k: v for k, v in VERIFIED.items() if k != key}))
        with pytest.raises(UserError, match=f"lacks '{key}'"):
            load_verified(path)

    def test_no_record(self, path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read"):
            load_verified(path)
