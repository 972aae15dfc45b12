"""A plan as text for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from types import MappingProxyType

from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import Numerics
from shardmerge.base.text import human_bytes, human_time, plural, ranges
from shardmerge.compose.architecture.names import module_of
from shardmerge.plan.adapter_description import load_adapter, load_factor_spec
from shardmerge.plan.description import load_description
from shardmerge.plan.plan import Plan
from shardmerge.recipe.naming import short_names, shortener
from shardmerge.report import plan_facts
from shardmerge.report.coefficients import coefficients
from shardmerge.report.plan_facts import Amount, Totals
from shardmerge.report.summary import summarize, write_lines
from shardmerge.report.terminal import Terminal
from shardmerge.sweep.forecast import Forecast


def plan_text(
    plan: Plan,
    terminal: Terminal,
    *,
    stages: bool = False,
    sweeps: Mapping[str, Forecast] = MappingProxyType({}),
) -> str:
    """Return a plan as text: each model, each sweep, then what all of them take.

    Args:
        plan: Its builds' descriptions and specifications lie where ``planning`` keeps them.
        terminal: What the text is for.
        stages: Whether to print the recipe's documents as well.
        sweeps: What is left of each sweep.
    """
    lines: list[str] = []
    for name in plan.models:
        lines += [*_build(plan, name, terminal, stages), ""]
    for name in plan.adapters:
        lines += [*_adapter(plan, name, terminal), ""]
    for name, left in sweeps.items():
        rows = _rows(_sweep(left, plan), terminal)
        lines += [terminal.bold(f"sweep {name}"), *rows, ""]
    lines.append(terminal.bold("in all"))
    lines += _rows(_totals(plan_facts.plan_totals(plan)), terminal)
    for warning in plan.warnings:
        lines += textwrap.wrap(
            f"warning: {warning}", terminal.width, subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def _sweep(left: Forecast, plan: Plan) -> list[tuple[str, str]]:
    done = f", {left.measured} of them measured" if left.measured else ""
    rows = [("trials", f"{left.trials}{done}"), ("jobs", f"{left.jobs:,}")]
    rows.append(("merges", f"read {human_bytes(left.read)} and write {human_bytes(left.written)}"))
    if window := plan.room.window:
        rows.append(
            ("disk", f"at most {human_bytes(plan.room.bytes)}: weights of {window} at a time")
        )
    else:
        rows.append(("disk", f"{human_bytes(plan.room.bytes)}: all weights stay"))
    if left.seconds is None:
        rows.append(("time", "not known: nothing was merged and measured yet"))
    else:
        told = "one job after the other, at the speed of earlier jobs"
        rows.append(("time", f"{human_time(left.seconds)} ({told})"))
    return rows


def _build(plan: Plan, name: str, terminal: Terminal, stages: bool) -> list[str]:
    build = plan.builds[name]
    found = load_description(build.digest)
    shards = plan_facts.shards(build)
    size = human_bytes(sum(shard.job.bytes_written for shard in shards))
    tensors = sum(shard.tensors for shard in shards)
    dtype = found.dtype or "types as in the sources"
    rows = [("shards", f"{len(shards)} ({size}, {plural(tensors, 'tensor')}, {dtype})")]
    copies = [shard.number for shard in shards if shard.copied]
    if copies:
        which = "all" if len(copies) == len(shards) else f"{len(copies)} (shards {ranges(copies)})"
        rows.append(("copies", f"{which}: a source file's tensors without a change"))
    vectors = dict.fromkeys(path for shard in shards for path in shard.job.deltas)
    if vectors:
        rows.append(("reads", f"{plural(len(vectors), 'stored task-vector shard')}"))
    if not Numerics(found.numerics).is_default:
        rows.append(("numerics", found.numerics))
    shorten = shortener(short_names(found.sources))
    summary = summarize(coefficients(found.coefficients), shorten)
    lines = [terminal.bold(name), *_rows(rows, terminal)]
    lines += [f"  {line}" for line in write_lines(summary, terminal.width - 2)]
    for stage in found.stages if stages else ():
        role = "built here" if stage.name == name else "folded into it, not written"
        if stage.name != name and stage.name in plan.builds:
            role = "a model of its own too"
        heading = f"  document {stage.name} ({stage.method}; {role})"
        lines += [
            "",
            terminal.dim(heading),
            *(f"    {x}" for x in stage.text.strip().split("\n")),
        ]
    return lines


def _adapter(plan: Plan, name: str, terminal: Terminal) -> list[str]:
    adapter = plan.adapters[name]
    found = load_adapter(adapter.digest)
    specs = [load_factor_spec(digest) for digest in found.factors]
    modules = sum(len(spec.modules) for spec in specs)
    size = sum(job.bytes_written for job in adapter.factors)
    updates = sum(job.bytes_written for job in adapter.updates)
    rank = f"rank {found.rank} at most" if found.rank else "ranks added up"
    rank += f", {found.energy:g} of the energy" if found.energy else ""
    rank += f", singular values above {found.cut:g}" if found.cut else ""
    rows = [
        ("adapter of", found.base),
        ("from", found.model),
        ("factors", f"{plural(modules, 'module')}, {found.decomposition}, {rank}"),
        ("jobs", f"{len(specs)} ({human_bytes(size)} at most, {DTYPES[found.dtype].name})"),
        ("on the way", f"{human_bytes(updates)} of updates, deleted once they are used"),
    ]
    if found.align:
        rows.append(("aligned", "merged in the space that the updates share (KnOTS)"))
    if found.saved:
        rows.append(("saved whole", ", ".join(found.saved)))
    if found.left:
        left = sorted({module_of(tensor) for tensor in found.left})
        shown = ", ".join(left[:8]) + (" and others" if left[8:] else "")
        rows.append(("left out", f"{plural(len(found.left), 'tensor')} that differ: {shown}"))
    return [terminal.bold(name), *_rows(rows, terminal)]


def _totals(totals: Totals) -> list[tuple[str, str]]:
    rows = [("to read", human_bytes(totals.read))]
    if totals.fetch.files or totals.present.files:
        here = f"; {_count(totals.present)} already here" if totals.present.files else ""
        rows.append(("to fetch", f"{_count(totals.fetch)} from the Hub{here}"))
    if totals.whole.files:
        rows.append(("", f"{_count(totals.whole)} more if sources are benchmarked"))
    written = {"made sources": totals.made, "task vectors": totals.deltas}
    told = [f"{_count(amount)} of {what}" for what, amount in written.items() if amount.files]
    told.append(f"{_count(totals.models)} of models")
    rows += zip(["to write", *[""] * (len(told) - 1)], told, strict=True)
    if totals.done.files:
        rows.append(
            ("on disk", f"{_count(totals.done)} of that (`snakemake -n` lists what is stale)")
        )
    free = shutil.disk_usage(".").free
    short = "" if totals.disk <= free else ", too little"
    rows.append(
        (
            "peak disk",
            f"at most {human_bytes(totals.disk)} more ({human_bytes(free)} free here{short})",
        )
    )
    if totals.lean < totals.kept:
        rows.append(("", f"{human_bytes(totals.lean)} with `keep_sources: false`"))
    if totals.unread.files:
        what = f"{totals.unread.files} of {plural(totals.weights, 'source file')}"
        rows.append(("not needed", f"{what} ({human_bytes(totals.unread.bytes)})"))
    return rows


def _count(amount: Amount) -> str:
    return f"{human_bytes(amount.bytes)} in {plural(amount.files, 'file')}"


def _rows(rows: list[tuple[str, str]], terminal: Terminal) -> list[str]:
    width = 14
    lines = []
    for key, value in rows:
        wrapped = textwrap.wrap(value, terminal.width - width) or [""]
        for i, line in enumerate(wrapped):
            head = (f"  {key}" if i == 0 else "").ljust(width)
            lines.append(terminal.dim(head) + line)
    return lines
