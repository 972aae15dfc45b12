"""The configuration: checked against its schema, defaults filled in, typos told."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shardmerge.base.dtypes import dtype_code, suggest
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.numerics import Numerics
from shardmerge.base.pathnames import check_path, check_text, check_word
from shardmerge.base.text import parse_size
from shardmerge.recipe.benchmark_entries import by_name, named_references
from shardmerge.recipe.schema import written_out

#: Keys that tell a recipe from a configuration.
_RECIPE_KEYS = ("merge_method", "slices", "modules", "base_model")
_DEMO = "resources/demo"
#: Folders of this project's that a configuration may name from anywhere.
_SHIPPED = ("config/recipes/", "config/tasks/", f"{_DEMO}/")
#: Keys whose texts may have lines.
_MAY_HAVE_LINES = re.compile(r"^card\.|\.(system_instruction|gen_kwargs|chat_template_args)\b")
SCHEMA = Path(__file__).parents[3] / "config" / "schemas" / "config.schema.json"


@dataclass(frozen=True)
class Settings:
    """The configuration with defaults; keys as in config/README.md."""

    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def numerics(self) -> Numerics:
        return Numerics(self.values["numerics"])

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
        """What benchmarks run on or compare with, as it is named; nothing without tasks."""
        benchmark = self.values["benchmark"]
        named = [*benchmark["models"], *named_references(benchmark)] if benchmark["tasks"] else []
        return tuple(dict.fromkeys(named))

    @property
    def sweeps(self) -> tuple[Mapping[str, Any], ...]:
        """The sweeps that are configured, as they are written, with defaults."""
        sweep = self.values["sweep"]
        return tuple(sweep) if isinstance(sweep, list) else (sweep,) if sweep else ()

    def planned(self) -> Settings:
        """Return the settings that a plan is made with: all but what the schema excepts.

        Of ``benchmark`` they have the models that are measured, since these must be whole.
        """
        rules = _schema()["properties"]
        values = {key: value for key, value in self.values.items() if _is_planned(rules[key])}
        measured = list(self.measured)
        return Settings(values | {"benchmark": {"models": measured, "tasks": measured}})


def load_settings(config: Mapping[str, Any]) -> Settings:
    """Return the settings that a configuration makes.

    Args:
        config: As Snakemake gives it: values within lists and maps of ``--config`` are texts.

    Raises:
        UserError: Names the key, what is wrong with it, and what was probably meant.
    """
    from jsonschema import Draft202012Validator

    schema = _schema()
    _check_no_recipe(config)
    if config.get("sweep"):
        config = {"recipes": [], **config}  # the demo is for those who say nothing
    try:
        values = read_texts(config, schema)
        _fill_defaults(values, schema)
        errors = sorted(
            Draft202012Validator(schema).iter_errors(values), key=lambda e: [str(p) for p in e.path]
        )
    except RecursionError:
        raise UserError("is nested too deeply", "configuration") from None
    if errors:
        raise _explain(errors[0])
    settings = Settings(values | {"benchmark": by_name(values["benchmark"])})
    if not (settings["recipes"] or settings["sweep"]):
        raise UserError("names no recipe", "configuration: recipes", "Write `[RECIPE.yaml]`.")
    _check_names(settings)
    _ = (
        settings.max_shard_size,
        settings.disk_budget,
        settings.delta_dtype,
    )  # tells their mistakes now
    norms = settings["norm_merge"]
    words = {norms} if isinstance(norms, str) else set(norms.values())
    if not settings.numerics.folds and "geometric" in words:
        raise UserError(
            f"`geometric` does not go with `numerics: {settings.numerics}`, which only adds",
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
    if not {"recipes", "sweep"} & given.keys() or not file.is_file():
        return config
    import yaml

    own = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    demo = _schema()["properties"]["recipes"]["default"]
    return given if own.get("recipes") == demo != given.get("recipes") else config


def with_shipped(settings: Settings, home: Path) -> Settings:
    """Return settings in which the demo is found from any folder.

    Args:
        settings: Their recipes, task files and models may be named as they lie in this project.
        home: Its folder. What is not in the working folder is taken from there.
    """

    def found(path: str | None) -> str | None:
        ours = bool(path) and path.startswith(_SHIPPED) and not Path(path).exists()
        return str(home / path) if ours and (home / path).exists() else path

    models = [f"{_DEMO}/{folder.name}" for folder in sorted((home / _DEMO).glob("*/"))]
    elsewhere = {name: there for name in models if (there := found(name)) != name}
    benchmark = settings["benchmark"]
    sweeps = [sweep | {"recipe": found(sweep["recipe"])} for sweep in settings.sweeps]
    changes = {
        "sweep": sweeps or None,
        "recipes": [found(path) for path in settings["recipes"]],
        "sources": elsewhere | settings["sources"],
        "benchmark": benchmark
        | {"include_path": found(benchmark["include_path"])}
        | {"probes": benchmark["probes"] | {"text": found(benchmark["probes"]["text"])}},
    }
    return Settings(settings.values | changes)


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


def _check_names(settings: Settings) -> None:
    """Refuse texts that cannot be the names that they stand for."""
    for key, text in _texts(settings.values):
        if not _MAY_HAVE_LINES.search(key):
            check_text(text, f"configuration: {key}")
    benchmark, stages, norms = (settings[key] for key in ("benchmark", "stages", "norm_merge"))
    paths = {
        "results": [settings["results"]],
        "recipes": settings["recipes"],
        **{f"sources.{key}": [folder] for key, folder in settings["sources"].items()},
        "benchmark.include_path": [benchmark["include_path"]] if benchmark["include_path"] else [],
        "exports.gguf.imatrix": [text for text in [settings["exports"]["gguf"]["imatrix"]] if text],
        "llama_cpp": [settings["llama_cpp"]] if settings["llama_cpp"] else [],
        "benchmark.probes.text": [text] if (text := benchmark["probes"]["text"]) else [],
        "stages": [stages] if isinstance(stages, str) else stages,
        "norm_merge": [] if isinstance(norms, str) else norms,
    }
    for key, texts in paths.items():
        for text in texts:
            check_path(text, f"configuration: {key}")
    for task in benchmark["tasks"]:
        check_word(task, "configuration: benchmark.tasks")
    for sweep in settings.sweeps:
        for key in ("recipe", "scratch"):
            if sweep[key]:
                check_path(sweep[key], f"configuration: sweep.{key}")
        if sweep["name"]:
            check_word(sweep["name"], "configuration: sweep.name")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts of a configuration, keys of tables too, each with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield key or str(name), str(name)
            yield from _texts(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


@cache
def _schema() -> Mapping[str, Any]:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return written_out(schema, schema)


def _form_of(value: Any, rule: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the form that a map or list is of, where a key may have several."""
    kind = {dict: "object", list: "array"}.get(type(value))
    return next((form for form in rule.get("anyOf", ()) if form.get("type") == kind), rule)


def _is_planned(rule: Mapping[str, Any]) -> bool:
    """Whether a plan depends on a key; one that says nothing else counts as such."""
    return rule.get("planned", True)


def read_texts(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a copy of a value in which texts are read as YAML where the schema wants no text.

    So ``--config keep_sources=false 'benchmark={limit: 5}'`` means what it says. A text that is
    no value of the wanted type either stays as it is, so that the error shows what was written.
    """
    if isinstance(value, Mapping | list):
        schema = _form_of(value, schema)
    if isinstance(value, Mapping):
        keys, others = schema.get("properties", {}), schema.get("additionalProperties")
        rest = others if isinstance(others, Mapping) else {}
        return {key: read_texts(item, keys.get(key, rest)) for key, item in value.items()}
    if isinstance(value, list):
        return [read_texts(item, schema.get("items", {})) for item in value]
    return _read_text(value, schema) if isinstance(value, str) and schema else value


def _read_text(text: str, schema: Mapping[str, Any]) -> Any:
    import yaml
    from jsonschema import Draft202012Validator

    may_be = schema.get("type", ())
    nothing = text in ("null", "~") and "null" in may_be and not isinstance(may_be, str)
    fits = Draft202012Validator(schema).is_valid
    if fits(text) and not nothing:
        return text
    try:
        read = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if isinstance(read, (dict, list)):
        read = read_texts(read, schema)
    return read if fits(read) else text


def _check_no_recipe(config: Mapping[str, Any]) -> None:
    """Tell who gives a recipe as the configuration what to write instead.

    Raises:
        UserError: If the configuration has a key that only recipes have.
    """
    if key := next((key for key in _RECIPE_KEYS if key in config), None):
        raise UserError(
            f"has the key `{key}`, so this is a recipe",
            "configuration",
            "Write `--config recipes='[RECIPE.yaml]'` instead of `--configfile RECIPE.yaml`.",
        )


def _fill_defaults(values: dict[str, Any], schema: Mapping[str, Any]) -> None:
    for key, rule in schema.get("properties", {}).items():
        if key not in values and "default" in rule:
            values[key] = copy.deepcopy(rule["default"])
        inner = values.get(key)
        form = _form_of(inner, rule)
        tables, form = (
            (inner, form.get("items", {})) if isinstance(inner, list) else ([inner], form)
        )
        for table in tables:
            # what an entry leaves open it takes from the table that it stands in
            if isinstance(table, dict) and not form.get("overrides"):
                _fill_defaults(table, form)


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
            f"{error.instance!r} is not allowed", where, suggest(error.instance, allowed)
        )
    if error.validator_value == "array" and isinstance(error.instance, str):
        return UserError(f"{error.instance!r} is no list", where, f"Write `[{error.instance}]`.")
    if error.validator == "anyOf":
        # A key may have several forms. The one that fits best tells what is wrong.
        best = max(error.context, key=lambda e: (len(e.path), e.validator not in ("type", "const")))
        if best.validator != "type":
            return _explain(best)
    return UserError(error.message, where, error.schema.get("description"))
