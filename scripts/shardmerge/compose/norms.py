"""Norm layers: which tensors scale by multiplying, and how task arithmetic merges them by ratios.

A norm's scale multiplies what passes it, so two fine-tunes of one base together make
``x_1 * x_2 / base``, not ``x_1 + x_2 - base``. ``norm_merge: geometric`` asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.methods.registry import LinearForm
from shardmerge.recipe.recipe import Recipe

METHOD = "geometric_task_arithmetic"
#: The method whose sums of norms can be replaced by products of ratios.
ARITHMETIC = "task_arithmetic"


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
        stages = recipe.stages.items()
        return frozenset(n for n, s in stages if s.method == ARITHMETIC and not s.tensors)
    found = {n for n, word in wanted.items() if word == "geometric" and n in recipe.stages}
    for name in sorted(found):
        stage = recipe.stages[name]
        if stage.method != ARITHMETIC:
            raise UserError(
                f"`norm_merge: geometric` is for {ARITHMETIC}, but document {name!r} is merged "
                f"by {stage.method}",
                stage.where,
            )
        if stage.tensors:
            raise UserError(
                f"`norm_merge: geometric` is for models, but document {name!r} merges checkpoints "
                "of which no norms are known",
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
