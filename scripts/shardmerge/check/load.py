"""Does transformers load it? Offline, without remote code, on the CPU, and with little memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.base.printable import printable

#: Files of which any one makes transformers find a tokenizer.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
#: Tokens that are generated to see that the model runs, and after a text to see what it says.
_TOKENS, _TEXT_TOKENS = 4, 16
#: The text that it goes on with.
PROMPT = "Once upon a time"


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
    if not any((folder / name).exists() for name in _TOKENIZERS):
        return {"tokenizer": "none"}
    with _quiet():
        try:
            tokenizer = _tokenizer(folder)
            tokenizer.decode(tokenizer("Hello")["input_ids"])
        except ImportError as error:  # nothing is wrong with the model
            return {"tokenizer": f"not loaded: {_first_line(error)}"}
        except Exception as error:
            raise UserError(
                f"transformers cannot load the tokenizer: {_reason(error)}", str(folder)
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


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(folder.resolve()), local_files_only=True, trust_remote_code=False
    )


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
    with _quiet():
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
            found |= _generate(model, folder, allow_nonfinite)
        return found


def _load(folder: Path, weights: bool) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig

    path, safe = str(folder.resolve()), {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **safe)
        return _class_of(config).from_pretrained(
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
            f"transformers cannot load it: {_reason(error)}",
            str(folder),
            "The model is built and verified all the same: the target `models` does without this.",
        ) from error


def _class_of(config: Any) -> Any:
    """Return the class that a model's ``architectures`` names, else one that suits its config."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    for name in config.architectures or ():
        named = getattr(transformers, str(name), None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def _start(config: Any) -> int:
    """Return a token to begin with; not every model has one for the beginning of texts."""
    for name in ("bos_token_id", "decoder_start_token_id", "cls_token_id"):
        if isinstance(token := getattr(config, name, None), int):
            return token
    return 0


@dataclass(frozen=True)
class _Prompt:
    """What a model goes on with: a text's tokens, or where there is no tokenizer a first one."""

    tokens: list[int]
    count: int
    tokenizer: Any = None

    def told(self, generated: list[int]) -> dict[str, Any]:
        """Return what was generated, as one printable line too."""
        text = None
        if self.tokenizer is not None:
            text = printable(self.tokenizer.decode(generated, clean_up_tokenization_spaces=False))
        prompt = PROMPT if self.tokenizer is not None else None
        return {"prompt": prompt, "generated": generated, "text": text}


def _prompt(folder: Path, text: Any) -> _Prompt:
    """Return the text to go on with if a model's tokenizer can write it and there is room.

    Args:
        folder: The model's.
        text: Its config, of its text part.
    """
    plain = _Prompt([_start(text)], _TOKENS)
    if not any((folder / name).exists() for name in _TOKENIZERS):
        return plain
    try:
        tokenizer = _tokenizer(folder)
        tokens = list(tokenizer(PROMPT)["input_ids"])
    except Exception:  # ``load_tokenizer`` says why
        return plain
    room = getattr(text, "max_position_embeddings", None) or len(tokens) + _TEXT_TOKENS
    rows = getattr(text, "vocab_size", None) or 0
    if not tokens or max(tokens) >= rows or len(tokens) + _TEXT_TOKENS > room:
        return plain
    return _Prompt(tokens, _TEXT_TOKENS, tokenizer)


def _generate(model: Any, folder: Path, allow_nonfinite: bool) -> dict[str, Any]:
    """Compute the output for one text, and let a model that can do so generate.

    Models that read no text are not run, only loaded.
    """
    import torch
    from transformers import GenerationConfig

    text = model.config.get_text_config()
    start = _start(text)
    if model.main_input_name != "input_ids":
        return {"generated": None}
    prompt = _prompt(folder, text)
    tokens = torch.tensor([prompt.tokens])
    decoded = {"decoder_input_ids": torch.tensor([[start]])} if text.is_encoder_decoder else {}
    try:
        with torch.inference_mode():
            made = model(input_ids=tokens, **decoded)
            finite = bool(torch.isfinite(made[0]).all())
            if not finite and not allow_nonfinite:
                raise UserError("computes infinite or NaN values", str(folder))
            if not model.can_generate():
                return {"generated": None, "finite": finite}
            # greedy and without an end, whatever the model's own settings are
            generation = GenerationConfig(
                max_new_tokens=prompt.count,
                min_new_tokens=prompt.count,
                do_sample=False,
                pad_token_id=start,
                decoder_start_token_id=start,
            )
            generated = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), generation_config=generation
            )
            before = 1 if text.is_encoder_decoder else len(prompt.tokens)
            new = generated[0, before:].tolist()
            told = prompt.told(new)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot generate: {_reason(error)}", str(folder)) from error
    if len(new) != prompt.count:
        raise UserError(f"generated {len(new)} tokens of {prompt.count}", str(folder))
    return {**told, "finite": finite}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it needs code of its own, which is never run here"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
