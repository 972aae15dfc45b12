"""Norm layers: which tensors scale by multiplying, and how task arithmetic merges them by ratios.

A norm's scale multiplies what passes it, so two fine-tunes of one base together make
``x_1 * x_2 / base``, not ``x_1 + x_2 - base``. ``norm_merge: geometric`` asks for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shardmerge import expression as ex
from shardmerge import fold
from shardmerge.configvalues import family
from shardmerge.errors import UserError, did_you_mean
from shardmerge.recipe import Recipe
from shardmerge.registry import LinearForm

METHOD = "geometric_task_arithmetic"
#: The method whose sums of norms can be replaced by products of ratios.
ARITHMETIC = "task_arithmetic"

_SCALES = ("weight", "gamma", "scale")
_NORM = re.compile(r"norm|(?:^|_)ln(?:_|\d|$)", re.IGNORECASE)
#: Families (``model_type``) whose text model stores w and scales by ``1 + w``. Tests compare with
#: the classes of transformers.
ONE_PLUS = frozenset(
    """gemma gemma2 gemma3 gemma3_text minimax_m3_vl minimax_m3_vl_text muse_glimmer
    muse_glimmer_text muse_spark muse_spark_text nemotron qwen3_5 qwen3_5_moe qwen3_5_moe_text
    qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma step3p5 step3p7 t5_gemma_module
    t5gemma t5gemma2 t5gemma2_decoder t5gemma2_encoder t5gemma2_text vaultgemma""".split()
)
#: What scales by w itself even there: gated norms of linear attention, vision and audio towers.
_PLAIN = re.compile(r"\blinear_attn\.norm\.|vision|visual|audio", re.IGNORECASE)


def is_scale(tensor: str) -> bool:
    """Whether a tensor is the scale of a norm layer (its shift, a bias, is not)."""
    module, _, kind = tensor.rpartition(".")
    return kind in _SCALES and _NORM.search(module.rpartition(".")[2]) is not None


def offset(config: Mapping[str, Any], tensor: str) -> float:
    """Return what a norm adds to its stored scale before it multiplies: 0, or 1 as in Gemma.

    Args:
        config: The model's config.json.
        tensor: Name of the norm's scale.
    """
    return float(family(config) in ONE_PLUS and not _PLAIN.search(tensor))


def geometric_stages(recipe: Recipe, wanted: str | Mapping[str, str]) -> frozenset[str]:
    """Return the names of a recipe's stages whose norms merge by ratios.

    Args:
        recipe: The recipe.
        wanted: The configuration's ``norm_merge``.

    Raises:
        UserError: If it names a stage whose method it does not apply to.
    """
    if isinstance(wanted, str):
        if wanted != "geometric":
            return frozenset()
        return frozenset(n for n, s in recipe.stages.items() if s.method == ARITHMETIC)
    found = {n for n, word in wanted.items() if word == "geometric" and n in recipe.stages}
    for name in sorted(found):
        stage = recipe.stages[name]
        if stage.method != ARITHMETIC:
            raise UserError(
                f"`norm_merge: geometric` is for {ARITHMETIC}, but document {name!r} is merged "
                f"by {stage.method}",
                stage.where,
            )
    return frozenset(found)


def check_names(recipes: Sequence[Recipe], wanted: str | Mapping[str, str]) -> None:
    """Refuse a ``norm_merge`` that names a document that no recipe has.

    Raises:
        UserError: With the nearest name that exists.
    """
    known = {name for recipe in recipes for name in recipe.stages}
    for name in () if isinstance(wanted, str) else wanted:
        if name not in known:
            raise UserError(
                f"no recipe has a document named {name!r}",
                "configuration: norm_merge",
                did_you_mean(name, known),
            )


def ratio_row(
    form: LinearForm,
    base: int,
    rows: Sequence[fold.Row],
    models: Sequence[str],
    tensor: str,
    shape: tuple[int, ...],
    added: float,
) -> fold.Row:
    """Return a norm's scale merged by ratios, as a row: ``base * product((x_i / base) ** w_i)``.

    What has no effect is left out, so that the job's identity does not depend on it: models of
    weight 0 or equal to the base; one model of weight 1 is that model.

    Args:
        form: Task arithmetic's coefficients of the inputs.
        base: Index of the base among them.
        rows: The inputs.
        models: Their names.
        tensor, shape: Of the result.
        added: What the norm adds to the stored scale (``offset``).
    """
    exponents = {i: c for i, c in form.deltas.items() if c != 0 and rows[i] != rows[base]}
    if not exponents:
        return rows[base]
    if list(exponents.values()) == [1.0]:
        return rows[next(iter(exponents))]
    kept = sorted({base, *exponents})
    operands = [fold.to_expression(rows[i], shape) for i in kept]
    if (nothing := ex.Zero(shape)) in operands:
        raise UserError(f"tensor {tensor!r} of {models[kept[operands.index(nothing)]]!r} is 0")
    return fold.leaf(
        ex.Call(
            method=METHOD,
            inputs=tuple(operands),
            base=kept.index(base),
            parameters=(("lambda", 1.0), ("normalize", False), ("offset", added)),
            per_input=(("weight", tuple(exponents.get(i) for i in kept)),),
            tensor=tensor,
            models=tuple(models[i] for i in kept),
            output_shape=shape,
        )
    )
