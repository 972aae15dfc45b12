"""Optuna's samplers as searches use them, and what each of them cannot do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.sweep.dimensions import distributions, parameters_of
from shardmerge.sweep.search_plan import SearchPlan

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

_LEAST_POPULATION = 8


def check_plan(plan: SearchPlan) -> None:
    """Refuse what a sampler cannot do.

    Raises:
        UserError: If there is such a thing.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("needs optuna", f"`sampler: {plan.sampler}`", "Run `make env`.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if plan.sampler == "cmaes" and (plan.constraints or len(plan.objectives) > 1):
        hint = "Write `sampler: tpe`."
        raise UserError("cmaes knows one objective and no constraints", plan.where, hint)
    if list(plan.rungs) != sorted(set(plan.rungs)):
        raise UserError("must rise", f"{plan.where}.stop.rungs", "Write `rungs: [50, 200]`.")
    if len(plan.start) > plan.trials:
        raise UserError("has more points than `trials`", f"{plan.where}.start")
    for point in plan.start:
        parameters_of(plan.variables, point, f"{plan.where}.start")


def sampler_of(plan: SearchPlan, generation: int) -> BaseSampler:
    """Return the sampler of a generation; its random numbers follow from the generation alone.

    Args:
        plan: The search.
        generation: Its number.
    """
    from optuna.samplers import NSGAIISampler, TPESampler

    seed = int(digest([plan.seed, generation])[:8], 16)
    own = {"constraints_func": _violations} if plan.constraints else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what optuna calls experimental
        if plan.sampler == "tpe":
            return TPESampler(seed=seed, multivariate=True, constant_liar=True, **own)
        if plan.sampler == "cmaes":
            from shardmerge.sweep.cma_state import SafeCmaEsSampler

            size = max(plan.parallel, _LEAST_POPULATION)
            return SafeCmaEsSampler(
                x0=_middle(plan), seed=seed, popsize=size, warn_independent_sampling=False
            )
        return NSGAIISampler(
            seed=seed, population_size=max(plan.parallel, _LEAST_POPULATION), **own
        )


def _middle(plan: SearchPlan) -> dict[str, Any] | None:
    """Return the numbers that CMA-ES begins around: the first point that is given."""
    if not plan.start:
        return None
    from optuna.distributions import CategoricalDistribution

    told = parameters_of(plan.variables, plan.start[0], plan.where)
    space = distributions(plan.variables)
    return {k: v for k, v in told.items() if not isinstance(space[k], CategoricalDistribution)}


def _violations(trial: FrozenTrial) -> Sequence[float]:
    return trial.user_attrs["violations"]
