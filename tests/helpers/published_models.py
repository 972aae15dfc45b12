"""Tiny stand-ins for the models that the recipes of tests/parity/recipes name."""

from __future__ import annotations

from pathlib import Path

from helpers.adapter_cases import factors, write_adapter
from helpers.architectures import save_family
from helpers.tiny_tokenizers import WORDS, tokenized

LAYERS = 6
#: Models of one architecture with one tokenizer.
ALIKE = ("acme/base-7b", "acme/chat-7b", "acme/math-7b", "bolt/story-7b", "bolt/code-7b")
#: Of another vocabulary, with tokens and a template for chats.
CHATML = "bolt/chatml-7b"
ADAPTERS = ("core/lora-math", "core/lora-story", "core/lora-base")
FAMILIES = {
    "acme/qwen-1b": "qwen2",
    "acme/qwen-1b-chat": "qwen2",
    "acme/qwen-1b-code": "qwen2",
    "bolt/nemo-12b": "mistral",
    "bolt/nemo-12b-chat": "mistral",
    "acme/gpt-small": "gpt2",
}
#: Folders that recipes name as they lie on somebody's machine, and what stands for them here.
ELSEWHERE = {
    "../base": "acme/base-7b",
    "./checkpoints/epoch_2": "acme/chat-7b",
    "/data/cache/models--acme--math/snapshots/0123abcd": "acme/math-7b",
    "D:/models/tuned/final_2": "acme/chat-7b",
    "C:\\Users\\somebody\\Desktop\\models\\Base-12B": "acme/base-7b",
    "C:\\Users\\somebody\\Desktop\\models\\Chat-12B": "acme/chat-7b",
    "E:\\merge\\Story_12B": "bolt/story-7b",
}
_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def write_models(root: Path) -> dict[str, str]:
    """Write all stand-ins; return their folders by every reference that stands for one."""
    for seed, name in enumerate(ALIKE):
        tokenized(root / name, seed, WORDS, layers=LAYERS)
    added = {"<|im_start|>": True, "<|im_end|>": True}
    tokenized(root / CHATML, 9, WORDS[:5], added, layers=LAYERS, chat_template=_TEMPLATE)
    modules = {
        f"model.layers.{layer}.self_attn.{name}": (outputs, 16)
        for layer in range(LAYERS)
        for name, outputs in (("q_proj", 16), ("v_proj", 8))
    }
    for seed, name in enumerate(ADAPTERS):
        config = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        write_adapter(root / name, factors(modules, seed=seed), **config)
    for seed, (name, family) in enumerate(FAMILIES.items()):
        save_family(family, root / name, seed)
    names = (*ALIKE, CHATML, *ADAPTERS, *FAMILIES)
    folders = {name: str(root / name) for name in names}
    return folders | {name: folders[model] for name, model in ELSEWHERE.items()}
