"""Fuzz for a time: `make fuzz`, or `python -m fuzz` with scripts and tests on the path."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fuzz.running import Fault, Target, name_of, run_for
from fuzz.targets import names, target

#: Bytes of a case that are printed too: where a machine is gone after a run, files are.
_SHOWN = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="altogether, for each process")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--targets", nargs="+", choices=names(), default=names())
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--output", type=Path, default=Path("fuzz-failures"), help="a folder")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    if args.processes == 1:
        results = [_run(args.targets, args.seconds, args.seed)]
    else:
        with ProcessPoolExecutor(args.processes) as pool:
            runs = [
                pool.submit(_run, args.targets, args.seconds, args.seed + number * 10**9)
                for number in range(args.processes)
            ]
            results = [run.result() for run in runs]
    sys.exit(_report(results, args.output))


def _run(
    wanted: list[str], seconds: float, seed: int
) -> tuple[dict[str, tuple[int, float]], dict[str, tuple[str, Fault]]]:
    """Return cases and seconds by target, and the faults, each with its target."""
    counts: dict[str, tuple[int, float]] = {}
    found: dict[str, tuple[str, Fault]] = {}

    def report(one: Target, cases: int, taken: float, faults: list[Fault]) -> None:
        counts[one.name] = cases, taken
        found.update({f"{one.name}: {fault.place}": (one.name, fault) for fault in faults})

    run_for([target(name) for name in wanted], seconds, seed, report)
    return counts, found


def _report(results: list, output: Path) -> int:
    """Print what was done, and write every case that failed; return the exit status."""
    total = 0
    for name in results[0][0]:
        cases = sum(counts[name][0] for counts, _ in results)
        rate = sum(counts[name][0] / counts[name][1] for counts, _ in results)
        total += cases
        print(f"{name:24} {cases:9} cases {rate:9.0f} a second")
    faults = {place: one for _, found in results for place, one in found.items()}
    for place, (name, fault) in sorted(faults.items()):
        path = output / name / name_of(fault)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fault.data)
        print(f"\n{place}\n  {path}\n{fault.trace}")
        if len(fault.data) <= _SHOWN:
            print(f"  {fault.data!r}")
    print(f"{total} cases, {len(faults)} places that fail")
    return 1 if faults else 0


if __name__ == "__main__":
    main()
