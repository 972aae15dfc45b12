"""The configuration: checked against its schema, defaults filled in, typos told."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.dtypes import dtype_code
from shardmerge.errors import UserError, did_you_mean
from shardmerge.layout import parse_size

SCHEMA = Path(__file__).parents[2] / "config" / "schemas" / "config.schema.json"


@dataclass(frozen=True)
class Settings:
    """The configuration with defaults; keys as in config/README.md."""

    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def delta_dtype(self) -> str | None:
        name = self.values["delta_dtype"]
        return None if name is None else dtype_code(name, "configuration: delta_dtype")

    @property
    def max_shard_size(self) -> int | None:
        return parse_size(self.values["max_shard_size"])

    @property
    def disk_budget(self) -> int | None:
        return parse_size(self.values["disk_budget"])

    @property
    def measured(self) -> tuple[str, ...]:
        """What benchmarks run on, as the configuration names it; nothing without tasks."""
        benchmark = self.values["benchmark"]
        return tuple(benchmark["models"]) if benchmark["tasks"] else ()

    def planned(self) -> dict[str, Any]:
        """Return the part that the plan depends on."""
        keys = ("sources", "stages", "numerics", "deltas", "delta_dtype", "max_shard_size")
        keys += (
            "allow_nonfinite",
            "allow_pickle",
            "results",
            "keep_sources",
            "disk_budget",
            "norm_merge",
            "silence",
            "device",
        )
        return {key: self.values[key] for key in keys} | {"measured": self.measured}


def load_settings(config: Mapping[str, Any]) -> Settings:
    """Return the settings that a configuration makes.

    Raises:
        UserError: Names the key, what is wrong with it, and what was probably meant.
    """
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    values = copy.deepcopy(dict(config))
    _fill_defaults(values, schema)
    errors = sorted(
        Draft202012Validator(schema).iter_errors(values), key=lambda e: [str(p) for p in e.path]
    )
    if errors:
        raise _explain(errors[0])
    settings = Settings(values)
    _ = (
        settings.max_shard_size,
        settings.disk_budget,
        settings.delta_dtype,
    )  # tells their mistakes now
    norms = settings["norm_merge"]
    words = {norms} if isinstance(norms, str) else set(norms.values())
    if settings["numerics"] != "float32" and "geometric" in words:
        raise UserError(
            f"`geometric` does not go with `numerics: {settings['numerics']}`, which only adds",
            "configuration: norm_merge",
            "Leave one of the two out.",
        )
    return settings


def own_config(
    config: Mapping[str, Any], given: Mapping[str, Any], file: Path
) -> Mapping[str, Any]:
    """Return the configuration without the demo's settings where other recipes are asked for.

    Args:
        config: ``given`` laid over what the file holds.
        given: What the command line gave, in files and single keys.
        file: The workflow's own configuration, which as shipped describes the demo. Where it
            names other recipes it is a user's, and stays in force.
    """
    if "recipes" not in given or not file.is_file():
        return config
    import yaml

    own = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    demo = json.loads(SCHEMA.read_text(encoding="utf-8"))["properties"]["recipes"]["default"]
    return given if own.get("recipes") == demo != given["recipes"] else config


def explain_options(settings: Settings) -> list[str]:
    """Return the command line of ``explain.py`` for all recipes of a configuration."""
    stages, norms = settings["stages"], settings["norm_merge"]
    pairs = [norms] if isinstance(norms, str) else [f"{k}={v}" for k, v in norms.items()]
    options = {
        "--stages": [stages] if isinstance(stages, str) else stages,
        "--norm-merge": pairs,
        "--silence": settings["silence"],
    }
    return [*settings["recipes"], *(w for key, values in options.items() for w in (key, *values))]


def _fill_defaults(values: dict[str, Any], schema: Mapping[str, Any]) -> None:
    for key, rule in schema.get("properties", {}).items():
        if key not in values and "default" in rule:
            values[key] = copy.deepcopy(rule["default"])
        if isinstance(values.get(key), dict):
            _fill_defaults(values[key], rule)


def _explain(error: Any) -> UserError:
    key = ".".join(str(part) for part in error.absolute_path)
    where = f"configuration: {key}" if key else "configuration"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(k for k in error.instance if k not in known)
        return UserError(f"unknown key {unknown!r}", where, did_you_mean(unknown, known))
    if error.validator == "enum":
        allowed = [str(value) for value in error.validator_value]
        return UserError(
            f"{error.instance!r} is not allowed", where, did_you_mean(error.instance, allowed)
        )
    if error.validator_value == "array" and isinstance(error.instance, str):
        return UserError(f"{error.instance!r} is no list", where, f"Write `[{error.instance}]`.")
    if error.validator == "anyOf":
        # Of the forms that the key may have, the one that fits furthest tells what is wrong.
        best = max(error.context, key=lambda e: (len(e.path), e.validator not in ("type", "const")))
        if best.validator != "type":
            return _explain(best)
    return UserError(error.message, where, error.schema.get("description"))
