"""What a search is about, and how it sees what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardmerge.base.digest import digest
from shardmerge.benchmark.trials import Measurement
from shardmerge.sweep.space import Point, Variable

#: What was measured by label.
Metrics = Mapping[str, Measurement]


@dataclass(frozen=True)
class SearchPlan:
    """What a search is about.

    Args:
        name: Of the sweep.
        sampler: ``tpe``, ``cmaes`` or ``nsga2``.
        variables: Its space.
        objectives: Label to ``maximize`` or ``minimize``.
        constraints: Label to a bound.
        trials: How many there are in all.
        parallel: How many there are in a generation.
        seed: Of the sampler.
        rungs: Numbers of questions after which trials may be stopped.
        start: Points that are tried first.
        basis: What else decides what is measured: the recipe, how models are measured.
        where: What to say of it in errors.
        weights: Of metrics whose weighted sum is the objective; else none.
    """

    name: str
    sampler: str
    variables: Sequence[Variable]
    objectives: Mapping[str, str]
    constraints: Mapping[str, str]
    trials: int
    parallel: int
    seed: int
    rungs: Sequence[int]
    start: Sequence[Point]
    basis: Any
    where: str
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Digest of all that decides which trials are asked for; more trials may come later."""
        space = {v.name: [repr(v.domain), v.points] for v in self.variables}
        aims = [list(self.objectives.items()), list(self.constraints.items())]
        rest = [self.sampler, self.parallel, self.seed, list(self.rungs), list(self.start)]
        weights = [list(self.weights.items())] if self.weights else []
        return digest([space, aims, rest, self.basis, *weights])


@dataclass(frozen=True)
class Eyes:
    """How a search sees what was measured.

    Args:
        look: Returns the metrics of a point that is asked so many questions (None: all), or None
            if they are not there.
        name: Returns the same for points that are the same trial.
        worse: Returns whether a point, after so many questions, is surely worse than one of others.
    """

    look: Callable[[Point, int | None], Metrics | None]
    name: Callable[[Point], str]
    worse: Callable[[Point, Sequence[Point], int], bool]
