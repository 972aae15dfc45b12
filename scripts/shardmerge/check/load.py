"""Does transformers load it? Offline, without remote code, on the CPU, and with little memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.check.running import TOKENIZERS, auto_tokenizer, failure, first_line, run_model


def stay_offline() -> None:
    """Keep this process from the network; call it before transformers is imported."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def load_tokenizer(
    folder: Path, vocabulary: str | None = None, count: int | None = None
) -> dict[str, Any]:
    """Load a model's tokenizer, if it has one, and encode a text with it.

    Args:
        folder: The model's.
        vocabulary: Digest of its tokens' ids, if they were written anew.
        count: How many tokens these were.

    Returns:
        ``{"tokenizer": ...}``: the number of its tokens, or why it was not loaded.

    Raises:
        UserError: If transformers cannot load it, or finds other tokens in it than were written.
    """
    if not any((folder / name).exists() for name in TOKENIZERS):
        return {"tokenizer": "none"}
    with quiet():
        try:
            tokenizer = auto_tokenizer(folder)
            tokenizer.decode(tokenizer("Hello")["input_ids"])
        except ImportError as error:  # nothing is wrong with the model
            return {"tokenizer": f"not loaded: {first_line(error)}"}
        except Exception as error:
            raise UserError(
                f"transformers cannot load the tokenizer: {failure(error)}", str(folder)
            ) from error
        found = tokenizer.get_vocab()
        if vocabulary is not None and vocabulary != digest(dict(found)):
            raise UserError(
                f"transformers finds {len(found)} tokens in the tokenizer, not the "
                f"{count} that the embeddings were merged for",
                str(folder),
                "The tokenizer's class may add tokens of its own when it loads.",
            )
        return {"tokenizer": len(tokenizer)}


def load_model(folder: Path, *, weights: bool, allow_nonfinite: bool = False) -> dict[str, Any]:
    """Load a model and let it generate, or only match its files with its architecture.

    Args:
        folder: The model's.
        weights: Whether to read the weights. If not, all parameters stay on torch's meta device:
            names and shapes are compared, and next to no memory is used.
        allow_nonfinite: Whether what it computes may be infinite or NaN.

    Returns:
        What was done, as JSON-able data. ``generated`` holds the tokens that a model's greedy
        choice adds to ``prompt``, and ``text`` what its tokenizer makes of them; both are None
        without a tokenizer.

    Raises:
        UserError: If transformers cannot load it, or lacks a parameter, or the model fails.
    """
    with quiet():
        model, report = _load(folder, weights)
        for key, what in (
            ("missing_keys", "lacks the parameter"),
            ("mismatched_keys", "has another shape than the architecture for"),
        ):
            if report[key]:
                first = min(str(k if isinstance(k, str) else k[0]) for k in report[key])
                raise UserError(f"{what} {first!r} ({len(report[key])} in all)", str(folder))
        found: dict[str, Any] = {
            "loaded": "weights" if weights else "architecture",
            "architecture": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "unused": sorted(map(str, report["unexpected_keys"])),
        }
        if weights:
            found |= {"loaded_dtype": str(model.dtype).removeprefix("torch.")}
            found |= run_model(model, folder, allow_nonfinite)
        return found


def load_base(folder: Path) -> Any:
    """Return a model with its weights, as transformers loads it.

    Raises:
        UserError: If it cannot.
    """
    return _load(folder, True)[0]


def _load(folder: Path, weights: bool) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig

    path, safe = str(folder.resolve()), {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **safe)
        return class_of(config).from_pretrained(
            path,
            config=config,
            dtype="auto",
            use_safetensors=True,
            output_loading_info=True,
            device_map="cpu" if weights else "meta",
            **safe,
        )
    except Exception as error:
        raise UserError(
            f"transformers cannot load it: {failure(error)}",
            str(folder),
            "The model is built and verified all the same: the target `models` does without this.",
        ) from error


def class_of(config: Any) -> Any:
    """Return the class that a model's ``architectures`` names, else one that suits its config."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    for name in config.architectures or ():
        named = getattr(transformers, str(name), None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from telling more than errors."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
