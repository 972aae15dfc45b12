"""A mixture of experts that is assembled from dense models of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.base.dtypes import DTYPES, dtype_code
from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.names import layer_of
from shardmerge.compose.context import Context
from shardmerge.compose.derived_model import ConfigChange, DerivedModel, cast, typed
from shardmerge.compose.experts.outputs import PROJECTIONS, choose_output
from shardmerge.compose.experts.routers import Routers
from shardmerge.compose.models import Entry, Model, Place
from shardmerge.recipe.stage import Expert, Mixture, Stage

#: Buffers that older checkpoints carry and that all programs compute.
_COMPUTED = "rotary_emb.inv_freq"
_WEIGHTS = tuple(f"{projection}.weight" for projection in PROJECTIONS)


@dataclass(frozen=True)
class _Taken:
    """A tensor that is a model's: which, and what an expert makes of it."""

    model: Model
    tensor: str
    expert: Expert | None = None

    @property
    def noise(self) -> float | None:
        return self.expert.noise if self.expert else None

    @property
    def scale(self) -> float | None:
        """The factor of what goes back into the residual stream."""
        return self.expert.residual if self.expert and "down_proj" in self.tensor else None


@dataclass(frozen=True)
class _Zeros:
    """A tensor of zeros, which stands where another one does."""

    beside: str


@dataclass(frozen=True)
class _Router:
    """A router's tensor: of which layer, and whether it is that of shared experts."""

    layer: int
    shared: bool
    beside: str


class MixtureModel(DerivedModel):
    """A stage that assembles a mixture.

    Args:
        context: The recipe, and the models that the stage reads.
        stage: The stage.

    Raises:
        UserError: If the models do not go together, or no architecture can have the mixture.
    """

    def __init__(self, context: Context, stage: Stage) -> None:
        super().__init__(context, stage)
        self.models = tuple(context.model(item.model) for item in stage.inputs)
        named = {self.base.name: self.base} | {model.name: model for model in self.models}
        types = {name: model.config.get("model_type") for name, model in named.items()}
        self.output = choose_output(self.mixture, types, stage.where)
        self._origins = dict(self._made())
        self._routers = Routers(context, stage, self.base)
        self._rows: dict[str, fold.Row] = {}

    @property
    def mixture(self) -> Mixture:
        return self.stage.mixture

    @cached_property
    def change(self) -> ConfigChange:
        stack, _ = self._stack
        sizes = {"intermediate_size": self.base.table[f"{stack}0.mlp.gate_proj.weight"].shape[0]}
        return self.output.change({**self.base.config, **sizes}, self.mixture)

    @cached_property
    def table(self) -> Mapping[str, Entry]:
        return {name: self._entry(origin) for name, origin in self._origins.items()}

    @cached_property
    def _dtype(self) -> str | None:
        """The type of all floats: the document's, or the one that the base's config names."""
        if self.stage.dtype:
            return self.stage.dtype
        config = self.base.config
        named = config.get("dtype") or config.get("torch_dtype")
        return dtype_code(named, "config.json") if isinstance(named, str) else None

    @cached_property
    def _stack(self) -> tuple[str, int]:
        """The name of the base's stack of layers, and how many there are."""
        counts = self.base.layer_counts
        if len(counts) != 1:
            raise UserError(
                f"model {self.base.name!r} has {len(counts)} stacks of layers, not one",
                self.stage.where,
            )
        return next(iter(counts.items()))

    def _made(self) -> Iterator[tuple[str, _Taken | _Zeros | _Router]]:
        stack, count = self._stack
        for name in self.base.table:
            if self._is_kept(name):
                yield name, _Taken(self.base, name)
        for layer in range(count):
            place = f"{stack}{layer}."
            for name, other in self.output.zeros.items():
                if place + name not in self.base.table:
                    yield place + name, _Zeros(place + other)
            for number, expert in enumerate(self.mixture.experts):
                pattern = place + self.output.expert
                yield from self._expert(pattern, place, number, number, expert)
            for number, expert in enumerate(self.mixture.shared, len(self.mixture.experts)):
                yield from self._expert(place + self.output.shared, place, 0, number, expert)
            beside = f"{place}input_layernorm.weight"
            yield place + self.output.router, _Router(layer, False, beside)
            if self.output.shared_gate:
                yield place + self.output.shared_gate, _Router(layer, True, beside)

    def _is_kept(self, name: str) -> bool:
        """Whether a tensor of the base is one of the mixture's too; others are experts' or none's.

        Raises:
            UserError: If it is neither.
        """
        found = layer_of(name)
        if found is None:
            return True
        rest = name.removeprefix(f"{found[0]}{found[1]}.")
        if rest.startswith("mlp.") and rest.split(".", 1)[1] in _WEIGHTS:
            return False
        if rest in self.output.kept:
            return True
        if rest.endswith(_COMPUTED):
            return False
        raise UserError(
            f"tensor {name!r} of {self.base.name!r} has no place in a {self.output.name}",
            self.stage.where,
            "Take another `architecture`, or models without such tensors.",
        )

    def _expert(
        self, pattern: str, place: str, number: int, index: int, expert: Expert
    ) -> Iterator[tuple[str, _Taken]]:
        model = self.models[index]
        for projection in PROJECTIONS:
            tensor = f"{place}mlp.{projection}.weight"
            wanted, found = self.base.table.get(tensor), model.table.get(tensor)
            if wanted is None or found is None:
                lacking = model if found is None else self.base
                raise UserError(f"model {lacking.name!r} has no tensor {tensor!r}", expert.where)
            if found.shape != wanted.shape:
                raise UserError(
                    f"tensor {tensor!r} has shape {list(found.shape)} in {model.name!r} but "
                    f"{list(wanted.shape)} in the base model {self.base.name!r}",
                    expert.where,
                    "All experts must have the base model's shape.",
                )
            name = pattern.format(number=number, projection=self._called(pattern, projection))
            yield name, _Taken(model, tensor, expert)

    def _called(self, pattern: str, projection: str) -> str:
        return self.output.projections[projection] if "{number}" in pattern else projection

    def _entry(self, origin: _Taken | _Zeros | _Router) -> Entry:
        match origin:
            case _Taken(model, tensor):
                return typed(model.table[tensor], self._dtype)
            case _Zeros(beside):
                entry = self.base.table[beside]
                return typed(Entry(entry.dtype, entry.shape[:1]), self._dtype)
        width = self.base.table[origin.beside].shape[0]
        count = len(self.mixture.shared if origin.shared else self.mixture.experts)
        return Entry(self._dtype or "F32", (count, width))

    def row(self, tensor: str) -> fold.Row:
        if tensor not in self._rows:
            self._rows[tensor] = self._row(tensor)
        return self._rows[tensor]

    def _row(self, tensor: str) -> fold.Row:
        origin, shape = self._origins[tensor], self.table[tensor].shape
        match origin:
            case _Zeros():
                return {}
            case _Router(layer, shared):
                return fold.leaf(self._routers.gate(tensor, layer, shape, shared=shared))
        row = origin.model.row(origin.tensor)
        if origin.noise is not None:
            plain = fold.to_expression(row, shape)
            row = fold.leaf(self._noisy(tensor, origin, plain))
        return row if origin.scale is None else fold.add_rows([(origin.scale, row)])

    def _noisy(self, tensor: str, origin: _Taken, operand: ex.Expression) -> ex.Call:
        return self._routers.noise("normal_noise", tensor, operand, origin.noise, origin.model.name)

    def _stated(self, tensor: str) -> ex.Expression:
        origin, entry = self._origins[tensor], self.table[tensor]
        match origin:
            case _Zeros():
                return ex.Cast(ex.Zero(entry.shape), entry.dtype)
            case _Router(layer, shared):
                gate = self._routers.gate(tensor, layer, entry.shape, shared=shared)
                return cast(gate, "F32", entry.dtype)
        made, have = origin.model.expression(origin.tensor), origin.model.table[origin.tensor].dtype
        if not DTYPES[have].floating:
            return made
        if origin.noise is not None:
            made = self._noisy(tensor, origin, made)
        if origin.scale is not None:
            made = ex.Cast(ex.Linear(((origin.scale, made),)), have)
        return cast(made, have, entry.dtype)

    def place(self, tensor: str) -> Place:
        origin = self._origins[tensor]
        taken = origin if isinstance(origin, _Taken) else _Taken(self.base, origin.beside)
        files, begin = taken.model.place(taken.tensor)
        names = list(dict.fromkeys([self.base.name, *(model.name for model in self.models)]))
        return ((names.index(taken.model.name), ""), *files), begin
