"""LoRA adapters as peft writes them: what each of their tensors does to which tensor of a model.

https://huggingface.co/docs/peft/developer_guides/checkpoint describes the format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.compose.architecture.names import is_vocabulary, layer_of
from shardmerge.compose.models import Entry
from shardmerge.sources.adapter_config import AdapterConfig
from shardmerge.sources.lock import LockedSource

#: From a name of the adapter's to the model's.
Rename = Callable[[str], str]

_PREFIX = "base_model.model."
_ORIGINAL = ".original_module."
#: What peft appends to a module's name, and what it is.
_PARTS = (
    (re.compile(r"(.+)\.lora_(A|B)\.weight"), "linear"),
    (re.compile(r"(.+)\.lora_embedding_(A|B)"), "embedding"),
    (re.compile(r"(.+)\.lora_B\.(bias)"), "bias"),
    (re.compile(r"(.+)\.lora_(magnitude_vector)(?:\.weight)?"), "magnitude"),
)


@dataclass(frozen=True)
class Update:
    """What an adapter does to one tensor of its model.

    Args:
        replacement: The adapter's own tensor in its place (``modules_to_save``, biases), or None.
        b, a: Factors of what is added, or None.
        scale: Of what is added.
        transposed: Whether the product is transposed before it is added.
        embedding: Whether the tensor is an embedding, which peft rounds in another way.
        bias: What is added as it is, times the scale, or None.
        magnitude: Norms that the rows of the result are brought to (DoRA), or None.
        experts: How many matrices the factors make, one behind the other.
    """

    replacement: ex.Source | None = None
    b: ex.Source | None = None
    a: ex.Source | None = None
    scale: float = 1.0
    transposed: bool = False
    embedding: bool = False
    bias: ex.Source | None = None
    magnitude: ex.Source | None = None
    experts: int = 1


@dataclass
class _Module:
    """The tensors that an adapter has for one module."""

    kind: str = "linear"
    parts: dict[str, ex.Source] = field(default_factory=dict)


def adapter_updates(
    key: str, locked: LockedSource, table: Mapping[str, Entry], model: str
) -> dict[str, Update]:
    """Return what an adapter does to a model, by the name of the model's tensor.

    Args:
        key: The adapter as the recipe names it.
        locked: Its lock.
        table: The model's tensors.
        model: The model as the recipe names it, for messages.

    Raises:
        UserError: If it is no LoRA adapter, is of a kind that cannot be merged exactly, or does
            not fit the model; names the tensor.
    """
    return _Reader(key, locked, table, model).updates()


class _Reader:
    def __init__(
        self, key: str, locked: LockedSource, table: Mapping[str, Entry], model: str
    ) -> None:
        self._where = f"adapter {key!r}"
        self._config = AdapterConfig(locked.config, self._where)
        self._table, self._model = table, model
        self._alone: set[str] = set()  # tensors that are adapted as parameters, not as modules
        self._tensors = {
            name: ex.Source(key, t.file, name, t.dtype, t.shape)
            for name, t in sorted(locked.tensors.items())
        }

    def updates(self) -> dict[str, Update]:
        modules, full = self._sort()
        targets = self._targets(modules)
        names = [*full, *targets.values()]
        rename = self._renamed(names)
        found: dict[str, Update] = {}
        for name, source in full.items():
            target = rename(name)
            self._same_shape(source, target, self._table[target].shape)
            found[target] = Update(replacement=source)
        for name, module in modules.items():
            for target, update in self._module(targets[name], module, rename).items():
                own = found.get(target, Update())
                found[target] = replace(update, replacement=own.replacement)
        return self._turn(found)

    def _sort(self) -> tuple[dict[str, _Module], dict[str, ex.Source]]:
        """Return the parts of each module that is adapted, and the tensors that are whole."""
        modules: dict[str, _Module] = {}
        full: dict[str, ex.Source] = {}
        for name, source in self._tensors.items():
            plain = name.removeprefix(_PREFIX)
            if plain == name:
                raise self._error(name, f"does not begin with {_PREFIX!r}, as peft's do")
            for pattern, kind in _PARTS:
                if match := pattern.fullmatch(plain):
                    module = modules.setdefault(match[1], _Module())
                    module.parts[match[2]] = source
                    module.kind = "embedding" if kind == "embedding" else module.kind
                    break
            else:
                if ".lora_" in plain:
                    raise self._error(name, "is of no kind that is known here")
                if _ORIGINAL in plain:  # the model's own, beside what was trained of it
                    continue
                full[plain.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = source
        if not self._tensors:
            raise UserError("has no tensors", self._where)
        return modules, full

    def _renamed(self, names: Iterable[str]) -> Rename:
        """Return a function from the adapter's names to the model's.

        A checkpoint may lack or have an outer prefix that the module has not (GPT-2's
        ``transformer.``); it is the same for all tensors.
        """
        names = list(names)
        missing = next((name for name in names if name not in self._table), None)
        if missing is None:
            return lambda name: name
        longer = [n[: -len(missing)] for n in self._table if n.endswith(f".{missing}")]
        shorter = [missing[: -len(n)] for n in self._table if missing.endswith(f".{n}")]
        for extra in longer:
            if all(extra + name in self._table for name in names):
                return lambda name: extra + name
        for extra in shorter:
            if all(n.startswith(extra) and n.removeprefix(extra) in self._table for n in names):
                return lambda name: name.removeprefix(extra)
        hint = did_you_mean(missing, self._table)
        if missing in self._alone:
            hint = (
                "Where a model stores its experts one by one, merge the adapter with peft "
                "(`merge_and_unload`) and name the result."
            )
        if missing == "lm_head.weight":
            hint = "The model's embeddings are tied: input and output share one tensor."
        raise UserError(
            f"changes a tensor {missing!r} that {self._model!r} does not have", self._where, hint
        )

    def _targets(self, modules: Iterable[str]) -> dict[str, str]:
        """Return for each module as peft calls it which tensor its factors are of.

        Of a module whose parameters are adapted by themselves the last is the outermost, and
        those before it lie in one ``base_layer`` after the other.
        """
        nested: dict[str, list[str]] = {}
        for name in sorted(modules, key=len):
            nested.setdefault(name.replace(".base_layer", ""), []).append(name)
        found = {}
        for plain, wrapped in nested.items():
            parameters = self._config.parameters(plain)
            if not parameters:
                found |= {name: f"{name}.weight" for name in wrapped}
            elif len(parameters) != len(wrapped):
                raise UserError(
                    f"adapts {len(wrapped)} parameters of {plain!r}, but target_parameters in "
                    f"adapter_config.json names {', '.join(parameters)}",
                    self._where,
                )
            else:
                names = (f"{plain}.{last}" for last in reversed(parameters))
                found |= dict(zip(wrapped, names, strict=True))
                self._alone |= {found[name] for name in wrapped}
        return found

    def _module(self, name: str, module: _Module, rename: Rename) -> dict[str, Update]:
        parts = module.parts
        for part in "AB":
            if part not in parts:
                has = next(iter(parts.values())).tensor
                raise self._error(has, f"has no lora_{part} beside it")
        b, a = parts["B"], parts["A"]
        target, embedding = rename(name), module.kind == "embedding"
        shape = self._table[target].shape
        stacked = name in self._alone and len(shape) == 3
        experts = max(1, shape[0]) if stacked else 1
        self._check_factors(b, a, target, shape[1:] if stacked else shape, embedding)
        rank, scale = self._config.scale(name.removesuffix(".weight"))
        if rank * experts != a.shape[0]:
            each = f" for each of {experts} experts" if experts > 1 else ""
            raise self._error(
                a.tensor, f"has rank {a.shape[0]}, but adapter_config.json says {rank}{each}"
            )
        if embedding and "magnitude_vector" in parts:
            raise self._error(b.tensor, "is DoRA's of an embedding, which is not supported")
        if experts > 1 and len(parts) > 2:
            raise self._error(b.tensor, "has DoRA or a bias beside it, which experts have not")
        update = Update(
            b=b, a=a, scale=scale, transposed=embedding, embedding=embedding, experts=experts
        )
        found = {target: replace(update, magnitude=parts.get("magnitude_vector"))}
        if bias := parts.get("bias"):
            other = target.removesuffix("weight") + "bias"
            if other not in self._table:
                raise self._error(bias.tensor, f"adds to {other!r}, which the model does not have")
            self._same_shape(bias, other, self._table[other].shape)
            found[other] = Update(bias=bias, scale=scale)
        return found

    def _check_factors(
        self, b: ex.Source, a: ex.Source, target: str, matrix: tuple[int, ...], embedding: bool
    ) -> None:
        for factor in (b, a):
            if len(factor.shape) != 2:
                raise self._error(factor.tensor, "is no matrix: convolutions are not supported")
        if b.shape[1] != a.shape[0]:
            fit = f"{list(b.shape)} does not fit {a.tensor!r} {list(a.shape)}"
            raise self._error(b.tensor, fit)
        shapes = [(a.shape[1], b.shape[0])] + ([] if embedding else [(b.shape[0], a.shape[1])])
        if matrix not in shapes:
            raise self._error(
                b.tensor,
                f"and {a.tensor!r} make a matrix of {list(shapes[-1])}, but {target!r} of "
                f"{self._model!r} is {list(self._table[target].shape)}",
                self._fitting(target, shapes[-1]),
            )

    def _turn(self, found: dict[str, Update]) -> dict[str, Update]:
        """Tell which products are transposed: those of layers that keep [inputs, outputs].

        Shapes tell, but of square matrices: these are as the others in the layers, or, if all
        there are square, as the configuration says.
        """
        linear = {n: u for n, u in found.items() if u.b is not None and not u.embedding}
        for fused in (False, True):
            alike = {name: one for name, one in linear.items() if (one.experts > 1) == fused}
            found |= self._turn_alike(alike)
        return found

    def _turn_alike(self, linear: Mapping[str, Update]) -> dict[str, Update]:
        found = {}
        votes = {
            self._table[name].shape[-2:] == (update.b.shape[0], update.a.shape[1])
            for name, update in linear.items()
            if update.b.shape[0] != update.a.shape[1] and layer_of(name) is not None
        }
        plain = votes.pop() if len(votes) == 1 else not self._config.fan_in_fan_out
        for name, update in linear.items():
            shape = (update.b.shape[0], update.a.shape[1])
            straight = plain if shape[0] == shape[1] else self._table[name].shape[-2:] == shape
            update = replace(update, transposed=not straight)
            norms = update.magnitude
            if norms is not None and math.prod(norms.shape) != shape[0]:
                raise self._error(norms.tensor, f"does not have {shape[0]} elements")
            found[name] = update
        return found

    def _same_shape(self, source: ex.Source, target: str, shape: tuple[int, ...]) -> None:
        if source.shape != shape:
            raise self._error(
                source.tensor,
                f"is {list(source.shape)}, but {target!r} of {self._model!r} is {list(shape)}",
                self._fitting(target, source.shape),
            )

    def _fitting(self, target: str, shape: tuple[int, ...]) -> str:
        """Return what model the adapter fits, from the shape that it wants a tensor to have."""
        own = self._table[target].shape
        if is_vocabulary(target) and shape[1:] == own[1:]:
            return (
                f"The adapter is for a vocabulary of {shape[0]}, {self._model!r} has one of "
                f"{own[0]}. Give the model as many tokens (`resize_token_embeddings`), merge the "
                "two with peft (`merge_and_unload`), and name the result."
            )
        made_for = self._config.made_for
        named = f" adapter_config.json names {made_for}." if made_for else ""
        return f"Name the model that the adapter was trained on, or one of its size.{named}"

    def _error(self, tensor: str, message: str, hint: str | None = None) -> UserError:
        return UserError(f"its tensor {tensor!r} {message}", self._where, hint)
