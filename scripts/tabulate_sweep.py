"""Write the tables of a sweep, all its trials as data, and the best recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import forms
from shardmerge.base.files import write_json, write_text
from shardmerge.benchmark.scores import load
from shardmerge.run.cli import claim, run, show
from shardmerge.run.inputlists import parse_args
from shardmerge.sweep import tables
from shardmerge.sweep.best import best_trials, read_metrics, read_points
from shardmerge.sweep.evidence import verdicts
from shardmerge.sweep.outcome import outcome
from shardmerge.sweep.sweep_files import load_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--sweep", required=True, help="its file")
    add("--results", required=True, help="folder of all results")
    add("--task", nargs="+", required=True, help="what was measured")
    add("--references", nargs="*", default=[], help="results of other models")
    add("--reported", nargs="*", default=[], help="results of trials on the other questions")
    add("--folder", type=Path, required=True, help="where to write all of it")
    args = parse_args(parser)
    sweep = load_sweep(args.sweep)
    names = ("table.json", "table.csv", "table.md", "trials.json", "best.yaml")
    outputs = [args.folder / name for name in names]
    claim(*outputs)
    names = [candidate.name for candidate in sweep.final]
    files = {name: sweep.result_files(args.results, name, args.task) for name in names}
    points = read_points(sweep, files)
    best = best_trials(sweep, points)
    others: dict[str, list[str]] = {}
    for path in args.references:
        others.setdefault(load([path])[0]["model_name"], []).append(path)
    references = {name: read_metrics(paths) for name, paths in others.items()}
    found = verdicts(sweep, files, best)
    data = tables.table_data(sweep, points, best, references, found)
    data |= outcome(sweep, best, args.reported)
    text = tables.table_markdown(data)
    write_json(outputs[0], data)
    write_text(outputs[1], tables.table_csv(data))
    write_text(outputs[2], text)
    write_json(outputs[3], forms.written(points))
    write_text(outputs[4], tables.best_recipe(sweep, data))
    show(text)


if __name__ == "__main__":
    run(main)
