"""The model card: what was merged, how, from what, and how good it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shardmerge.names import layer_of, module_of
from shardmerge.registry import method

_TAGS = ["mergekit", "merge", "shardmerge"]


def model_card(
    description: Mapping[str, Any],
    card: Mapping[str, Any],
    table: Any = None,
) -> str:
    """Return the text of a model's README.md.

    Args:
        description: The build's description in the plan.
        card: The configuration's ``card``.
        table: Benchmark table (``scores.Table``), or None.
    """
    from huggingface_hub import ModelCardData

    from shardmerge.score_text import to_markdown
    from shardmerge.scores import card_results

    name = description["name"]
    reference = description["reference"]
    sources = description["sources"]
    models = [reference, *(key for key in sources if key != reference)]
    results = card_results(table, name) if table is not None else []
    data = ModelCardData(
        model_name=name if results else None,
        base_model=[sources[key].get("repo", key) for key in models],
        library_name="transformers",
        tags=[*_TAGS, *card["tags"]],
        license=card["license"],
        eval_results=results or None,
        base_model_relation="merge",
    )
    parts = [f"---\n{data.to_yaml()}\n---\n", f"# {_plain(name)}\n"]
    if card["description"]:
        parts.append(card["description"].strip() + "\n")
    parts.append("## How it was made\n")
    parts.append(_stages(description))
    parts.append("### Sources\n\n" + _sources(description) + "\n")
    parts.append("### Coefficients\n\n" + _coefficients(description) + "\n")
    if table is not None:
        parts.append("## Benchmarks\n\n" + to_markdown(table).strip() + "\n")
    if card["prompt_format"]:
        parts.append("## Prompt format\n\n" + card["prompt_format"].strip() + "\n")
    return "\n".join(parts)


def _stages(description: Mapping[str, Any]) -> str:
    count = len(description["stages"])
    kinds = ", then ".join(
        f"[{method(s['method']).title}]({method(s['method']).reference})"
        for s in description["stages"]
    )
    lines = [f"Merged in {count} {'stage' if count == 1 else 'stages'}: {kinds}.\n"]
    for stage in description["stages"]:
        # A fence longer than any in the recipe, so that no recipe can end it.
        longest = max((len(run) for run in re.findall("`{3,}", stage["text"])), default=2)
        fence = "`" * (longest + 1)
        lines.append(f"{fence}yaml\n{stage['text'].rstrip()}\n{fence}\n")
    return "\n".join(lines)


def _sources(description: Mapping[str, Any]) -> str:
    lines = ["| model | at |", "|---|---|"]
    for key, source in description["sources"].items():
        if source["kind"] == "hub":
            link = f"[{_plain(source['repo'])}](https://huggingface.co/{source['repo']})"
            lines.append(f"| {link} | `{source['commit']}` |")
        else:
            lines.append(f"| {_plain(key)} | a local folder |")
    return "\n".join(lines)


def _coefficients(description: Mapping[str, Any]) -> str:
    """Return a table: layers with equal coefficients in one row, their modules together."""
    rows: dict[tuple[str, str], dict[str, list[int]]] = {}
    for tensor, terms in description["coefficients"].items():
        text = " + ".join(_term(what, c) for what, c in terms)
        found = layer_of(tensor)
        stack, layer = found if found else ("", -1)
        rows.setdefault((stack, text), {}).setdefault(module_of(tensor), []).append(layer)
    lines = ["| layers | modules | value |", "|---|---|---|"]
    for (stack, text), modules in rows.items():
        same: dict[str, list[str]] = {}
        for module, layers in modules.items():
            same.setdefault("" if not stack else ranges(layers), []).append(module)
        for span, names in same.items():
            shown = ", ".join(f"`{_plain(n)}`" for n in names)
            lines.append(f"| {span or '-'} | {shown} | {text} |")
    return "\n".join(lines)


def ranges(numbers: list[int]) -> str:
    """Return sorted numbers as ranges: ``0-3, 7``."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _term(what: str, coefficient: float) -> str:
    shown = _plain(what)
    if coefficient == 1:
        return f"({shown})" if " - " in what else shown
    return f"{coefficient:.4g} x ({shown})"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(text.split()))
