"""Which tensors of a model become a LoRA adapter of its base, and what each update is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.algebra.factorization import AlignedMerge, FactorModule
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.compose.adapter_stacks import Adapted, missing_experts
from shardmerge.compose.architecture.names import is_derived, is_embedding, is_head, layer_of
from shardmerge.compose.composer import Composer
from shardmerge.compose.layout_matching import Pattern
from shardmerge.compose.models import Model
from shardmerge.recipe.extraction import Extraction
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Stage

#: Families whose layers keep their matrices as [inputs, outputs].
_TURNED = ("gpt2", "openai-gpt", "imagegpt")
#: Families whose fused experts are kept so.
_TURNED_EXPERTS = ("gpt_oss", "llama4", "llama4_text")
#: Families whose checkpoints may lack the prefix that the model's modules have.
_PREFIXES = {"gpt2": "transformer."}
#: What tells a token which experts it goes to: no linear layer in transformers.
_ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)$")
_EXPERTS = re.compile(r"(^|\.)experts\.")


@dataclass
class AdapterParts:
    """What an adapter is made of.

    Args:
        modules: Those that are adapted, each with the tensors that its update is read as.
        saved: Tensors that are saved whole: name in the adapter, and the tensor.
        left: Tensors that differ from the base's and are not in the adapter.
        equal: Tensors that were asked for and are the base's.
        sums: What the update of each adapted tensor is, and what each saved one is.
        all: Every module of the base that has tensors.
        turned: Whether the base's layers keep their matrices as [inputs, outputs].
    """

    modules: list[Adapted] = field(default_factory=list)
    saved: list[tuple[str, OutputTensor]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    sums: dict[str, ex.Expression] = field(default_factory=dict)
    all: tuple[str, ...] = ()
    turned: bool = False

    @property
    def tensors(self) -> list[OutputTensor]:
        """All tensors that the factors are made from."""
        return [t for _, parts in self.modules for t in parts] + [t for _, t in self.saved]


def adapter_parts(composer: Composer, name: str) -> AdapterParts:
    """Return what the adapter of a stage is made of.

    Args:
        composer: Of its recipe; updates are sums, so that its numerics must fold.
        name: The stage.

    Raises:
        UserError: If a module is asked for that there is not, or a tensor does not fit.
    """
    stage = composer.recipe.stages[name]
    for needed in composer.recipe.needed(name):
        if needed != name:
            composer.model(Reference(needed))
    base, model = composer.model(stage.base_model), composer.model(stage.inputs[0].model)
    config = composer.lock.sources[composer.reference_source(stage.base_model.model)].config
    return _Reader(stage, base, model, str(config.get("model_type"))).parts()


class _Reader:
    def __init__(self, stage: Stage, base: Model, model: Model, family: str) -> None:
        self._stage, self._base = stage, base
        fit = Pattern(base).fit(model)
        self._model, self._names = fit.model, fit.names
        self._asked: Extraction = stage.extraction
        self._turned, self._turned_experts = family in _TURNED, family in _TURNED_EXPERTS
        prefix = _PREFIXES.get(family, "")
        lacks = prefix and not any(tensor.startswith(prefix) for tensor in base.table)
        self._prefix = prefix if lacks else ""

    def parts(self) -> AdapterParts:
        modules = {tensor: self._module(tensor) for tensor in self._base.table}
        found = AdapterParts(all=tuple(dict.fromkeys(modules.values())), turned=self._turned)
        for key in ("modules", "exclude"):
            self._all_there(getattr(self._asked, key), key, modules.values())
        self._all_there(self._asked.save, "modules_to_save", modules.values())
        for tensor, module in modules.items():
            self._sort(tensor, module, found)
        self._complete(modules, found)
        found.modules = _nested(found.modules)
        if not found.modules and not found.saved:
            asked = "of the modules that are asked for " if self._asked.modules else ""
            raise UserError(
                f"no tensor {asked}differs between {self._model.name!r} and {self._base.name!r}",
                self._stage.where,
            )
        return found

    def _complete(self, modules: Mapping[str, str], found: AdapterParts) -> None:
        """Give zeros to experts that are the base's, where factors are stacked."""
        saved = {tensor for tensor in modules if _ends(modules[tensor], self._asked.save)}
        could = [(t, m) for t, m in modules.items() if t.endswith(".weight") and t not in saved]
        added = missing_experts(found.modules, could)
        names = {module.tensor for module, _ in added}
        found.equal = [tensor for tensor in found.equal if tensor not in names]
        found.sums |= {module.tensor: tensors[0].expression for module, tensors in added}
        places = {tensor: place for place, tensor in enumerate(modules)}
        found.modules = sorted([*found.modules, *added], key=lambda one: places[one[0].tensor])

    def _module(self, tensor: str) -> str:
        return self._prefix + tensor.removesuffix(".weight").removesuffix(".bias")

    def _sort(self, tensor: str, module: str, found: AdapterParts) -> None:
        saved = _ends(module, self._asked.save)
        own = self._names.get(tensor)
        if own is None:
            if saved or self._is_adapted(tensor, module):
                if is_head(tensor) and not saved:
                    return
                raise self._error(tensor, "is in the base model only")
            return
        if saved:
            entry = self._model.table[own]
            whole = OutputTensor(tensor, entry.dtype, entry.shape, self._model.expression(own))
            found.sums[tensor] = whole.expression
            found.saved.append((f"base_model.model.{self._prefix}{tensor}", whole))
            return
        if is_derived(tensor):
            return
        adapted = self._is_adapted(tensor, module)
        if self._model.table[own].shape != self._base.table[tensor].shape:
            if adapted:
                shape, other = self._model.table[own].shape, self._base.table[tensor].shape
                raise self._error(tensor, f"is {list(shape)}, but the base's is {list(other)}")
            found.left.append(tensor)
            return
        row = self._update(tensor)
        if not row:
            found.equal += [tensor] if adapted else []
        elif adapted:
            found.sums[tensor] = fold.to_expression(row, self._base.table[tensor].shape)
            found.modules.append(self._adapted(tensor, module, row, found.sums[tensor]))
        else:
            found.left.append(tensor)

    def _update(self, tensor: str) -> fold.Row:
        """Return what the model adds to the base, nothing if all that it merges is the base's."""
        made = self._model.row(self._names[tensor])
        calls = (leaf for leaf in made if isinstance(leaf, ex.Call) and leaf.base is not None)
        merged = {operand for call in calls for operand in call.inputs}
        if len(made) == 1 and merged == {self._base.expression(tensor)}:
            return {}
        return fold.add_rows([(1.0, made), (-1.0, self._base.row(tensor))])

    def _is_adapted(self, tensor: str, module: str) -> bool:
        shape = self._base.table[tensor].shape
        fits = len(shape) == 2 and tensor.endswith(".weight")
        fits |= len(shape) == 3 and _EXPERTS.search(tensor) is not None
        if _ends(module, self._asked.exclude):
            return False
        if not self._asked.modules:
            return fits and layer_of(tensor) is not None and not _ROUTER.search(module)
        if tensor.endswith(".bias") or not _ends(module, self._asked.modules):
            return False
        if not fits:
            raise UserError(
                f"{module!r} is no matrix, but {list(shape)}, so that it has no update of low rank",
                self._asked.lines.get("modules", self._stage.where),
                "List it under `modules_to_save`.",
            )
        return True

    def _adapted(
        self, tensor: str, module: str, row: fold.Row, expression: ex.Expression
    ) -> Adapted:
        shape = self._base.table[tensor].shape
        kind = "linear"
        if len(shape) == 3:
            kind = "experts"
        elif is_embedding(tensor):
            kind = "embedding"
        turned = {
            "linear": self._turned and not is_head(tensor),
            "embedding": True,
            "experts": self._turned_experts,
        }[kind]
        merge = None
        if self._asked.align:
            merge, row = self._merge(tensor, module, row)
        products = [leaf for leaf in row if isinstance(leaf, ex.LowRank)]
        products = [p for p in products if p.transposed == turned]
        if len(products) < len(row) or kind == "experts":
            if self._asked.decomposition == "concatenate":
                raise UserError(
                    f"the update of {module!r} is no sum of LoRA adapters, so that none can be "
                    "put side by side",
                    self._asked.lines["decomposition"],
                    "Write `decomposition: exact` and a `rank`, or `exclude` the module.",
                )
            products = []
        made = FactorModule(
            name=module,
            tensor=tensor,
            kind=kind,
            transposed=turned,
            products=len(products),
            uniform=_EXPERTS.search(f"{module}.") is not None,
            merge=merge,
        )
        if products:
            return made, tuple(_factors(made, products, row))
        return made, (OutputTensor(tensor, _wide([expression]), shape, expression),)

    def _merge(
        self, tensor: str, module: str, row: fold.Row
    ) -> tuple[AlignedMerge | None, fold.Row]:
        """Return how adapters are merged, and their products in the order of the inputs."""
        whole = fold.add_rows([(1.0, row), (1.0, self._base.row(tensor))])
        call = next(iter(whole))
        own = self._base.expression(tensor)
        products: list[list[ex.LowRank]] = []
        if len(whole) == 1 and isinstance(call, ex.Call) and call.base is not None:
            products = [_products(one, own) for one in call.inputs]
        flat = [p for one in products for p in one or ()]
        if not flat or None in products or call.inputs[call.base] != own:
            raise UserError(
                f"the update of {module!r} is no merge of LoRA adapters of {self._base.name!r} "
                "by a method such as `ties`",
                self._asked.lines["align"],
                "Merge `base+adapter` with the same base_model. Sums need no alignment.",
            )
        merge = AlignedMerge(
            method=call.method,
            base=call.base,
            parameters=call.parameters,
            per_input=call.per_input,
            models=call.models,
            products=tuple(map(len, products)),
        )
        if len(set(flat)) < len(flat):
            raise UserError(
                f"the same adapter is merged twice into {module!r}", self._asked.lines["align"]
            )
        return merge, dict.fromkeys(flat, (1.0, 1.0))

    def _all_there(self, names: Iterable[str], key: str, modules: Iterable[str]) -> None:
        known = list(modules)
        for name in names:
            if not any(_ends(module, [name]) for module in known):
                last = {module.rsplit(".", 1)[-1] for module in known}
                raise UserError(
                    f"`{key}` names {name!r}, but no module of {self._base.name!r} ends so",
                    self._asked.lines[key],
                    did_you_mean(name, last),
                )

    def _error(self, tensor: str, message: str) -> UserError:
        return UserError(
            f"tensor {tensor!r} of {self._model.name!r} {message}",
            self._stage.inputs[0].where,
            "Leave it out with `exclude`, or save it whole with `modules_to_save`.",
        )


def _products(expression: ex.Expression, base: ex.Expression) -> list[ex.LowRank] | None:
    """Return the products that an expression adds to the base, None if it adds anything else."""
    if expression == base:
        return []
    terms = {e: c for c, e in expression.terms} if isinstance(expression, ex.Linear) else {}
    fits = terms.pop(base, None) == 1 and all(
        isinstance(e, ex.LowRank) and e.experts == c == 1 for e, c in terms.items()
    )
    return list(terms) if fits else None


def _nested(modules: list[Adapted]) -> list[Adapted]:
    """Return modules, of fused experts with how many of the same module come after each.

    They have the order of the module's parameters in transformers: what leads into the experts
    comes first.
    """
    groups: dict[str, list[str]] = {}
    for module, _ in modules:
        if module.kind == "experts":
            parent, _, last = module.name.rpartition(".")
            groups.setdefault(parent, []).append(last)
    found = []
    for module, tensors in modules:
        parent, _, last = module.name.rpartition(".")
        if module.kind == "experts":
            order = sorted(groups[parent], key=lambda name: (name.startswith("down"), name))
            module = replace(module, within=len(order) - 1 - order.index(last))
        found.append((module, tensors))
    return found


def _factors(
    module: FactorModule, products: list[ex.LowRank], row: fold.Row
) -> Iterable[OutputTensor]:
    """Yield the factors of a sum of products, what each is multiplied by put into the first."""
    for number, product in enumerate(products):
        factor = product.scale * row[product][0]
        b, a = module.factor_names(number)
        scaled = fold.to_expression({product.b: (factor, abs(factor))}, product.b.shape)
        yield OutputTensor(b, _wide([scaled]), product.b.shape, scaled)
        yield OutputTensor(a, product.a.dtype, product.a.shape, product.a)


def _wide(expressions: Iterable[ex.Expression]) -> str:
    wide = any(source.dtype == "F64" for one in expressions for source in ex.sources(one))
    return "F64" if wide else "F32"


def _ends(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
