"""Measure a whole model before anything is merged: what it makes of prompts or texts, its norm."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from shardmerge.check.load import stay_offline
from shardmerge.plan.measuring import MeasureJob, MeasureSpec, load_measure_spec
from shardmerge.run.cli import run, say
from shardmerge.run.made_source import asked


def main() -> None:
    args, job, watch = asked(__doc__, lambda plan: plan.measures)
    spec = load_measure_spec(args.job)
    stay_offline()
    _measure(job, spec, args, watch.confirm)
    say(f"{job.kind} of {', '.join(job.folders)}: done")


def _measure(
    job: MeasureJob, spec: MeasureSpec, args: argparse.Namespace, confirm: Callable[[], None]
) -> None:
    folder, options = Path(job.folders[0]), spec.options
    if spec.kind == "norms":
        from shardmerge.engine.norms import measure_norm

        models = ([Path(f) for f in files if _has_tensors(f)] for files in job.models)
        measure_norm(
            options["tensors"], *models, args.output, confirm=confirm, progress=_Progress()
        )
        return
    place = {"device": args.device, "threads": args.threads, "confirm": confirm}
    if spec.kind == "hidden":
        from shardmerge.benchmark.hidden import read_prompts

        read_prompts(folder, options["prompts"], options["mode"], args.output, **place)
        return
    from shardmerge.benchmark.text_measures import measure_text

    measure_text(
        spec.kind, folder, Path(job.text), options, args.output, **place, progress=_Progress()
    )


def _has_tensors(file: str) -> bool:
    return file.endswith(".safetensors")


class _Progress:
    """Prints a line every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            say(f"{done} of {total}")


if __name__ == "__main__":
    run(main)
