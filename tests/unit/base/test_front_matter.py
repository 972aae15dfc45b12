"""Front matter of cards is what the Hub's own library reads there, without loading all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from shardmerge.base.errors import UserError
from shardmerge.base.front_matter import card_text

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.mark.parametrize(
    "value", ["mit", "a: b", "---", "x\n---\ny", "\r---\r", "no", "1.0", "é \u2028 ---", "'\"#"]
)
def test_the_hub_reads_what_was_put_in(value: str) -> None:
    data = ModelCardData(license=value, tags=[value, "merge"])
    card = ModelCard(card_text(data, "# Title\n\n---\n", "a model"))
    assert card.data.to_dict() == data.to_dict() == {"license": value, "tags": [value, "merge"]}
    assert card.text.strip() == "# Title\n\n---"


@pytest.mark.parametrize("block", ["license: mit\n---\ntags: [merge]", "license: MIT", "license:"])
def test_what_reads_differently_is_refused(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_yaml(self: Any) -> str:
        return block

    monkeypatch.setattr(ModelCardData, "to_yaml", to_yaml)
    with pytest.raises(UserError, match=r"(?s)a model.*front matter"):
        card_text(ModelCardData(license="mit", tags=["merge"]), "text", "a model")


def test_what_talks_to_the_hub_is_not_loaded() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from huggingface_hub import ModelCardData\n"
        "from shardmerge.base.front_matter import card_text\n"
        "card_text(ModelCardData(license='mit'), 'text', 'a model')\n"
        "print({'httpx', 'asyncio', 'huggingface_hub.hf_api'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
