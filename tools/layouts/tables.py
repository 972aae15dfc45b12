"""What the installed transformers knows of the layouts of checkpoints, as data of the project.

Its tables say how a model's stored tensors become the tensors that it holds: by other names, by
stacks, slices, concatenations and transpositions. Only what they say is taken, no code.
"""

from __future__ import annotations

import json
import re
from typing import Any

from shardmerge.compose.architecture.layouts import LAYOUTS_FILE

#: Operations that are only about how work is shared out, or that change nothing here.
_INDEX = r"(\d{1,5})"


def layouts_text() -> str:
    """Return the table of the installed transformers, as the project keeps it."""
    import transformers
    from transformers import conversion_mapping
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    known = conversion_mapping._build_checkpoint_conversion_mapping()
    rows = {kind: [_row(one) for one in transforms] for kind, transforms in known.items()}
    tables: dict[str, list[Any]] = {}
    types: dict[str, str] = {}
    names: dict[str, str] = {}
    for kind in sorted(rows):
        text = json.dumps(rows[kind])
        types[kind] = names.setdefault(text, kind)
        tables.setdefault(types[kind], rows[kind])
    bases = {
        kind: name
        for kind, name in sorted(MODEL_MAPPING_NAMES.items())
        if isinstance(name, str) and name in types
    }
    data = {
        "made_by": "python -m tools.layouts",
        "transformers": transformers.__version__,
        "bases": bases,
        "types": types,
        "tables": tables,
    }
    return _text(data)


def committed() -> str:
    """Return the table that the project has."""
    return LAYOUTS_FILE.read_text(encoding="utf-8")


def drift(have: str, found: str) -> list[str]:
    """Return the model types whose tables differ, those of one side alone among them.

    Args:
        have: The project's table.
        found: That of the installed transformers.
    """
    sides = [json.loads(text) for text in (have, found)]
    resolved = [
        {kind: side["tables"][table] for kind, table in side["types"].items()} for side in sides
    ]
    kinds = sorted(set(resolved[0]) | set(resolved[1]))
    changed = [kind for kind in kinds if resolved[0].get(kind) != resolved[1].get(kind)]
    return changed + (["(bases)"] if sides[0]["bases"] != sides[1]["bases"] else [])


def _row(transform: Any) -> dict[str, Any]:
    """Return a transform as data: what is matched, what it becomes, and by which steps."""
    kind = type(transform).__name__
    row: dict[str, Any] = {
        "from": [_pattern(one) for one in transform.source_patterns],
        "to": list(transform.target_patterns),
    }
    if kind in ("WeightRenaming", "PrefixChange"):
        return row
    if kind != "WeightConverter":
        return row | {"unsupported": kind}
    if [type(one).__name__ for one in transform.operations] == ["Split"]:
        # where parts have any length, only the other way is known without the model
        (dim,) = (one.dim for one in transform.operations)
        return {
            "from": [_pattern(re.escape(one)) for one in row["to"]],
            "to": [one.replace("\\", "") for one in transform.source_patterns],
            "steps": [["concatenate", dim]],
        }
    steps = [_step(one) for one in transform.operations]
    strange = [name for name, *_ in steps if name[0].isupper()]
    return row | ({"unsupported": strange[0]} if strange else {"steps": steps})


def _step(operation: Any) -> list[Any]:
    """Return an operation as its name and axes; one that is not supported by its own name."""
    match type(operation).__name__:
        case "MergeModulelist":
            return ["stack", operation.dim]
        case "Concatenate" | "Chunk" as name if not operation.num_shards_attribute:
            return [name.lower(), operation.dim]
        case "Concatenate":
            return ["concatenate", operation.dim]
        case "Transpose":
            name = "transpose_if_needed" if operation.check_dims else "transpose"
            return [name, operation.dim0, operation.dim1]
    return [type(operation).__name__]


def _pattern(source: str) -> str:
    """Return a source pattern as a regular expression: ``*`` is a number, and names end there."""
    pattern = source.replace("*.", f"{_INDEX}\\.")
    return pattern + r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", source) else pattern


def _text(data: dict[str, Any]) -> str:
    """Return JSON with a line for each row, so that changes are seen."""
    lines = ["{"]
    for key in ("made_by", "transformers"):
        lines.append(f" {json.dumps(key)}: {json.dumps(data[key])},")
    for key in ("bases", "types"):
        rows = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in data[key].items()]
        lines += [f" {json.dumps(key)}: {{", ",\n".join(rows), " },"]
    tables = []
    for name, rows in data["tables"].items():
        body = ",\n".join(f"   {json.dumps(row)}" for row in rows)
        tables.append(f"  {json.dumps(name)}: [\n{body}\n  ]")
    lines += [' "tables": {', ",\n".join(tables), " }", "}"]
    return "\n".join(lines) + "\n"
