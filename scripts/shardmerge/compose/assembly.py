"""Which tensors a stage's model has, and which tensors of its inputs each is made from.

From names alone: the layers of slices are renumbered, and what stands before and after the layers
comes from the first and the last slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from shardmerge.base.errors import UserError
from shardmerge.base.filenames import MAX_LAYERS
from shardmerge.compose.architecture.modules import main_stack, modules_of
from shardmerge.compose.architecture.names import (
    is_before,
    is_head,
    is_vocabulary,
    layer_counts,
    layer_fraction,
    layer_of,
)
from shardmerge.compose.folders import add_folders, main_tensors
from shardmerge.compose.models import Model
from shardmerge.compose.module_tensors import ModuleTensors, in_stack
from shardmerge.compose.other_modules import (
    check_dropped,
    check_mentioned,
    having,
    kept,
)
from shardmerge.compose.parts import Assembly, Part, Piece, Predictors
from shardmerge.compose.tensor_matching import complete
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Input, Module, Slice, Stage

#: Brings the models of a piece to a stage's tokens, for tensors that have a row for each.
Align = Callable[[Stage, Piece, tuple[str | None, ...]], Piece]


def assemble(stage: Stage, model_of: Callable[[Reference], Model], align: Align) -> Assembly:
    """Return the tensors of a stage's model.

    Args:
        stage: The stage.
        model_of: Gives the model that a reference names.
        align: Given a piece and each input's tensor, returns the piece with models that agree.

    Raises:
        UserError: If models do not fit together, layers or modules are not there.
    """
    return _Assembler(stage, model_of, align).run()


class _Assembler:
    def __init__(self, stage: Stage, model_of: Callable[[Reference], Model], align: Align) -> None:
        self.stage = stage
        self.align = align
        self.result = Assembly()
        self.pieces = 0
        self.models = ModuleTensors(stage, model_of, self.result.texts)

    def run(self) -> Assembly:
        firsts = []
        check_dropped(self.stage)
        for module in self.stage.modules:
            pieces = [self._piece(item, module) for item in module.slices]
            if module.slices[0].whole:
                self._whole(pieces[0], module)
            else:
                self._sliced(pieces, module)
            firsts.append(pieces[0])
        add_folders(self.result, firsts[0])
        check_mentioned(self.stage, self.models.like)
        self._keep_others()
        return self.result

    def _piece(self, item: Slice, module: Module) -> Piece:
        base = item.base_model or self.stage.base_model
        references = [i.model for i in item.inputs]
        self.pieces += 1
        return Piece(
            number=self.pieces - 1,
            inputs=item.inputs,
            models=tuple(self.models.fit(self.models.model(one)).model for one in references),
            base=references.index(base) if base in references else None,
            levels=(item.parameters, module.parameters, self.stage.parameters),
            where=item.where,
        )

    def _add(
        self,
        name: str,
        piece: Piece,
        columns: list[dict[str, str]],
        names: Iterable[str | None],
        labels: tuple[str, ...],
        t: float,
    ) -> None:
        before = tuple(names)
        follows = self.stage.tokenizer is not None
        if None in before:
            lacks = [name in self.models.fit(m).lacks for m in piece.models]
            if some := having(before, lacks):
                self._some(name, piece, before, some, labels, t)
                return
        after = complete(name, before, piece.models, columns, piece.where, follows)
        if after is not None:
            piece = self.align(self.stage, piece, after) if is_vocabulary(name) else piece
            self.result.untied |= after is not before and after != before
            self.result.parts[name] = Part(piece, after, labels, t)

    def _some(
        self,
        name: str,
        piece: Piece,
        names: tuple[str | None, ...],
        some: tuple[int, ...],
        labels: tuple[str, ...],
        t: float,
    ) -> None:
        """Add a tensor that text models do not have: merged from the others, or the only one's."""
        models = [piece.models[i] for i in some]
        complete(name, [names[i] for i in some], models, [{}] * len(some), piece.where)
        self.result.parts[name] = Part(piece, names, labels, t, copied=len(some) == 1)

    def _keep_others(self) -> None:
        """Add the tensors of modules that are not mentioned and kept, as they are."""
        item = Input(self.models.like_reference, {}, None, self.stage.where)
        piece = Piece(self.pieces, (item,), (self.models.like,), None, (), self.stage.where)
        for name in list(kept(self.stage, self.models.like, self.result.parts)):
            tokens = is_vocabulary(name)
            one = self.align(self.stage, piece, (name,)) if tokens else piece
            self.result.parts[name] = Part(one, (name,), (name,), 0.0, copied=True)

    def _whole(self, piece: Piece, module: Module) -> None:
        columns = [self.models.real(model, module) for model in piece.models]
        names = dict.fromkeys(columns[piece.lead])
        for column in columns:
            names |= dict.fromkeys(column)
        counts = layer_counts(columns[piece.lead])
        fractions: dict[tuple[str, int] | None, float] = {}
        for name in names:
            found = tuple([column.get(name) for column in columns])
            labels = (name,) * len(columns)
            stack = layer_of(name)
            if stack not in fractions:
                known = stack is None or stack[0] in counts
                fractions[stack] = layer_fraction(name, counts) if known else 0.0
            self._add(name, piece, columns, found, labels, fractions[stack])
        self._predictors(piece, module, counts, sliced=False)

    def _sliced(self, pieces: list[Piece], module: Module) -> None:
        if module.name is None:
            self._check_single(pieces[0].models[0])
        stack, _ = main_stack(self.models.real(self.models.like, module))
        self._outside(pieces[0], module, stack, before=True)
        layers = self.result.layers.setdefault(stack, [])
        for piece in pieces:
            self._layers(piece, module, stack, layers)
        self._outside(pieces[-1], module, stack, before=False)
        self._predictors(pieces[-1], module, {stack: len(layers)}, sliced=True)

    def _predictors(
        self, piece: Piece, module: Module, counts: Mapping[str, int], *, sliced: bool
    ) -> None:
        """Add layers for multi-token prediction: the lead's as they are where not all have them."""
        columns = [self.models.behind(model, module) for model in piece.models]
        lead = columns[piece.lead]
        having = [m.name for m, column in zip(piece.models, columns, strict=True) if column]
        shared = all(column.keys() == lead.keys() for column in columns)
        if self.stage.tokenizer is not None and any(is_vocabulary(p.rest) for p in lead):
            lead = {}  # their rows would be for other tokens than those of the result
        if having and (sliced or not shared or not lead):
            name = piece.models[piece.lead].name
            self.result.predictors.append(Predictors(name, tuple(having), bool(lead), shared))
        for place, (label, full) in lead.items():
            name = place.named(counts)
            if shared:
                found = [column[place] for column in columns]
                labels, names = zip(*found, strict=True)
                self._add(name, piece, [], names, labels, 1.0)
            else:
                names = [None] * len(columns)
                names[piece.lead] = full
                labels = (label,) * len(columns)
                self.result.parts[name] = Part(piece, tuple(names), labels, 1.0, copied=True)

    def _check_single(self, model: Model) -> None:
        names = list(dict.fromkeys(modules_of(main_tensors(model)).values()))
        if len(names) > 1:
            raise UserError(
                f"model {model.name!r} has several modules: {', '.join(names)}",
                self.stage.where,
                "Write `modules:` with `slices` or `models` for each of them.",
            )

    def _outside(self, piece: Piece, module: Module, stack: str, *, before: bool) -> None:
        """Add what is outside the layers: t is 0 there, as mergekit has it."""
        columns = [self.models.real(model, module) for model in piece.models]
        names: dict[str, None] = {}
        for column in [columns[piece.lead], *columns]:
            names |= dict.fromkeys(n for n in column if not in_stack(n, stack))
        counts = layer_counts(names)
        for name in names:
            if _is_before(name) != before:
                continue
            found = [column.get(name) for column in columns]
            self._add(name, piece, columns, found, (name,) * len(columns),
                      layer_fraction(name, counts))  # fmt: skip

    def _layers(
        self, piece: Piece, module: Module, stack: str, layers: list[tuple[Model, str, int]]
    ) -> None:
        columns = [self.models.real(model, module) for model in piece.models]
        stacks = [_by_layer(column, stack) for column in columns]
        for item, model, found in zip(piece.inputs, piece.models, stacks, strict=True):
            count = max(found, default=-1) + 1
            if item.layers[1] > count:
                hint = (
                    f"The last layer is {count - 1}: write at most `[{item.layers[0]}, {count}]`."
                )
                if self.models.behind(model, module):
                    hint += " Layers for multi-token prediction behind it come along."
                raise UserError(
                    f"`layer_range` {list(item.layers)} ends beyond the {count} layers of "
                    f"{model.name!r}",
                    item.where,
                    hint,
                )
        starts = [item.layers[0] for item in piece.inputs]
        length = piece.inputs[0].layers[1] - starts[0]
        if len(layers) + length > MAX_LAYERS:
            raise UserError(f"the slices make more than {MAX_LAYERS} layers", piece.where)
        for offset in range(length):
            t = offset / (length - 1) if length > 1 else 1.0
            numbers = [start + offset for start in starts]
            rests: dict[str, None] = {}
            for i in [piece.lead, *range(len(stacks))]:
                rests |= dict.fromkeys(stacks[i].get(numbers[i], ()))
            for rest in rests:
                found = [s.get(n, {}).get(rest) for s, n in zip(stacks, numbers, strict=True)]
                labels = tuple(f"{stack}{n}.{rest}" for n in numbers)
                self._add(f"{stack}{len(layers)}.{rest}", piece, columns, found, labels, t)
            lead = piece.models[piece.lead]
            layers.append((lead, self.models.own(lead, module, stack), numbers[piece.lead]))


def _is_before(name: str) -> bool:
    return is_before(name) or (layer_of(name) is not None and not is_head(name))


def _by_layer(column: Mapping[str, str], stack: str) -> dict[int, dict[str, str]]:
    """Return the tensors of every layer of a stack: name within the layer to the model's own."""
    layers: dict[int, dict[str, str]] = {}
    for name, full in column.items():
        if in_stack(name, stack):
            number = layer_of(name)[1]
            layers.setdefault(number, {})[name.removeprefix(f"{stack}{number}.")] = full
    return layers
