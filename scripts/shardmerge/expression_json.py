"""Expressions as JSON-able data, and back."""

from __future__ import annotations

from typing import Any

from shardmerge import expression as ex


def to_json(expression: ex.Expression) -> dict[str, Any]:
    """Return an expression as JSON-able data; ``from_json`` inverts it."""
    match expression:
        case ex.Source(model, file, tensor, dtype, shape):
            return {
                "op": "source",
                "model": model,
                "file": file,
                "tensor": tensor,
                "dtype": dtype,
                "shape": list(shape),
            }
        case ex.Delta(finetuned, base, dtype):
            return {
                "op": "delta",
                "finetuned": to_json(finetuned),
                "base": to_json(base),
                "dtype": dtype,
            }
        case ex.LowRank(b, a, scale, transposed, dtype):
            return {
                "op": "low_rank",
                "b": to_json(b),
                "a": to_json(a),
                "scale": scale,
                "transposed": transposed,
                "dtype": dtype,
            }
        case ex.Linear(terms):
            return {"op": "linear", "terms": [[c, to_json(e)] for c, e in terms]}
        case ex.Cast(operand, dtype):
            return {"op": "cast", "operand": to_json(operand), "dtype": dtype}
        case ex.Call():
            return {
                "op": "call",
                "method": expression.method,
                "inputs": [to_json(e) for e in expression.inputs],
                "base": expression.base,
                "parameters": dict(expression.parameters),
                "per_input": {k: list(v) for k, v in expression.per_input},
                "tensor": expression.tensor,
                "models": list(expression.models),
                "shape": list(expression.output_shape),
            }
        case ex.Zero(shape):
            return {"op": "zero", "shape": list(shape)}
        case ex.Rows(operand, table):
            return {"op": "rows", "operand": to_json(operand), "table": table}
        case ex.Choice(found, table):
            return {"op": "choice", "operands": [to_json(e) for e in found], "table": table}
        case ex.Mean(operand):
            return {"op": "mean", "operand": to_json(operand)}
    raise TypeError(f"not an expression: {expression!r}")


def from_json(data: dict[str, Any]) -> ex.Expression:
    """Return the expression that ``to_json`` wrote."""
    match data["op"]:
        case "source":
            return ex.Source(
                data["model"], data["file"], data["tensor"], data["dtype"], tuple(data["shape"])
            )
        case "delta":
            return ex.Delta(from_json(data["finetuned"]), from_json(data["base"]), data["dtype"])
        case "zero":
            return ex.Zero(tuple(data["shape"]))
        case "low_rank":
            b, a = from_json(data["b"]), from_json(data["a"])
            return ex.LowRank(b, a, float(data["scale"]), data["transposed"], data["dtype"])
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
    raise ValueError(f"unknown operation {data['op']!r}")
