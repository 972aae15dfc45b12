"""Expressions as JSON-able data, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra.pieces import Patch


def source_to_json(
    source: ex.Source, file: str | None = None, tensor: str | None = None
) -> dict[str, Any]:
    """Return a source tensor as JSON-able data.

    Args:
        source: The tensor.
        file, tensor: What is written for its file and name, by default these.
    """
    return {
        "op": "source",
        "model": source.model,
        "file": source.file if file is None else file,
        "tensor": source.tensor if tensor is None else tensor,
        "dtype": source.dtype,
        "shape": list(source.shape),
    }


def to_json(
    expression: ex.Expression,
    source: Callable[[ex.Source], Any] = source_to_json,
    name: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Return an expression as JSON-able data; ``from_json`` inverts it.

    Args:
        expression: What is written.
        source: Writes a source tensor.
        name: Writes the name of the output tensor that a call is for.
    """

    def inner(operand: ex.Expression) -> Any:
        return to_json(operand, source, name)

    match expression:
        case ex.Source():
            return source(expression)
        case ex.Decoded():
            return {
                "op": "decoded",
                "format": expression.format,
                "parts": {role: source(one) for role, one in expression.parts},
                "parameters": dict(expression.parameters),
                "shape": list(expression.output_shape),
                "step": expression.step,
            }
        case ex.Arranged():
            return {
                "op": "arranged",
                "pieces": [
                    [inner(p.operand), *map(list, (p.begin, p.sizes, p.axes, p.at))]
                    for p in expression.pieces
                ],
                "shape": list(expression.output_shape),
            }
        case ex.Delta(finetuned, base, dtype):
            return {
                "op": "delta",
                "finetuned": inner(finetuned),
                "base": inner(base),
                "dtype": dtype,
            }
        case ex.LowRank(b, a, scale, transposed, dtype, experts):
            stack = {} if experts == 1 else {"experts": experts}
            return {
                "op": "low_rank",
                "b": inner(b),
                "a": inner(a),
                "scale": scale,
                "transposed": transposed,
                "dtype": dtype,
                **stack,
            }
        case ex.Linear(terms):
            return {"op": "linear", "terms": [[c, inner(e)] for c, e in terms]}
        case ex.Cast(operand, dtype):
            return {"op": "cast", "operand": inner(operand), "dtype": dtype}
        case ex.Call():
            return {
                "op": "call",
                "method": expression.method,
                "inputs": [inner(e) for e in expression.inputs],
                "base": expression.base,
                "parameters": dict(expression.parameters),
                "per_input": {k: list(v) for k, v in expression.per_input},
                "tensor": name(expression.tensor),
                "models": list(expression.models),
                "shape": list(expression.output_shape),
            }
        case ex.Zero(shape):
            return {"op": "zero", "shape": list(shape)}
        case ex.Rows(operand, table):
            return {"op": "rows", "operand": inner(operand), "table": table}
        case ex.Choice(found, table):
            return {"op": "choice", "operands": [inner(e) for e in found], "table": table}
        case ex.Mean(operand):
            return {"op": "mean", "operand": inner(operand)}
        case ex.RowSums(operand, rows, weights):
            parts = {"operand": operand, "rows": rows, "weights": weights}
            return {"op": "row_sums", **{name: inner(part) for name, part in parts.items()}}
    raise TypeError(f"not an expression: {expression!r}")


def from_json(data: dict[str, Any]) -> ex.Expression:
    """Return the expression that ``to_json`` wrote."""
    match data["op"]:
        case "source":
            return ex.Source(
                data["model"], data["file"], data["tensor"], data["dtype"], tuple(data["shape"])
            )
        case "decoded":
            return ex.Decoded(
                format=data["format"],
                parts=tuple((k, from_json(data["parts"][k])) for k in sorted(data["parts"])),
                parameters=tuple((k, _hashed(v)) for k, v in sorted(data["parameters"].items())),
                output_shape=tuple(data["shape"]),
                step=data["step"],
            )
        case "arranged":
            return ex.Arranged(
                tuple(Patch(from_json(one), *map(tuple, box)) for one, *box in data["pieces"]),
                tuple(data["shape"]),
            )
        case "delta":
            return ex.Delta(from_json(data["finetuned"]), from_json(data["base"]), data["dtype"])
        case "zero":
            return ex.Zero(tuple(data["shape"]))
        case "low_rank":
            b, a = from_json(data["b"]), from_json(data["a"])
            how = data["transposed"], data["dtype"], data.get("experts", 1)
            return ex.LowRank(b, a, float(data["scale"]), *how)
        case "linear":
            return ex.Linear(tuple((float(c), from_json(e)) for c, e in data["terms"]))
        case "cast":
            return ex.Cast(from_json(data["operand"]), data["dtype"])
        case "call":
            return ex.Call(
                method=data["method"],
                inputs=tuple(from_json(e) for e in data["inputs"]),
                base=data["base"],
                parameters=tuple(sorted(data["parameters"].items())),
                per_input=tuple(sorted((k, tuple(v)) for k, v in data["per_input"].items())),
                tensor=data["tensor"],
                models=tuple(data["models"]),
                output_shape=tuple(data["shape"]),
            )
        case "rows":
            return ex.Rows(from_json(data["operand"]), data["table"])
        case "choice":
            return ex.Choice(tuple(from_json(e) for e in data["operands"]), data["table"])
        case "mean":
            return ex.Mean(from_json(data["operand"]))
        case "row_sums":
            return ex.RowSums(*(from_json(data[name]) for name in ("operand", "rows", "weights")))
    raise ValueError(f"unknown operation {data['op']!r}")


def _hashed(value: Any) -> Any:
    """Return a parameter as it was before JSON made lists of its tuples."""
    return tuple(map(_hashed, value)) if isinstance(value, list) else value
