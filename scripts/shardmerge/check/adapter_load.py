"""Does peft load a LoRA adapter on its base? Offline, without remote code, on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.check.load import class_of, load_base, quiet
from shardmerge.check.running import failure, run_model


def try_adapter(folder: Path, base: Path, *, weights: bool) -> dict[str, Any]:
    """Load an adapter on its base, and let the two generate.

    Args:
        folder: The adapter's.
        base: The base's.
        weights: Whether to read the base's weights. If not, the base has its architecture only, on
            torch's meta device: names and shapes of the adapter are compared with its modules.

    Returns:
        What was done, as JSON-able data.

    Raises:
        UserError: If peft cannot load it, or a tensor has no place, or a module no tensor.
    """
    from peft import PeftConfig, PeftModel

    with quiet(), warnings.catch_warnings():
        # that loading onto the meta device changes nothing
        warnings.filterwarnings("ignore", "for .*copying from a non-meta parameter")
        model = load_base(base) if weights else _architecture(base)
        name = type(model).__name__
        try:
            config = PeftConfig.from_pretrained(str(folder.resolve()))
            model = PeftModel(model, config)
            result = model.load_adapter(
                str(folder.resolve()),
                "default",
                torch_device="cpu",
                local_files_only=True,
            )
        except Exception as error:
            raise UserError(f"peft cannot load it: {failure(error)}", str(folder)) from error
        for keys, what in (
            (result.missing_keys, "has nothing for the module"),
            (result.unexpected_keys, "has a tensor that the base has no module for:"),
        ):
            if keys:
                raise UserError(f"{what} {min(keys)!r} ({len(keys)} in all)", str(folder))
        counted = sum(p.numel() for n, p in model.named_parameters() if _is_adapters(n))
        found = {
            "loaded": "weights" if weights else "architecture",
            "architecture": name,
            "parameters": counted,
        }
        return found | (run_model(model.get_base_model(), base, False) if weights else {})


def _is_adapters(name: str) -> bool:
    return "lora_" in name or "modules_to_save.default" in name


def _architecture(base: Path) -> Any:
    """Return a model without weights, from its config.json alone."""
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            str(base.resolve()), local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            return class_of(config)._from_config(config)
    except Exception as error:
        raise UserError(f"transformers cannot load it: {failure(error)}", str(base)) from error
