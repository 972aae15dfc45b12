"""Measure whole builds side by side with mergekit-multi and `cp -r`, and plans of large models."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shardmerge.base.files import load_json, write_json, write_text
from shardmerge.run.cli import run, say
from tools.bench import builds, methods, page, phases, plans
from tools.bench.models import SIZES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="*", choices=SIZES, default=["2GB", "6GB"], help="builds")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each contestant, in turn")
    parser.add_argument("--plan", nargs="*", choices=plans.cases(), default=list(plans.cases()))
    parser.add_argument("--folder", type=Path, help="keeps the models (default: a temporary one)")
    parser.add_argument("--append", action="store_true", help="add to the runs that are there")
    parser.add_argument(
        "--methods", nargs="*", help="a table of these methods (of all if none is named) instead"
    )
    parser.add_argument("--phases", action="store_true", help="where a build's time goes instead")
    parser.add_argument(
        "--slow-pairs", type=int, help="runs of methods' contestants that take over a minute"
    )
    parser.add_argument(
        "--alone", action="store_true", help="measure methods without what they are compared with"
    )
    parser.add_argument("--cores", type=int, default=2, help="that builds by methods may use")
    parser.add_argument(
        "--device", default="cpu", help="an accelerator that methods are measured on besides"
    )
    parser.add_argument("--results", type=Path, default=DOCS / "performance.json")
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md")
    args = parser.parse_args()
    if args.phases:
        phases.compare(args.pairs, print)
        return
    results: dict[str, Any] = {"builds": {}, "plans": {}}
    if args.results.exists():
        results |= load_json(args.results)
    with tempfile.TemporaryDirectory(prefix="shardmerge-bench-") as name:
        work = (args.folder or Path(name)).resolve()
        if args.methods is not None:
            _methods(args, results, work)
            return
        for size in args.size:
            rows = builds.compare(work / size, size, args.pairs, say)
            if args.append:
                rows = _joined(results["builds"].get(size, {}), rows)
            results["builds"][size] = rows
            write_json(args.results, results)
        for case in args.plan:
            results["plans"][case] = plans.compare(Path(name) / "plans" / case, case, say)
            write_json(args.results, results)
    text = args.page.read_text(encoding="utf-8")
    write_text(args.page, page.with_figures(text, results))
    page.draw(results, args.page.with_suffix(".svg"))


def _methods(args: argparse.Namespace, results: dict[str, Any], work: Path) -> None:
    """Measure methods, each size a table, and draw them; go on where an earlier run ended.

    What is measured with an accelerator is another machine's: it is kept apart and not drawn.
    """
    place = methods.Place(args.cores, args.device)
    on_card = place.device != "cpu"
    measured = results.setdefault(f"methods on {place.device}" if on_card else "methods", {})
    how = args.slow_pairs, args.alone
    seconds = methods.estimate(args.size, args.methods, args.pairs, measured, *how)
    say(f"about {seconds / 3600:.1f} hours, by what such runs took elsewhere")
    for size in args.size:
        rows = measured.setdefault(size, {})
        keep = partial(write_json, args.results, results)
        methods.compare(work / size, size, args.methods, args.pairs, rows, keep, say, *how, place)
        shown = methods.card_table(rows, place) if on_card else methods.methods_table(rows)
        print(f"\n{size}:\n\n{shown}", flush=True)
    if on_card:
        return
    methods.draw(measured, args.results.with_name("methods.svg"))
    text = args.page.read_text(encoding="utf-8")
    write_text(args.page, page.with_figures(text, results))


def _joined(before: Mapping[str, list], rows: Mapping[str, list]) -> dict[str, list]:
    return {name: [*before.get(name, []), *found] for name, found in rows.items()}


if __name__ == "__main__":
    run(main)
