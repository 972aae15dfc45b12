"""What the installed transformers knows of the text decoders of models with several parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

#: Text decoders that have no class of their own: with text alone they compute what another does.
_RELATIVES = {
    "idefics": "llama",
    "mllama_text_model": "llama",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
#: Keys whose defaults follow from others, or name tokens.
_FOLLOW = ("layer_types", "model_type", "rope_parameters", "transformers_version", "dtype")
_TEXT = "text_config"


def text_models_text() -> str:
    """Return the table of the installed transformers, as the project keeps it."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = {k: v for k, v in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if isinstance(v, str)}
    data = {
        "made_by": "python -m tools.layouts",
        "transformers": transformers.__version__,
        "classes": dict(sorted(known.items())),
        "relatives": {kind: _relative(kind, like) for kind, like in sorted(_RELATIVES.items())},
        "parts": dict(sorted(_parts(CONFIG_MAPPING))),
    }
    return json.dumps(data, indent=1) + "\n"


def _relative(kind: str, like: str) -> dict[str, Any]:
    """Return a relative's type, and the defaults that the other does not share."""
    from transformers import AutoConfig

    own = _values(kind)
    other = AutoConfig.for_model(like).to_dict()
    defaults = {k: v for k, v in sorted(own.items()) if k in other and v != other[k]}
    defaults = {k: v for k, v in defaults.items() if k not in _FOLLOW and not _is_token(k)}
    rope = own.get("rope_parameters") or {}
    return {"type": like, "defaults": defaults | {"rope_theta": rope["rope_theta"]}}


def _values(kind: str) -> dict[str, Any]:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if kind in CONFIG_MAPPING_NAMES:
        return transformers.AutoConfig.for_model(kind).to_dict()
    for one in CONFIG_MAPPING_NAMES.values():
        sections = getattr(getattr(transformers, one, None), "sub_configs", {})
        found = sections.get(_TEXT)
        if getattr(found, "model_type", None) == kind:
            return found().to_dict()
    raise KeyError(kind)


def _parts(known: Any) -> Iterator[tuple[str, str]]:
    """Yield model types with the type of their text decoder where config.json does not say it."""
    for kind in known:
        try:
            cls = known[kind]
        except (ImportError, AttributeError):
            continue
        section = getattr(cls, "sub_configs", {}).get(_TEXT)
        if section is None:
            continue
        text = getattr(section, "model_type", "")
        if not text:  # any type may stand there: the default's
            try:
                text = cls().text_config.model_type
            except Exception:
                continue
        yield kind, text


def _is_token(key: str) -> bool:
    return key.endswith("_token_id")
