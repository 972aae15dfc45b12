"""The command `init`: a recipe and a configuration for two models, of what the models tell."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import write_text
from shardmerge.base.text import human_bytes
from shardmerge.command.models import Candidate, look
from shardmerge.methods.registry import method as find_method
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.run.cli import say, show

_RECIPE, _CONFIG = "recipe.yaml", "config.yaml"
_PARAMETERS = {
    "ties": ("parameters: {weight: 0.5, density: 0.5}", ""),
    "task_arithmetic": ("parameters: {weight: 0.5}", ""),
    "linear": ("parameters: {weight: 0.5}", ""),
    "slerp": ("", "parameters:\n  t: 0.5  # 0 is the first model, 1 the second\n"),
}
#: Of these the first model takes the base's place where there is none.
_BETWEEN = ("slerp",)
_CONFIG_TEXT = """\
# docs: config/README.md describes every key.
recipes: [{recipe}]

# What the model card says. Look up the licences of both models.
# card:
#   license: apache-2.0

# lm-eval tasks, for `shardmerge bench`.
# benchmark:
#   tasks: [arc_easy, hellaswag]
#   limit: 200
"""


def write_project(args: argparse.Namespace) -> None:
    """Write what is needed to merge two models, and tell how to go on.

    Args:
        args: As parsed: models, base, method, name, out.

    Raises:
        UserError: If the models do not fit, cannot be had, or a file is there already.
    """
    folder = Path(args.out)
    for file in (_RECIPE, _CONFIG):
        if os.path.lexists(folder / file):
            raise UserError(
                "is there already, and nothing is overwritten",
                str(folder / file),
                "Name another folder: `--out DIR`.",
            )
    models = [look(name, folder, say) for name in args.models]
    base = look(args.base, folder, say) if args.base else _common_base(models, folder)
    _check_alike([*models, *([base] if base else [])])
    method = args.method or ("ties" if base else "slerp")
    name = args.name or _name(models)
    text = recipe_text(name, method, models, base)
    parse_recipe(text, "the recipe that would be written")
    write_text(folder / _RECIPE, text)
    write_text(folder / _CONFIG, _CONFIG_TEXT.format(recipe=_RECIPE))
    _tell(folder, models, base, method)


def recipe_text(name: str, method: str, models: Sequence[Candidate], base: Candidate | None) -> str:
    """Return a recipe of two models.

    Args:
        name: Of the merged model.
        method: The merge method.
        models: The models.
        base: What they were made from, or None.

    Raises:
        UserError: If the method is unknown, or needs a base.
    """
    find_method(method, "--method")
    own, common = _PARAMETERS.get(method, ("parameters: {weight: 0.5}", ""))
    if method in _BETWEEN:
        base = models[0]
    elif base is None and method not in ("linear",):
        raise UserError(f"{method} needs a base", "--method", "Name it: `--base MODEL`.")
    lines = [f"name: {yaml_text(name)}", f"merge_method: {method}", "models:"]
    for model in models:
        lines.append(f"  - model: {yaml_text(model.reference)}")
        lines += [f"    {own}"] if own else []
    lines += [f"base_model: {yaml_text(base.reference)}"] if base and method != "linear" else []
    text = "\n".join(lines) + "\n" + common
    if len({model.vocabulary for model in models}) > 1:
        text += "tokenizer_source: union  # the models have different numbers of tokens\n"
    return text + f"dtype: {models[0].dtype}\n"


def yaml_text(text: str) -> str:
    """Return a text as YAML has it on one line, quoted if it must be."""
    return text if re.fullmatch(r"[A-Za-z./_~][\w./@+-]*", text) else json.dumps(text)


def _common_base(models: Sequence[Candidate], folder: Path) -> Candidate | None:
    """Return what the cards of both models name as their base, if one can look at it."""
    first, second = models
    bases = {model.base for model in models}
    if len(bases) != 1 or first.base is None:
        return next((b for a, b in ((first, second), (second, first)) if a.base == b.name), None)
    try:
        return look(first.base, folder, say)
    except UserError as error:
        say(f"both models name {first.base} as their base, which cannot be used: {error}")
        return None


def _check_alike(models: Sequence[Candidate]) -> None:
    first = models[0]
    for other in models[1:]:
        for what in ("architecture", "layers", "width"):
            one, two = getattr(first, what), getattr(other, what)
            if one != two:
                raise UserError(
                    f"{first.name} has {what} {one}, {other.name} has {two}: they cannot be merged",
                    hint="Models that can be merged are fine-tunes of one base.",
                )


def _name(models: Sequence[Candidate]) -> str:
    parts = [model.name.rstrip("/").rsplit("/", 1)[-1] for model in models]
    return re.sub(r"[^\w.-]+", "-", "-and-".join(parts))[:90]


def _tell(folder: Path, models: Sequence[Candidate], base: Candidate | None, method: str) -> None:
    for model in [*models, *([base] if base and base not in models else [])]:
        size = human_bytes(model.size)
        show(f"{model.name}: {model.architecture}, {model.layers} layers, {model.dtype}, {size}\n")
    known = f"base: {base.name}" if base else "no common base is known (`--base MODEL` names one)"
    show(f"{known}; merge method: {method}\n")
    show(f"wrote {folder / _RECIPE} and {folder / _CONFIG}\n")
    go = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    show(f"next: {go}shardmerge explain {_RECIPE}; shardmerge plan; shardmerge merge\n")
