"""What a card says of the methods, and of how to use the model."""

from __future__ import annotations

from collections.abc import Iterable

from shardmerge.algebra.call_terms import declared
from shardmerge.base.markdown import block, code, link

#: Where the files are before anybody has uploaded them.
_PLACE = "PATH_OR_NAME"


def describe_methods(names: Iterable[str]) -> str:
    """Return a line for each merge method: what it does, and the paper that it is from.

    Args:
        names: As recipes write them, one for each stage.
    """
    lines = []
    for name in dict.fromkeys(names):
        if found := declared(name):
            told = f"{found.title} ({code(name)}): {_first_sentence(found.summary)}"
            lines.append(f"- {told} {link('reference', found.reference)}")
    return "\n".join(lines) + "\n" if lines else ""


def usage(pipeline: str, dtype: str | None) -> str:
    """Return how to load the model with transformers and to serve it with vLLM.

    Args:
        pipeline: The task that the Hub lists it under; only for text there is an example.
        dtype: Type of its tensors, or None where they differ.
    """
    if pipeline != "text-generation":
        return ""
    kind = f'"{dtype}"' if dtype else '"auto"'
    python = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'name = "{_PLACE}"  # this repository, or the folder of the files\n'
        "tokenizer = AutoTokenizer.from_pretrained(name)\n"
        f'model = AutoModelForCausalLM.from_pretrained(name, dtype={kind}, device_map="auto")\n'
        'inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))\n"
    )
    serve = block(f"vllm serve {_PLACE}", "bash")
    return f"{block(python, 'python')}\nOr serve it with vLLM:\n\n{serve}"


def _first_sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
