"""What a GGUF file says of its model, compared with the model's own configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardmerge.base.digest import canonical_json
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, read_text

#: Rope scalings that have the same name on both sides.
_SCALINGS = ("linear", "yarn")
#: Tensor that holds what other scalings come to.
FREQUENCIES = "rope_freqs.weight"
#: Kinds of tokenizer whose texts are cut by a rule that the file must name.
_CUT = ("gpt2",)


@dataclass(frozen=True)
class ModelFiles:
    """What of a model's small files the metadata is compared with.

    Args:
        config: ``config.json``, or the part of it that is about text.
        template: The chat template, None if there is none.
        tokens: Texts of the vocabulary by number, as far as tokenizer.json has them; added
            tokens are left out.
    """

    config: Mapping[str, Any]
    template: str | None
    tokens: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> ModelFiles:
        """Return those of a folder."""
        config = load_json(folder / "config.json")
        inner = config.get("text_config")
        config = config | inner if isinstance(inner, dict) else config
        return cls(config, _template(folder), _tokens(folder))


@dataclass
class MetadataComparison:
    """What was compared: keys that are right, wrong, or that no rule here is about."""

    right: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def see(self, key: str, found: Any, wanted: Any, same: bool | None = None) -> None:
        """Note a key."""
        if found == wanted if same is None else same:
            self.right[key] = _shown(found)
        else:
            self.wrong[key] = f"is {_shown(found)}, and the model says {_shown(wanted)}"


def compare_metadata(
    found: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], model: ModelFiles
) -> MetadataComparison:
    """Return how a GGUF file's metadata agree with the model.

    Args:
        found: The file's metadata.
        tensors: Shapes of its tensors, the fastest dimension first.
        model: What the model says.
    """
    seen = MetadataComparison()
    architecture = found.get("general.architecture")
    if not isinstance(architecture, str):
        seen.wrong["general.architecture"] = "is not there"
        return seen
    for key, value in _plain(model.config):
        name = f"{architecture}.{key}"
        if name in found:
            seen.see(name, found[name], value, math.isclose(found[name], value, rel_tol=1e-5))
        else:
            seen.unknown[name] = "the file does not say it"
    _compare_layers(seen, found, f"{architecture}.block_count", model.config)
    _compare_rope(seen, found, architecture, tensors, _rope(model.config))
    _compare_tokens(seen, found, tensors, model)
    return seen


def check_metadata(seen: MetadataComparison, where: str) -> None:
    """Refuse a file that says what the model does not.

    Raises:
        UserError: If so, with all of it.
    """
    if seen.wrong:
        told = "".join(f"\n  {key} {what}" for key, what in sorted(seen.wrong.items()))
        raise UserError(
            f"does not say what the model does:{told}",
            where,
            "llama.cpp would run another model than was built. Try a newer llama.cpp.",
        )


def _plain(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield what is one number on both sides."""
    base = _rope(config).get("rope_theta", config.get("rope_theta"))
    told = {
        "context_length": config.get("max_position_embeddings"),
        "embedding_length": config.get("hidden_size"),
        "attention.head_count": config.get("num_attention_heads"),
        "rope.freq_base": base,
    }
    yield from ((k, v) for k, v in told.items() if type(v) in (int, float))


def _compare_layers(
    seen: MetadataComparison, found: Mapping[str, Any], key: str, config: Mapping[str, Any]
) -> None:
    layers = config.get("num_hidden_layers")
    if type(layers) is int:
        predicting = config.get("num_nextn_predict_layers") or 0
        seen.see(key, found.get(key), layers, found.get(key) in (layers, layers + predicting))


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a configuration says of positions, under its names of two times."""
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(value := config.get(key), dict):
            return value
    return {}


def _compare_rope(
    seen: MetadataComparison,
    found: Mapping[str, Any],
    architecture: str,
    tensors: Mapping[str, tuple[int, ...]],
    rope: Mapping[str, Any],
) -> None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    prefix = f"{architecture}.rope.scaling"
    if kind in ("default", None):
        told = found.get(f"{prefix}.type", "none")
        seen.see(f"{prefix}.type", told, "none")
    elif kind in _SCALINGS:
        seen.see(f"{prefix}.type", found.get(f"{prefix}.type"), kind)
        _compare_number(seen, found, f"{prefix}.factor", rope.get("factor"))
        original = rope.get("original_max_position_embeddings")
        if kind == "yarn" and original is not None:
            _compare_number(seen, found, f"{prefix}.original_context_length", original)
    elif kind == "llama3":
        seen.see(FREQUENCIES, FREQUENCIES in tensors, True)
    else:
        seen.unknown[f"{prefix}.type"] = f"the model's scaling is {kind!r}"


def _compare_number(
    seen: MetadataComparison, found: Mapping[str, Any], key: str, wanted: Any
) -> None:
    value = found.get(key)
    both = type(value) in (int, float) and type(wanted) in (int, float)
    seen.see(key, value, wanted, both and math.isclose(value, wanted, rel_tol=1e-5))


def _compare_tokens(
    seen: MetadataComparison,
    found: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    model: ModelFiles,
) -> None:
    kind = found.get("tokenizer.ggml.model")
    seen.see("tokenizer.ggml.model", kind, "a kind of tokenizer", isinstance(kind, str))
    if kind in _CUT:
        cut = found.get("tokenizer.ggml.pre")
        known = isinstance(cut, str) and cut != "default"
        seen.see("tokenizer.ggml.pre", cut, "a rule that llama.cpp knows", known)
    tokens, rows = len(found.get("tokenizer.ggml.tokens", ())), tensors.get("token_embd.weight")
    if rows:
        seen.see("tokenizer.ggml.tokens", tokens, rows[-1])
    _compare_texts(seen, found.get("tokenizer.ggml.tokens", ()), model.tokens)
    size = model.config.get("vocab_size")
    if type(size) is int and rows:
        seen.see("vocabulary", rows[-1], size)
    for mark in ("bos", "eos"):
        _compare_mark(seen, found, f"tokenizer.ggml.{mark}_token_id", model.config, mark)
    told = found.get("tokenizer.chat_template")
    if told is not None or model.template is not None:
        seen.see("tokenizer.chat_template", told, model.template)


def _compare_texts(
    seen: MetadataComparison, found: Sequence[Any], wanted: Mapping[int, str]
) -> None:
    """Compare tokens one by one: files of a tokenizer may contradict each other."""
    other = [i for i, text in sorted(wanted.items()) if i >= len(found) or found[i] != text]
    if other:
        first = other[0]
        text = _shown(found[first]) if first < len(found) else "not there"
        seen.wrong["tokens"] = (
            f"differ from tokenizer.json in {len(other)}; token {first} is {text}, and not "
            f"{_shown(wanted[first])}"
        )


def _compare_mark(
    seen: MetadataComparison,
    found: Mapping[str, Any],
    key: str,
    config: Mapping[str, Any],
    mark: str,
) -> None:
    wanted = config.get(f"{mark}_token_id")
    wanted = wanted if isinstance(wanted, list) else [wanted]
    if key in found and any(type(value) is int for value in wanted):
        seen.see(key, found[key], wanted[0], found[key] in wanted)


def _template(folder: Path) -> str | None:
    """Return a model's chat template; where there are several, the one that is used."""
    if (path := folder / "chat_template.jinja").is_file():
        return read_text(path, exact=True)
    path = folder / "tokenizer_config.json"
    told = load_json(path).get("chat_template") if path.is_file() else None
    if isinstance(told, list):
        rows = [row for row in told if isinstance(row, dict)]
        told = next((r.get("template") for r in rows if r.get("name") == "default"), None)
    return told if isinstance(told, str) else None


def _tokens(folder: Path) -> dict[int, str]:
    """Return the texts of a vocabulary, less those that are also added tokens."""
    path = folder / "tokenizer.json"
    told = load_json(path) if path.is_file() else {}
    model = told.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # with scores
        pairs = enumerate(row[0] for row in vocabulary if isinstance(row, list) and row)
        found = dict(pairs)
    elif isinstance(vocabulary, dict):
        found = {i: text for text, i in vocabulary.items() if isinstance(i, int)}
    else:
        return {}
    added = told.get("added_tokens")
    rows = added if isinstance(added, list) else []
    for row in rows:
        found.pop(row.get("id") if isinstance(row, dict) else None, None)
    return found


def _shown(value: Any) -> str:
    """Return a value as a few words."""
    text = "not there" if value is None else canonical_json(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
