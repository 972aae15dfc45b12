"""How far a benchmark is: questions done of how many, and the time that the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

from shardmerge.base.text import human_seconds, human_time

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

_METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


class QuestionMeter:
    """Says every few seconds how many of a job's questions are answered.

    lm-eval tells it of every answer, as it would tell a cache of answers.

    Args:
        name: The model.
        total: Questions of all tasks of the job.
        say: Receives the lines.
        every: Seconds between lines.
        clock: Gives seconds.
    """

    def __init__(
        self,
        name: str,
        total: int,
        say: Callable[[str], None],
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._say = name, total, say
        self._every, self._clock = every, clock
        self._began = self._started = clock()
        self._last = float("-inf")
        self._task = ""
        self._before = self._here = 0.0
        self._share = 0.0

    def watch(self, model: LM) -> None:
        """Follow what a model is asked; time counts from now on."""
        self._began = self._clock()
        model.set_cache_hook(self)
        for name in _METHODS:
            setattr(model, name, self._counting(getattr(model, name)))

    def begin(self, task: str) -> None:
        """Take the name of the task that comes next."""
        self._task, self._started, self._last = task, self._clock(), float("-inf")
        self._tell()

    def end(self, questions: int, *, failed: bool = False) -> None:
        """Take that a task is over.

        Args:
            questions: That it had, however they were asked.
            failed: Whether it has no result.
        """
        if not failed:
            took = human_seconds(self._clock() - self._started)
            self._say(f"{self._name}: {self._task} done in {took}")
        self._before += questions
        self._here = self._share = 0.0

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Take that a request is answered (lm-eval's name for it)."""
        self._here += self._share
        self._tell()

    def _counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        quiet = {"disable_tqdm": True} if "disable_tqdm" in signature(method).parameters else {}

        @wraps(method)
        def asked(requests: Sequence[Instance], *args: Any, **more: Any) -> Any:
            questions = {(request.task_name, request.doc_id) for request in requests}
            self._share = len(questions) / max(1, len(requests))
            return method(requests, *args, **quiet | more)

        return asked

    def _tell(self) -> None:
        now = self._clock()
        if now - self._last < self._every:
            return
        self._last = now
        done = min(self._total, int(self._before + self._here + 1e-6))
        left = (now - self._began) * (self._total - done) / done if done else 0
        percent = 100 * done // max(1, self._total)
        rest = f", {human_time(left)} left" if left else ""
        self._say(
            f"{self._name}: {self._task}, {done:,} of {self._total:,} questions ({percent} %){rest}"
        )
