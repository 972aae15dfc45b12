"""How one model is measured in one task: options of lm-eval, and which of them decide results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shardmerge.base.digest import canonical_json, digest
from shardmerge.base.errors import UserError
from shardmerge.recipe.benchmark_entries import laid_over
from shardmerge.recipe.settings import load_settings

#: lm-eval's own default seeds: of Python, numpy, torch, and for the choice of examples.
SEEDS = (0, 1234, 1234, 1234)
#: Options that the first version had. They are in every identity, so that results stay valid.
_ALWAYS = ("limit", "num_fewshot", "batch_size", "device", "dtype", "include_path")
#: Options that change no result.
_NEVER = ("gpus", "allow_code_execution")
#: Arguments of the model that change no result.
_NO_RESULT = ("gpu_memory_utilization",)


@dataclass(frozen=True)
class EvalOptions:
    """How a task is run; names and meanings as in the configuration.

    Args:
        include_path: Folder of task files besides lm-eval's own.
        limit: Questions of each task (or their share, if below 1), or None for all.
        half: ``even`` or ``odd`` for the questions with such a number only, or None.
        num_fewshot: Examples in the prompt, or None for each task's own number.
        batch_size: Requests in a batch, or ``auto``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Type that the model computes in, or ``auto`` for its own.
        backend: lm-eval's name of what runs the model.
        gpus: GPUs that the model is spread over.
        model_args: Arguments of lm-eval's model.
        think_end_token: What ends a model's thoughts.
        apply_chat_template: Whether there is one, or its name.
        fewshot_as_multiturn: Whether examples are turns of the conversation.
        system_instruction: System prompt.
        gen_kwargs: Over the task's own settings of generation.
        seed: Seeds of Python, numpy, torch, and for the choice of examples.
        allow_code_execution: Whether a task may run what the model writes.
    """

    include_path: str | None = None
    limit: float | None = None
    half: str | None = None
    num_fewshot: int | None = None
    batch_size: int | str = 16
    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "hf"
    gpus: int = 1
    model_args: Mapping[str, Any] = field(default_factory=dict)
    think_end_token: str | int | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: tuple[int, ...] = SEEDS
    allow_code_execution: bool = False

    @property
    def further(self) -> dict[str, Any]:
        """The options that are not their defaults, less those that every identity has."""
        values, usual = asdict(self), asdict(EvalOptions())
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if key not in (*_ALWAYS, *_NEVER) and value != usual[key]
        }

    @property
    def gpus_asked(self) -> int:
        """GPUs that a job with these options asks for."""
        return 0 if self.device == "cpu" else self.gpus

    @property
    def model_options(self) -> dict[str, Any]:
        """The options that a model is loaded with: tasks that share a model share them."""
        keys = ("backend", "model_args", "think_end_token", "batch_size", "device", "dtype", "gpus")
        return {key: getattr(self, key) for key in keys}

    def asked(self, count: int) -> range:
        """Return the numbers of the questions that are asked of so many, by half and limit."""
        numbers = range(count)
        if self.half:
            numbers = numbers[("even", "odd").index(self.half) :: 2]
        most = self.limit
        if most is None:
            return numbers
        return numbers[: math.ceil(len(numbers) * most) if most < 1 else int(most)]

    def identity(self) -> dict[str, Any]:
        """Return what of the options decides a result, the same text for the same result."""
        further = self.further
        if "model_args" in further:
            kept = {k: v for k, v in self.model_args.items() if k not in _NO_RESULT}
            further["model_args"] = kept
            further = {key: value for key, value in further.items() if value != {}}
        return {key: getattr(self, key) for key in _ALWAYS} | further

    def to_json(self) -> str:
        """Return the options as text for a job."""
        values = asdict(self) | {"seed": list(self.seed)}
        del values["include_path"]
        return canonical_json(values)


def options_of(
    benchmark: Mapping[str, Any], model: Mapping[str, Any] | None = None, task: str | None = None
) -> EvalOptions:
    """Return the options of a task of a model: the task's, else the model's, else those of all.

    Args:
        benchmark: The configuration's part, as ``Settings`` has it.
        model: Options of the model.
        task: Name of the task.
    """
    own = benchmark["task_options"].get(task, {})
    options = laid_over(laid_over(benchmark, model or {}), own)
    chat, turns = options["apply_chat_template"], options["fewshot_as_multiturn"]
    seed = SEEDS if (given := options["seed"]) is None else given
    values = {key: options[key] for key in EvalOptions.__dataclass_fields__}
    values["fewshot_as_multiturn"] = bool(chat) if turns is None else turns
    values["seed"] = (seed,) * len(SEEDS) if isinstance(seed, int) else tuple(seed)
    for table in ("gen_kwargs", "model_args"):
        values[table] = {k: v for k, v in options[table].items() if v is not None}
    return EvalOptions(**values)


def options_text(config: Mapping[str, Any]) -> str | None:
    """Return the options of lm-eval that are not its defaults, None if there is none such.

    Args:
        config: Part of a result of that name.
    """
    usual = asdict(EvalOptions())
    keys = [key for key in usual if key not in (*_ALWAYS, *_NEVER, "backend", "seed")]
    found = {key: config[key] for key in keys if config.get(key, usual[key]) != usual[key]}
    if config.get("model", "hf") != "hf":
        found["backend"] = config["model"]
    return ", ".join(f"{key} {_shown(value)}" for key, value in found.items()) or None


def _shown(value: Any) -> str:
    """Return a value in a few words, other words for other values: a long text has its hash."""
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) < 60 and text.isprintable() else f"of hash {digest(text)[:8]}"


def parse_options(text: str, more: Mapping[str, Any]) -> EvalOptions:
    """Return the options that a command line gives, checked as the configuration is.

    Args:
        text: Options as JSON, by their names in the configuration.
        more: Those that the command line gives besides; the text's go before.

    Raises:
        UserError: If there is no such option, or it cannot have this value.
    """
    return options_of(benchmark_given({**more, **table_given(text, "--options")}))


def table_given(text: str, option: str) -> dict[str, Any]:
    """Return the table that an option of a command line gives as JSON.

    Args:
        text: The option's value.
        option: Its name.

    Raises:
        UserError: If it is none.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise UserError("is no table in JSON", option)
    return given


def benchmark_given(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return values of a command line as the configuration's part that they could be.

    Args:
        values: Below ``benchmark``.

    Raises:
        UserError: If the configuration would not take them.
    """
    return load_settings({"recipes": ["recipe.yaml"], "benchmark": values})["benchmark"]
