"""What a model makes of prompts: kept over kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_tokenizers import WORDS, tokenized
from shardmerge.base.unfinished import Keeping
from shardmerge.benchmark.hidden import read_prompts

_PROMPTS = [[["the cat"], []], [["dog ran"], ["big"]], [["red", "sat the"], []]]


def test_a_killed_job_reads_the_rest_alone(tmp_path: Path) -> None:
    model = tokenized(tmp_path / "model", 0, WORDS, {"<s>": True}, bos_token="<s>")
    whole, made = tmp_path / "whole", tmp_path / "made"
    read_prompts(model, _PROMPTS, "hidden", whole)
    always = Keeping("job", least=0.0, share=1.0)

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_prompts(model, _PROMPTS, "hidden", made, keeping=always, progress=kill)
    again: list[int] = []
    read_prompts(
        model, _PROMPTS, "hidden", made, keeping=always, progress=lambda i, _: again.append(i)
    )
    assert again == [3]
    assert made.read_bytes() == whole.read_bytes()
