"""A plan as one HTML page without anything outside it: how a model is made, shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from shardmerge.base.text import human_bytes, plural
from shardmerge.plan.description import BuildDescription, DescribedSource, load_description
from shardmerge.plan.plan import Plan
from shardmerge.recipe.naming import short_names, shortener
from shardmerge.report import plan_facts
from shardmerge.report.coefficients import coefficients
from shardmerge.report.plan_facts import Shard
from shardmerge.report.summary import summarize

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #24292f; margin: 1.5rem; max-width: 70rem; }
h1 { font-size: 1.25rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .7rem; text-align: left; }
th { border-bottom: 2px solid #d0d7de; white-space: nowrap; }
td { border-bottom: 1px solid #eaeef2; vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
td.key { color: #57606a; white-space: nowrap; }
code { font-size: .92em; }
"""


def plan_page(plan: Plan, name: str) -> str:
    """Return the page of one build.

    Args:
        plan: Its builds' descriptions and specifications lie where ``planning`` keeps them.
        name: Of the build.
    """
    build = plan.builds[name]
    found = load_description(build.digest)
    shards = plan_facts.shards(build)
    shorten = shortener(short_names(found.sources))
    parts = [
        f"<h1>{escape(name)}</h1>",
        _table((), _facts(plan, found, shards)),
        "<h2>What the tensors are made of</h2>",
        _table(
            ("layers", "modules", "value"),
            (
                (
                    line.layers or ("" if line.rest else "-"),
                    "everything else" if line.rest else ", ".join(line.modules),
                    line.formula,
                )
                for line in summarize(coefficients(found.coefficients), shorten)
            ),
        ),
        "<h2>Sources</h2>",
        _table(("model", "from", "at"), _sources(found.sources)),
        "<h2>Shards</h2>",
        _shards(shards),
    ]
    head = f'<meta charset="utf-8"><title>{escape(name)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _facts(plan: Plan, found: BuildDescription, shards: Sequence[Shard]) -> list[tuple[str, str]]:
    written = sum(shard.job.bytes_written for shard in shards)
    read = sum(shard.job.bytes_read for shard in shards)
    copies = sum(shard.copied is not None for shard in shards)
    vectors = {path for shard in shards for path in shard.job.deltas}
    tensors = plural(sum(shard.tensors for shard in shards), "tensor")
    rows = [
        (
            "model",
            f"{human_bytes(written)}, {tensors}, {found.dtype or 'types as in the sources'}",
        ),
        ("shards", f"{len(shards)}, {copies} of them copies"),
        ("read by its jobs", human_bytes(read)),
        ("stored task vectors", plural(len(vectors), "shard") if vectors else "none"),
        ("numerics", found.numerics),
    ]
    stages = [f"{stage.name} ({stage.method})" for stage in found.stages]
    rows.append(("documents", ", ".join(stages)))
    rows += [("warning", warning) for warning in plan.warnings]
    return rows


def _sources(sources: Mapping[str, DescribedSource]) -> Iterable[tuple[str, str, str]]:
    for key, source in sources.items():
        yield key, source.store.title, source.commit or "-"


def _shards(shards: Sequence[Shard]) -> str:
    header = ("file", "size", "tensors", "reads", "made from")
    rows = []
    for shard in shards:
        job = shard.job
        files = [path.rsplit("/", 1)[-1] for path in (*job.sources, *job.deltas)]
        origin = f"copy of {files[0]}" if shard.copied else plural(len(files), "file")
        file = job.output.rsplit("/", 1)[-1]
        rows.append((file, human_bytes(job.bytes_written), f"{shard.tensors:,}",
                     human_bytes(job.bytes_read), origin))  # fmt: skip
    return _table(header, rows, numbers=(1, 2, 3))


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    """Return an HTML table; without a header the first column holds keys."""

    def cell(tag: str, i: int, text: str) -> str:
        kind = "number" if i in numbers else "key" if not header and i == 0 else ""
        return f"<{tag}{f' class={kind!r}' if kind else ''}>{escape(text)}</{tag}>"

    lines = ["<table>"]
    if header:
        lines.append(f"<tr>{''.join(cell('th', i, text) for i, text in enumerate(header))}</tr>")
    lines += [f"<tr>{''.join(cell('td', i, t) for i, t in enumerate(row))}</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])
