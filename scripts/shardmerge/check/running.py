"""Running a loaded model on a text or an empty picture: what it computes must be finite."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.printable import printable

#: Files of which any one makes transformers find a tokenizer.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
#: Tokens that are generated to see that the model runs, and after a text to see what it says.
_TOKENS, _TEXT_TOKENS = 4, 16
#: Pixels of a side of a picture that a model is shown.
_LARGEST_PICTURE = 512
#: The text that it goes on with.
PROMPT = "Once upon a time"


def auto_tokenizer(folder: Path) -> Any:
    """Return a model's tokenizer as transformers finds it: offline, without its own code."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(folder.resolve()), local_files_only=True, trust_remote_code=False
    )


def _start(config: Any) -> int:
    """Return a token to begin with; not every model has one for the beginning of texts."""
    rows = getattr(config, "vocab_size", None) or 1
    for name in ("bos_token_id", "decoder_start_token_id", "cls_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int) and 0 <= token < rows:
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
    if not any((folder / name).exists() for name in TOKENIZERS):
        return plain
    try:
        tokenizer = auto_tokenizer(folder)
        tokens = list(tokenizer(PROMPT)["input_ids"])
    except Exception:  # ``load_tokenizer`` says why
        return plain
    room = getattr(text, "max_position_embeddings", None) or len(tokens) + _TEXT_TOKENS
    rows = getattr(text, "vocab_size", None) or 0
    if not tokens or max(tokens) >= rows or len(tokens) + _TEXT_TOKENS > room:
        return plain
    return _Prompt(tokens, _TEXT_TOKENS, tokenizer)


def run_model(model: Any, folder: Path, allow_nonfinite: bool) -> dict[str, Any]:
    """Compute the output for one text, and let a model that can do so generate.

    Models that read pictures and do not generate get an empty one. What reads neither is not run,
    only loaded.

    Args:
        model: As transformers loaded it.
        folder: The model's.
        allow_nonfinite: Whether what it computes may be infinite or NaN.

    Returns:
        ``generated``, None if it does not generate; and unless it was not run, ``finite``.

    Raises:
        UserError: If it fails.
    """
    import torch
    from transformers import GenerationConfig

    text = model.config.get_text_config()
    start = _start(text)
    if _sees(model):
        return _look(model, start, folder, allow_nonfinite)
    if model.main_input_name != "input_ids":
        return {"generated": None}
    prompt = _prompt(folder, text)
    tokens = torch.tensor([prompt.tokens])
    decoded = {"decoder_input_ids": torch.tensor([[start]])} if text.is_encoder_decoder else {}
    try:
        with torch.inference_mode():
            made = model(input_ids=tokens, **decoded)
            finite = _is_finite(made, folder, allow_nonfinite)
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
        raise UserError(f"cannot generate: {failure(error)}", str(folder)) from error
    if len(new) != prompt.count:
        raise UserError(f"generated {len(new)} tokens of {prompt.count}", str(folder))
    return {**told, "finite": finite}


def _is_finite(made: Any, folder: Path, allow_nonfinite: bool) -> bool:
    import torch

    finite = bool(torch.isfinite(made[0]).all())
    if not finite and not allow_nonfinite:
        raise UserError("computes infinite or NaN values", str(folder))
    return finite


def _sees(model: Any) -> bool:
    """Whether a model needs a picture and makes no text: a vision model, or one as CLIP."""
    asked = inspect.signature(model.forward).parameters
    return "pixel_values" in asked and not model.can_generate()


def _look(model: Any, start: int, folder: Path, allow_nonfinite: bool) -> dict[str, Any]:
    """Compute the output for an empty picture, where that is one of a size that config tells."""
    import torch

    vision = getattr(model.config, "vision_config", None) or model.config
    size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
    if type(size) is not int or not 0 < size <= _LARGEST_PICTURE or type(channels) is not int:
        return {"generated": None}
    given = {"pixel_values": torch.zeros(1, channels, size, size, dtype=model.dtype)}
    if "input_ids" in inspect.signature(model.forward).parameters:
        given["input_ids"] = torch.tensor([[start]])
    try:
        with torch.inference_mode():
            made = model(**given)
    except Exception:  # of videos, of several pictures: it takes another form, nothing is wrong
        return {"generated": None}
    return {"generated": None, "finite": _is_finite(made, folder, allow_nonfinite)}


def failure(error: Exception) -> str:
    """Return in one line why transformers failed."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own, which is never run here"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
