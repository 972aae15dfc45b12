"""Whether two models answer alike: the same answers, the same ones right, the same mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shardmerge.base import forms
from shardmerge.base.forms import entry
from shardmerge.benchmark.samples import Answers, GivenAnswer


@dataclass(frozen=True)
class Agreement:
    """How a model's answers agree with another's on one task.

    Args:
        model, other: Labels.
        task: Task, or group with all of its tasks.
        questions: That both answered.
        same: Of them, those with the same answer.
        right: Those that both have right.
        wrong: Those that both have wrong, with the same answer.
        kappa: Cohen's kappa of right and wrong: 1 if they are right on the same questions, 0 if
            they are so as often as two models would be that know nothing of each other. None if
            one of them has all answers right, or all wrong.
    """

    model: str = entry(forms.text)
    other: str = entry(forms.text)
    task: str = entry(forms.text)
    questions: int = entry(forms.count)
    same: int = entry(forms.count)
    right: int = entry(forms.count)
    wrong: int = entry(forms.count)
    kappa: float | None = entry(forms.maybe(forms.real))


def agreement(
    model: str, other: str, task: str, pairs: Sequence[tuple[GivenAnswer, GivenAnswer]]
) -> Agreement:
    """Return how answers agree.

    Args:
        model, other: What the two are called.
        task: What was asked.
        pairs: The answers of both to each question.
    """
    both = [(own.right, others.right) for own, others in pairs]
    same = [own.answer == others.answer for own, others in pairs]
    right = sum(own and others for own, others in both)
    wrong = sum(
        alike and not (own or others) for alike, (own, others) in zip(same, both, strict=True)
    )
    return Agreement(
        model=model,
        other=other,
        task=task,
        questions=len(pairs),
        same=sum(same),
        right=right,
        wrong=wrong,
        kappa=cohens_kappa(both),
    )


def cohens_kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Return Cohen's kappa of two raters' yes and no, None where chance alone explains all.

    Cohen (1960), https://doi.org/10.1177/001316446002000104.
    """
    if not pairs:
        return None
    n = len(pairs)
    first, second = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    if first in (0, n) or second in (0, n):
        return None
    chance = (first * second + (n - first) * (n - second)) / n**2
    return (sum(a == b for a, b in pairs) / n - chance) / (1 - chance)


def agreements(
    answers: Mapping[str, Answers],
    pairs: Iterable[tuple[str, str]],
    tasks: Mapping[str, Sequence[str]],
) -> list[Agreement]:
    """Return how models agree with others, task by task, where both have answered.

    Args:
        answers: Of each model.
        pairs: A model and another.
        tasks: Of each task or group that was asked for, the tasks whose answers are stored.
    """
    pairs = list(pairs)
    found = []
    for task, leaves in tasks.items():
        for model, other in pairs:
            own, others = (answers.get(name, Answers()).given for name in (model, other))
            shared = sorted(key for key in own.keys() & others.keys() if key[0] in leaves)
            if shared:
                both = [(own[key], others[key]) for key in shared]
                found.append(agreement(model, other, task, both))
    return found
