"""What was measured of trials, and which of them are the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.benchmark.scores import load, score_table
from shardmerge.benchmark.trials import Measurement, Trial, TrialSet, pareto_front
from shardmerge.sweep.bounds import is_within
from shardmerge.sweep.objectives import WEIGHTED
from shardmerge.sweep.points import plot_value
from shardmerge.sweep.sweeps import Sweep

#: Paths of benchmark results, by the trial's name.
Files = Mapping[str, Sequence[str]]


def read_points(sweep: Sweep, files: Files) -> TrialSet:
    """Return the trials of a sweep with what was measured of each.

    Args:
        sweep: The sweep.
        files: Results of trials; one without any is still to come.

    Raises:
        UserError: If a file is no result, or has not what the sweep aims at.
    """
    trials = []
    for candidate in sweep.candidates:
        paths = files.get(candidate.name, ())
        metrics = read_metrics(paths, sweep.weights)
        for label in (*sweep.weights, *sweep.objectives, *sweep.constraints) if paths else ():
            if label not in metrics:
                message = f"no task has the metric {label!r}"
                raise UserError(message, f"sweep {sweep.name}", did_you_mean(label, metrics))
        values = {name: plot_value(value) for name, value in candidate.values.items()}
        ended = candidate.status in ("failed", "stopped")
        status = candidate.status if ended else "done" if paths else "planned"
        allowed = not paths or fulfils(sweep, metrics)
        trials.append(
            Trial(
                name=candidate.name,
                variables=values,
                metrics=metrics,
                status=status,
                allowed=allowed,
            )
        )
    higher = {label: word == "maximize" for label, word in sweep.objectives.items()}
    return TrialSet(name=sweep.name, objectives=higher, trials=tuple(trials))


def read_metrics(paths: Sequence[str], weights: Mapping[str, float] = {}) -> dict[str, Measurement]:
    """Return the metrics in the results of one model, by label.

    Args:
        paths: The results.
        weights: Of metrics whose weighted sum is a metric too, if all of them are there.
    """
    table = score_table(load(paths))
    found = {
        column.label: Measurement(value=cell.value, stderr=cell.stderr, questions=cell.samples)
        for (_, column), cell in table.cells.items()
    }
    if weights and weights.keys() <= found.keys():
        found[WEIGHTED] = _weighted(found, weights)
    return found


def _weighted(metrics: Mapping[str, Measurement], weights: Mapping[str, float]) -> Measurement:
    """Return a weighted sum; its parts are measured on questions that do not depend on others."""
    parts = [(weight, metrics[label]) for label, weight in weights.items()]
    known = all(metric.stderr is not None for _, metric in parts)
    error = math.hypot(*(weight * (metric.stderr or 0) for weight, metric in parts))
    value = math.fsum(weight * metric.value for weight, metric in parts)
    return Measurement(value=value, stderr=error if known else None)


def fulfils(sweep: Sweep, metrics: Mapping[str, Measurement]) -> bool:
    """Return whether what was measured of a trial is within the sweep's constraints."""
    return all(is_within(bound, metrics[label].value) for label, bound in sweep.constraints.items())


def best_trials(sweep: Sweep, points: TrialSet) -> tuple[str, ...]:
    """Return the names of the best trials, the one that balances the objectives first.

    They are those within the constraints that no other such trial beats: of one objective the
    best, of several the Pareto set. The first is the one that is nearest to the best values of
    all objectives, where each objective's differences among these trials count as 1.

    Args:
        sweep: The sweep.
        points: Its trials.
    """
    names = pareto_front(points)
    front = [trial for trial in points.trials if trial.name in names]
    distances = _distances(front, points.objectives)
    return tuple(sorted(names, key=lambda name: distances[name]))


def _distances(trials: Sequence[Trial], objectives: Mapping[str, bool]) -> dict[str, float]:
    found = {trial.name: 0.0 for trial in trials}
    for label, higher in objectives.items():
        values = [trial.metrics[label].value for trial in trials]
        ideal = max(values, default=0) if higher else min(values, default=0)
        width = max(values, default=0) - min(values, default=0) or 1.0
        for trial, value in zip(trials, values, strict=True):
            found[trial.name] += ((value - ideal) / width) ** 2
    return found
