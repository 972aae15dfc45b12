"""The demo's models are the same where nothing is there that only Linux has, nor torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from helpers.workflow import DEMO_NAME, REPOSITORY, demo

MASKED = REPOSITORY / "tests" / "helpers" / "masked"


@pytest.mark.slow
def test_models_without_all_of_it(tmp_path: Path) -> None:
    masks = re.findall(
        r'^    "([\w-]+)": ',
        (MASKED / "sitecustomize.py").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    plain, masked = demo(tmp_path / "plain"), demo(tmp_path / "masked")
    plain.build("models")
    paths = os.pathsep.join(filter(None, (str(MASKED), os.environ.get("PYTHONPATH"))))
    masked.build("models", env={"MASKED": ",".join(masks), "PYTHONPATH": paths})
    assert len(masked.shards(DEMO_NAME)) == 6
    assert masked.shards(DEMO_NAME) == plain.shards(DEMO_NAME)
