"""Measure a whole model before anything is merged: what it makes of prompts or texts, its norm."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.check.load import stay_offline
from shardmerge.engine.watch import Watch
from shardmerge.plan.files import IDENTITIES, used_plan_path
from shardmerge.plan.measuring import MeasureJob, MeasureSpec, load_measure_spec
from shardmerge.plan.plan import read_plan
from shardmerge.run.cli import claim, run, say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True, help="digest of the job")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    claim(args.output)

    path = used_plan_path()
    job = read_plan(path).measures.get(args.job)
    if job is None:
        raise UserError(f"there is no job {args.job} in the plan", str(path))
    spec = load_measure_spec(args.job)
    watch = Watch(Identities(IDENTITIES))
    for file, identity in zip(job.files, job.identities, strict=True):
        watch.begin(Path(file), identity)
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
