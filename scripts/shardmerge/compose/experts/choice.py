"""Experts taken out of a mixture: one as the MLP of a dense model, or some as a smaller mixture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold, rows
from shardmerge.algebra.arrange import MixedPartsError, arrange, arrange_rows
from shardmerge.algebra.pieces import Arrangement, Patch
from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.predictors import text_section
from shardmerge.compose.context import Context
from shardmerge.compose.derived_model import ConfigChange, DerivedModel, cast, typed
from shardmerge.compose.experts.modules import (
    EXPERT,
    STACKED,
    expert_count,
    expert_modules,
)
from shardmerge.compose.models import Entry, Place
from shardmerge.recipe.experts import check_choice
from shardmerge.recipe.stage import ExpertChoice, Stage

#: Keys of config.json that say how many experts there are, and how many a token is sent to.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk")


@dataclass(frozen=True)
class _Dense:
    """The dense architecture whose MLP an expert can be."""

    model_type: str
    class_name: str
    #: What config.json means where it does not say it, and the dense architecture means otherwise.
    implied: Mapping[str, Any] = field(default_factory=dict)


_ROPE = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None}
_DENSE = {
    "mixtral": _Dense("mistral", "MistralForCausalLM", _ROPE),
    "qwen2_moe": _Dense("qwen2", "Qwen2ForCausalLM", {"num_key_value_heads": 16}),
    "qwen3_moe": _Dense("qwen3", "Qwen3ForCausalLM", {"num_key_value_heads": 4}),
    "deepseek": _Dense("llama", "LlamaForCausalLM"),
}
#: Projections of an expert by what they are called.
_PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
#: Keys that a dense model has no use for.
_ROUTING = (
    *_COUNTS,
    *_PER_TOKEN,
    "router_aux_loss_coef",
    "router_jitter_noise",
    "output_router_logits",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "n_shared_experts",
    "first_k_dense_replace",
    "moe_layer_freq",
    "scoring_func",
    "aux_loss_alpha",
    "seq_aux",
    "auto_map",
)


@dataclass(frozen=True)
class _Rows:
    """Rows of a tensor of the base: what belongs to some experts."""

    tensor: str
    table: str


#: A tensor of the base as it is, rows of it, or a box of it.
_Part = str | _Rows | Arrangement


class ExpertChoiceModel(DerivedModel):
    """A stage that takes experts out of a mixture.

    Args:
        context: The recipe, and the models that the stage reads.
        stage: The stage.

    Raises:
        UserError: If the base model is no such mixture, or lacks an expert.
    """

    def __init__(self, context: Context, stage: Stage) -> None:
        super().__init__(context, stage)
        self._modules = expert_modules(self.base, stage.where)
        self.count = expert_count(self.base, self._modules, stage.where)
        self._prefix, self._section = text_section(self.base.config)
        check_choice(self.choice, self.count, self._per_token, self.base.name)
        self._parts = dict(self._dense() if self.choice.dense else self._kept())

    @property
    def choice(self) -> ExpertChoice:
        return self.stage.choice

    @cached_property
    def change(self) -> ConfigChange:
        return self._dense_change() if self.choice.dense else self._kept_change()

    @cached_property
    def table(self) -> Mapping[str, Entry]:
        found = {}
        for name, part in self._parts.items():
            entry = self.base.table[_lead(part)]
            found[name] = typed(Entry(entry.dtype, _shape(part, entry)), self.stage.dtype)
        return found

    def row(self, tensor: str) -> fold.Row:
        part = self._parts[tensor]
        row = self.base.row(_lead(part))
        match part:
            case str():
                return row
            case _Rows(_, table):
                return {ex.take_rows(leaf, table): value for leaf, value in row.items()}
        try:
            return arrange_rows(part, {_lead(part): row})
        except MixedPartsError:
            raise self._fixed(tensor) from None

    def _stated(self, tensor: str) -> ex.Expression:
        part = self._parts[tensor]
        made = self.base.expression(_lead(part))
        if isinstance(part, _Rows):
            made = ex.take_rows(made, part.table)
        elif isinstance(part, Arrangement):
            try:
                made = arrange(part, {_lead(part): made})
            except MixedPartsError:
                raise self._fixed(tensor) from None
        return cast(made, self.base.table[_lead(part)].dtype, self.table[tensor].dtype)

    def place(self, tensor: str) -> Place:
        return self.base.place(_lead(self._parts[tensor]))

    def _fixed(self, tensor: str) -> UserError:
        return UserError(
            f"tensor {tensor!r} cannot be cut out of {_lead(self._parts[tensor])!r} of "
            f"{self.base.name!r}, which a merge method must see whole",
            self.stage.where,
            "Build that model first, as a recipe of its own.",
        )

    @property
    def _per_token(self) -> int:
        if self.choice.experts_per_token is not None:
            return self.choice.experts_per_token
        found = (self._section.get(key) for key in _PER_TOKEN)
        return next((value for value in found if type(value) is int), 1)

    def _kept(self) -> Iterator[tuple[str, _Part]]:
        chosen = self.choice.experts
        every = {n for m in self._modules.values() for n in (*m.routers, *m.stacked)}
        for name in self.base.table:
            match = EXPERT.fullmatch(name)
            if match and int(match[2]) in chosen:
                number = chosen.index(int(match[2]))
                yield f"{match[1]}experts.{number}.{match[3]}", name
            elif name in every:
                yield name, _Rows(name, rows.format_rows(chosen))
            elif not match:
                yield name, name

    def _kept_change(self) -> ConfigChange:
        counts = [key for key in _COUNTS if self._section.get(key) == self.count]
        if not counts:
            raise UserError(
                f"nothing in it says that there are {self.count} experts "
                f"(looked for {', '.join(_COUNTS)})",
                f"config.json of {self.base.name!r}",
            )
        groups = self._section.get("n_group")
        if type(groups) is int and groups > 1:
            raise UserError(
                f"the experts of {self.base.name!r} are in {groups} groups, of which the router "
                "chooses some; they cannot be taken out one by one",
                self.stage.where,
            )
        values: dict[str, Any] = {self._prefix + key: len(self.choice.experts) for key in counts}
        if self.choice.experts_per_token is not None:
            known = [key for key in _PER_TOKEN if key in self._section] or [_PER_TOKEN[0]]
            values |= {self._prefix + key: self.choice.experts_per_token for key in known}
        return ConfigChange(values)

    @property
    def _kind(self) -> _Dense:
        kind = self.base.config.get("model_type")
        found = _DENSE.get(kind) if isinstance(kind, str) else None
        if found is None:
            raise UserError(
                f"an expert of {self.base.name!r} ({kind!s:.40}) is no MLP of a dense "
                "architecture that is known here",
                self.stage.where,
                f"There are {', '.join(sorted(_DENSE))}.",
            )
        return found

    def _dense(self) -> Iterator[tuple[str, _Part]]:
        (number,) = self.choice.experts
        left = {n for m in self._modules.values() for n in (*m.routers, *m.shared)}
        for name, entry in self.base.table.items():
            if match := EXPERT.fullmatch(name):
                if int(match[2]) == number:
                    yield self._projection(match[1], match[3].removesuffix(".weight")), name
            elif (match := STACKED.fullmatch(name)) and match[1] in self._modules:
                yield from self._slices(match[1], match[2], name, entry.shape, number)
            elif name not in left:
                yield name, name

    def _projection(self, prefix: str, called: str) -> str:
        projection = _PROJECTIONS.get(called, called)
        if projection not in _PROJECTIONS.values():
            raise UserError(
                f"experts of {self.base.name!r} have {called!r}, which no dense MLP has",
                self.stage.where,
            )
        return re.sub(r"block_sparse_moe\.$", "mlp.", prefix) + f"{projection}.weight"

    def _slices(
        self, prefix: str, called: str, name: str, shape: tuple[int, ...], number: int
    ) -> Iterator[tuple[str, Arrangement]]:
        if len(shape) != 3 or called not in ("gate_up_proj", "down_proj"):
            raise UserError(f"tensor {name!r} is no stack of projections", self.stage.where)
        _, height, width = shape
        if called == "down_proj":
            yield self._projection(prefix, called), _slice(name, number, 0, height, width)
            return
        half = height // 2
        yield self._projection(prefix, "gate_proj"), _slice(name, number, 0, half, width)
        yield self._projection(prefix, "up_proj"), _slice(name, number, half, half, width)

    def _dense_change(self) -> ConfigChange:
        sizes = {e.shape[0] for n, e in self.table.items() if n.endswith(".mlp.gate_proj.weight")}
        if len(sizes) != 1:
            raise UserError(
                f"layers without experts of {self.base.name!r} have MLPs of another size than "
                "its experts: a dense model has one size",
                self.stage.where,
            )
        config, kind = self.base.config, self._kind
        values: dict[str, Any] = {
            "architectures": [kind.class_name],
            "model_type": kind.model_type,
            "intermediate_size": sizes.pop(),
        }
        implied = {key: value for key, value in kind.implied.items() if key not in config}
        if "rope_parameters" in config:
            implied.pop("rope_theta", None)
        return ConfigChange(values | implied, [key for key in _ROUTING if key in config])


def _lead(part: _Part) -> str:
    match part:
        case str():
            return part
        case _Rows(tensor):
            return tensor
    return part.operands()[0]


def _shape(part: _Part, entry: Entry) -> tuple[int, ...]:
    match part:
        case str():
            return entry.shape
        case _Rows(_, table):
            return (rows.row_count(table), *entry.shape[1:])
    return part.shape


def _slice(name: str, number: int, first: int, height: int, width: int) -> Arrangement:
    """Return rows of one expert's matrix in a stack, as a matrix."""
    piece = Patch(name, (number, first, 0), (1, height, width), (-1, 0, 1), (0, 0))
    return Arrangement((height, width), (piece,))
