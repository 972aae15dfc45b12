"""How far a benchmark is, in questions, as the display of a run reads it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from shardmerge.benchmark.progress import QuestionMeter
from shardmerge.run.board import RunningJob


class Model:
    """Answers as lm-eval's models do: one answer after the other, each told to the cache."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.quiet = clock, None

    def set_cache_hook(self, hook: Any) -> None:
        self.cache_hook = hook

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[int]:
        self.quiet = disable_tqdm
        return Model.generate_until(self, requests)

    def generate_until(self, requests: Any) -> list[int]:
        for _ in requests:
            self.clock.now += 1
            self.cache_hook.add_partial("loglikelihood", (), 0)
        return [0 for _ in requests]

    loglikelihood_rolling = generate_until


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def requests(questions: int, each: int) -> list[Any]:
    return [SimpleNamespace(task_name="t", doc_id=i // each) for i in range(questions * each)]


def test_questions_are_counted_over_all_tasks_of_a_job(tmp_path: Any) -> None:
    clock, lines = Clock(), []
    model, meter = Model(clock), QuestionMeter("merged", 30, lines.append, 5.0, clock)
    clock.now += 50  # the model is loaded
    meter.watch(model)
    meter.begin("choice")
    assert model.loglikelihood(requests(10, each=4)) == [0] * 40
    meter.end(10)
    meter.begin("words")
    model.generate_until(requests(20, each=1))
    meter.end(20, failed=True)
    assert lines[0] == "merged: choice, 0 of 30 questions (0 %)"
    assert lines[1] == "merged: choice, 1 of 30 questions (3 %), 2 min left"
    assert "merged: choice done in 40 s" in lines
    assert "merged: words, 10 of 30 questions (33 %), 80 s left" in lines
    assert lines[-1] == "merged: words, 30 of 30 questions (100 %)"
    assert model.quiet, "lm-eval's own bars would stand between the lines"


def test_the_display_takes_percent_and_time(tmp_path: Any) -> None:
    log = tmp_path / "log"
    log.write_text("merged: demo_B, 1,200 of 2,400 questions (50 %), 30 s left\n")
    job = RunningJob("run_tasks", "merged", (str(log),), ("x",), 0.0)
    assert job.progress(9) == (50, "demo_B, 1,200 of 2,400 questions (50 %), 30 s left")
