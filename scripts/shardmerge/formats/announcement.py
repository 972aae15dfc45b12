"""How a model's files say that its weights are quantised: config.json and files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.formats.interface import Announcement

#: Files beside config.json that say it, and the method where they name none.
SIDE_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
#: The method where a table of settings names none.
UNNAMED = "unnamed"
#: Keys of config.json that say it.
KEYS = ("quantization_config", "compression_config")


def announcement(
    config: Mapping[str, Any], side_files: Mapping[str, Any], where: str = ""
) -> Announcement:
    """Return what a model's files say about how it is quantised.

    Args:
        config: config.json.
        side_files: Parsed files that ``SIDE_FILES`` names, by name.
        where: The model, for errors.

    Raises:
        UserError: If what they say is not a table of settings.
    """
    for key, table in _tables(config):
        place = f"{where}/config.json" if where else "config.json"
        return _of_config(_settings(table, key, place), place)
    for name, method in SIDE_FILES.items():
        if side_files.get(name) is not None:
            place = f"{where}/{name}" if where else name
            return _of_side_file(_settings(side_files[name], name, place), method, place)
    return Announcement()


def _tables(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the tables that config.json has, of the whole model before its text part."""
    text = config.get("text_config")
    levels = [config, text] if isinstance(text, Mapping) else [config]
    return [(key, level[key]) for level in levels for key in KEYS if level.get(key)]


def _settings(table: Any, key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise UserError(f"has a {key} that is not a table of settings", where)
    return table


def _of_config(settings: Mapping[str, Any], where: str) -> Announcement:
    """Return what ``quantization_config`` says; older ones name no method."""
    inner = settings.get("quantization_config")
    if isinstance(inner, Mapping):
        settings = {**settings, **inner}
    method = Announcement("", settings, where).text("quant_method")
    if not method and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
        method = "bitsandbytes"
    if not method and "config_groups" in settings:
        method = "compressed-tensors"
    if not method and "quant_algo" in settings:
        method = "modelopt"
    return Announcement(method or UNNAMED, settings, where)


def _of_side_file(settings: Mapping[str, Any], method: str, where: str) -> Announcement:
    inner = settings.get("quantization")
    if method == "modelopt" and isinstance(inner, Mapping):
        settings = inner
    named = Announcement("", settings, where).text("quant_method")
    return Announcement(named or method, settings, where)
