"""What a LoRA adapter tells of itself: its card, and what it was made from and with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shardmerge import __version__
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.markdown import block, code, link, table
from shardmerge.base.text import plural
from shardmerge.compose.architecture.names import module_of
from shardmerge.package.adapter import base_name
from shardmerge.package.known import with_states
from shardmerge.package.provenance import (
    PROVENANCE_VERSION,
    made_sources,
    recipe_row,
    tool_versions,
)
from shardmerge.package.published_names import hub_name
from shardmerge.plan.adapter_description import AdapterDescription, MadeModule
from shardmerge.recipe.naming import public_names

TAGS = ("mergekit", "peft", "lora", "shardmerge")
_WAYS = {
    "exact": "by its largest singular values",
    "randomized": "by random projection, so that its singular values are close to the largest",
    "concatenate": "as the sum of adapters, whose factors stand side by side",
}


def adapter_card(
    description: AdapterDescription,
    made: Sequence[MadeModule],
    settings: Mapping[str, Any],
    base: str | None = None,
    repository: str | None = None,
) -> str:
    """Return the text of an adapter's README.md.

    Args:
        description: Of the adapter.
        made: Its modules and what became of them.
        settings: The configuration's ``card``.
        base: Repository of the base if this run publishes it; else the card names the one that it
            comes from, and none if that is a folder.
        repository: The adapter's own, if it is published.

    Raises:
        UserError: If the front matter is not what was put into it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    named = base or hub_name(description.base, description.sources)
    data = ModelCardData(
        base_model=named,
        base_model_relation="adapter" if named else None,
        library_name="peft",
        pipeline_tag=settings.get("pipeline_tag") or "text-generation",
        tags=list(dict.fromkeys([*TAGS, *(settings.get("tags") or [])])),
        license=settings.get("license") or "other",
    )
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(
        _sections(
            description, made, named or base_name(description), repository or description.name
        )
    )
    if ModelCard(text).data.to_dict() != data.to_dict():
        raise UserError(
            "the card's front matter cannot be written", f"adapter {description.name!r}"
        )
    return text


def _sections(
    description: AdapterDescription, made: Sequence[MadeModule], base: str, place: str
) -> list[str]:
    names = public_names(dict.fromkeys([*description.sources, description.model]))
    written = [record for _, record in made if record.rank]
    model = names[description.model]
    total = math.fsum(record.norm**2 for _, record in made)
    missed = math.fsum(record.error**2 for _, record in made)
    share = math.sqrt(missed / total) if total else 0.0
    lines = [
        f"# {description.name}\n",
        f"A LoRA adapter of {code(base)}: the difference of {code(model)} from it, made "
        f"{_WAYS[description.decomposition]} with shardmerge {__version__}.\n",
        f"It changes {plural(len(written), 'module')} in {DTYPES[description.dtype].name}. What it "
        f"leaves out of their updates has {share:.3%} of their norm.\n",
        _table(made),
    ]
    if description.align:
        paper = link("KnOTS", "https://arxiv.org/abs/2410.19735")
        lines.append(f"The adapters were merged in the space that their updates share ({paper}).\n")
    if description.saved:
        saved = ", ".join(map(code, description.saved))
        lines.append(f"Saved whole, not as factors: {saved}.\n")
    if description.left:
        modules = sorted({module_of(tensor) for tensor in description.left})
        shown = ", ".join(map(code, modules[:12])) + (" and others" if modules[12:] else "")
        lines.append(
            f"Not in the adapter: {plural(len(description.left), 'tensor')} that the model does "
            f"not share with its base ({shown}).\n"
        )
    use = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base!r})\n"
        f"model = PeftModel.from_pretrained(base, {place!r})"
    )
    return [*lines, "## Use\n", block(use, "python"), "## Recipe\n"] + [
        block(stage.text.strip(), "yaml") for stage in description.stages
    ]


def _table(made: Sequence[MadeModule]) -> str:
    groups: dict[str, list[Any]] = {}
    for module, record in made:
        groups.setdefault(module_of(f"{module.name}.weight"), []).append(record)
    rows = []
    for name, records in groups.items():
        ranks = [r.rank for r in records]
        span = str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
        rows.append(
            [code(name), str(len(records)), span, f"{max(r.relative for r in records):.4f}"]
        )
    return table(["module", "layers", "rank", "largest relative error"], rows, numbers=True)


def adapter_provenance(
    digest: str,
    description: AdapterDescription,
    made: Sequence[MadeModule],
    outputs: Mapping[str, Mapping[str, Any]],
    base: str | None = None,
) -> dict[str, Any]:
    """Return the provenance of an adapter as JSON-able data, without times and machines.

    Args:
        digest: The adapter's.
        description: Of it.
        made: Its modules and what became of them.
        outputs: SHA-256 and size of each file of its folder.
        base: As of ``adapter_card``.
    """
    names = public_names(description.sources)
    return {
        "version": PROVENANCE_VERSION,
        "name": description.name,
        "adapter": digest,
        "recipe": recipe_row(description.recipe, description.stages),
        "base": base or base_name(description),
        "decomposition": description.decomposition,
        "sources": {
            names[key]: with_states(source, {}) for key, source in description.sources.items()
        },
        **made_sources(description.made, names),
        "modules": {
            module.name: {"rank": r.rank, "norm": r.norm, "error": r.error} for module, r in made
        },
        "tools": tool_versions(),
        "outputs": dict(outputs),
    }
