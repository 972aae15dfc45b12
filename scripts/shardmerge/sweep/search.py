"""An adaptive search: optuna asks for a generation of trials, and is told what was measured.

All that a search knows is in its journal, and each step replaces the journal as a whole. The
sampler of a generation gets its random numbers from the seed and the generation's number. So a
search that is killed anywhere goes on with the trials that it would have had.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.sweep.bounds import distance
from shardmerge.sweep.dimensions import distributions, parameters_of, point_of
from shardmerge.sweep.samplers import check_plan, sampler_of
from shardmerge.sweep.search_plan import Eyes, Metrics, SearchPlan
from shardmerge.sweep.searched import Asked, Searched
from shardmerge.sweep.space import Point

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL = "journal.log"


def advance(plan: SearchPlan, folder: Path, eyes: Eyes, *, failed: bool, dry: bool) -> Searched:
    """Tell what was measured, ask for the next generation if this one is done.

    Args:
        plan: The search.
        folder: Where its journal is.
        eyes: On what was measured.
        failed: Whether trials that should have been measured and are not have failed.
        dry: Whether the journal stays as it is.

    Raises:
        UserError: If optuna is missing, the journal is of another search, or all trials failed.
    """
    check_plan(plan)
    with _journal(folder, keep=not dry) as path:
        study = _first_open(plan, path, folder)
        _check_identity(study, plan, folder)
        _note_outcomes(study, plan, eyes, failed=failed)
        while not _is_waiting(study):
            _tell(study)
            if len(study.trials) >= plan.trials:
                break
            _ask(path, plan, len(study.trials))
            study = _open(plan, path)
            _note_known(study, plan, eyes)
        return _state(study, plan)


@contextmanager
def _journal(folder: Path, *, keep: bool) -> Iterator[Path]:
    """Give a copy of the journal, which takes its place at the end, whole or not at all."""
    there = folder / JOURNAL
    if keep:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder if keep else None, prefix=".journal-") as part:
        path = Path(part, JOURNAL)
        if there.is_file():
            shutil.copyfile(there, path)
        yield path
        if keep:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(path, there)


def _open(plan: SearchPlan, path: Path, sampler: BaseSampler | None = None) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=plan.name,
        directions=list(plan.objectives.values()),
        sampler=sampler or sampler_of(plan, 0),
        load_if_exists=True,
    )


def _first_open(plan: SearchPlan, path: Path, folder: Path) -> Study:
    """Open the journal, which may be damaged; what optuna then raises may be anything."""
    try:
        return _open(plan, path)
    except Exception as error:
        hint = "Take back a copy of it, or give the sweep another `name`."
        told = f"is no journal of a search ({type(error).__name__})"
        raise UserError(told, str(folder / JOURNAL), hint) from None


def _check_identity(study: Study, plan: SearchPlan, folder: Path) -> None:
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", plan.identity)
    elif known != plan.identity:
        hint = "Give the sweep another `name`, or take back what was changed. `trials` may grow."
        raise UserError("is the journal of a search of another kind", str(folder / JOURNAL), hint)


def _running(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.trials if not trial.state.is_finished()]


def _is_waiting(study: Study) -> bool:
    """Whether a trial of this generation is still to be measured."""
    return any("outcome" not in trial.user_attrs for trial in _running(study))


def _set(study: Study, trial: FrozenTrial, **values: Any) -> None:
    for key, value in values.items():
        study._storage.set_trial_user_attr(trial._trial_id, key, value)


def _note_outcomes(study: Study, plan: SearchPlan, eyes: Eyes, *, failed: bool) -> None:
    """Note what was measured of this generation, and how its trials go on."""
    waiting = [t for t in _running(study) if "outcome" not in t.user_attrs]
    seen = {t.number: eyes.look(_point(plan, t), _questions(plan, t)) for t in waiting}
    some = any(seen.values()) or len(waiting) < len(_running(study))
    if failed and waiting and not some:
        hint = "Its logs tell why. If it is the recipe's fault, narrow `space`."
        message = f"no trial of generation {waiting[0].user_attrs['generation']} could be measured"
        raise UserError(message, plan.where, hint)
    done = [_point(plan, t) for t in study.trials if t.user_attrs.get("outcome") == "done"]
    for trial in waiting:
        metrics, questions = seen[trial.number], _questions(plan, trial)
        if metrics is None:
            if failed:
                _set(study, trial, outcome="failed")
        elif questions is None:
            _end(study, plan, trial, "done", metrics)
        elif _is_hopeless(plan, metrics) or eyes.worse(_point(plan, trial), done, questions):
            _end(study, plan, trial, "stopped", metrics)
        else:
            _set(study, trial, rung=trial.user_attrs["rung"] + 1)


def _end(study: Study, plan: SearchPlan, trial: FrozenTrial, how: str, metrics: Metrics) -> None:
    _set(
        study,
        trial,
        violations=[distance(bound, metrics[label].value) for label, bound in
                    plan.constraints.items()],
        found=[metrics[label].value for label in plan.objectives],
        outcome=how,
    )  # fmt: skip


def _is_hopeless(plan: SearchPlan, metrics: Metrics) -> bool:
    """Whether a constraint is broken, however the questions fall that were not asked."""
    for label, bound in plan.constraints.items():
        ends = metrics[label].interval
        if ends and all(distance(bound, end) > 0 for end in ends):
            return True
    return False


def _note_known(study: Study, plan: SearchPlan, eyes: Eyes) -> None:
    """Let trials whose recipe has been measured end as it did, so that nothing is done twice."""
    known = {
        eyes.name(_point(plan, t)): t.user_attrs
        for t in study.trials
        if t.state.is_finished() and "outcome" in t.user_attrs
    }
    for trial in _running(study):
        name = eyes.name(_point(plan, trial))
        if name in known:
            keys = ("rung", "violations", "found", "outcome")
            _set(study, trial, **{k: known[name][k] for k in keys if k in known[name]})


def _tell(study: Study) -> None:
    """Tell optuna of a whole generation, in the order in which it was asked for."""
    from optuna.trial import TrialState

    for trial in _running(study):
        if trial.user_attrs["outcome"] == "failed":
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            study.tell(trial.number, trial.user_attrs["found"])


def _ask(path: Path, plan: SearchPlan, count: int) -> None:
    generation = -(-count // plan.parallel)
    study = _open(plan, path, sampler_of(plan, generation))
    space = distributions(plan.variables)
    for number in range(count, min(count + plan.parallel, plan.trials)):
        if number < len(plan.start):
            point = plan.start[number]
            study.enqueue_trial(dict(parameters_of(plan.variables, point, plan.where)))
        trial = study.ask(space)
        trial.set_user_attr("generation", generation)
        trial.set_user_attr("rung", 0)


def _point(plan: SearchPlan, trial: FrozenTrial) -> Point:
    return point_of(plan.variables, trial.params)


def _questions(plan: SearchPlan, trial: FrozenTrial) -> int | None:
    """Return how many questions of each task a trial is asked now, None for all."""
    rung = trial.user_attrs["rung"]
    return plan.rungs[rung] if rung < len(plan.rungs) else None


def _state(study: Study, plan: SearchPlan) -> Searched:
    trials = study.trials
    return Searched(
        generation=max((t.user_attrs["generation"] for t in trials), default=0),
        finished=not _running(study),
        trials=tuple(
            Asked(
                values=_point(plan, t),
                status=t.user_attrs.get("outcome", "asked"),
                questions=_questions(plan, t),
            )
            for t in trials
        ),
        start=len(plan.start),
        importances=_importances(study, plan) if not _running(study) else {},
    )


def _importances(study: Study, plan: SearchPlan) -> dict[str, dict[str, float]]:
    """Return by PED-ANOVA how much each parameter decides whether a trial is among the best."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    found = {}
    for place, label in enumerate(plan.objectives):
        values = {t.values[place] for t in study.trials if t.values}
        if len(values) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = get_param_importances(
                study,
                evaluator=PedAnovaImportanceEvaluator(),
                target=lambda t, place=place: t.values[place],
            )
        found[label] = {name: round(float(share), 4) for name, share in shares.items()}
    return found
