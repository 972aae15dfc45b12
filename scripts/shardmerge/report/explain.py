"""A recipe explained: which source contributes how much to every layer and module.

It needs no weights. The tensors' names come from model folders, from the recipe's lock, or, where
there is neither, from a well-known architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.algebra.coefficients import terms_of
from shardmerge.base.errors import UserError
from shardmerge.base.findings import unsilenced
from shardmerge.base.identities import FULL_HASH_BYTES, LockedFile
from shardmerge.base.numerics import FLOAT32
from shardmerge.compose.adapter_parts import adapter_parts
from shardmerge.compose.composer import Composer
from shardmerge.compose.norms import geometric_stages
from shardmerge.plan.recipe_checks import check_build, check_norm_merge
from shardmerge.recipe.recipe import Recipe, load_recipe
from shardmerge.report.coefficients import Coefficients, coefficients
from shardmerge.report.stack_view import LayerRun, layer_runs
from shardmerge.report.synthetic import adapter_of, family_for, source_of
from shardmerge.sources.lock import Lock, LockedSource, read_lock
from shardmerge.sources.locking import lock_adapter, lock_checkpoint, lock_folder
from shardmerge.sources.sources import lock_path

#: Layers where nothing tells their number: those of a Llama of 70B.
LAYERS = 80


@dataclass(frozen=True)
class Explanation:
    """What a recipe makes.

    Args:
        models: Coefficients of each document that is explained, by name.
        stages: (name, merge method) of all documents, each after those that it reads.
        stacks: Of documents that are stacks of layers, by name: for each run of output layers the
            models and layers that it is made from, the first run first.
        sources: The models that the recipe reads.
        basis: A sentence on where the tensors' names come from.
        warnings: One sentence each.
        tokens: What became of tokens that models lack, one sentence each.
    """

    models: Mapping[str, Coefficients]
    stages: tuple[tuple[str, str], ...]
    stacks: Mapping[str, Sequence[Sequence[LayerRun]]]
    sources: tuple[str, ...]
    basis: str
    warnings: tuple[str, ...]
    tokens: tuple[str, ...] = ()


def explain(
    path: str,
    folders: Mapping[str, str],
    layers: int | None = None,
    stages: Sequence[str] = ("final",),
    norm_merge: str | Mapping[str, str] = "arithmetic",
    silence: Collection[str] = (),
) -> Explanation:
    """Return what a recipe makes.

    Args:
        path: The recipe file.
        folders: Local folders of models, by the reference that the recipe writes.
        layers: Number of layers to assume whatever is known of the models, or None.
        stages: Documents to explain; ``final`` stands for those that no other reads.
        norm_merge, silence: As in the configuration.

    Raises:
        UserError: For a mistake in the recipe, or a model that does not fit it.
    """
    recipe = load_recipe(path)
    references = [reference.model for reference in recipe.sources]
    adapters = [reference.model for reference in recipe.adapters]
    for key in folders:
        if key not in (*references, *adapters):
            raise UserError(
                f"the recipe reads no model {key!r}",
                path,
                "It reads " + ", ".join([*references, *adapters]) + ".",
            )
    tensors = _tensors(recipe, folders, layers)
    composer = Composer(recipe, tensors.lock, FLOAT32, None, geometric_stages(recipe, norm_merge))
    wanted = [n for n in recipe.stages if n in stages or ("final" in stages and n in recipe.final)]
    models, findings = {}, [*recipe.warnings, *check_norm_merge(recipe, norm_merge)]
    try:
        for name in wanted:
            if recipe.stages[name].extraction:
                sums = adapter_parts(composer, name).sums
            else:
                outputs = composer.outputs(name)
                sums = composer.sums(name, outputs)
                findings += check_build(composer, name, outputs, sums)
            models[name] = coefficients({tensor: terms_of(e) for tensor, e in sums.items()})
    except UserError as error:
        if not tensors.assumed:
            raise
        hint = f"{tensors.basis} Name the models' folders with --sources, or lock the recipe."
        raise UserError(error.message, error.where, hint) from None
    return Explanation(
        models=models,
        stages=tuple((name, stage.method) for name, stage in recipe.stages.items()),
        stacks={name: layer_runs(recipe.stages[name]) for name in wanted},
        sources=(*references, *adapters),
        basis=tensors.basis,
        warnings=unsilenced(findings, silence),
        tokens=tuple(
            f"{one.stage}: {one.model} has rows of its own for {one.own} tokens; those of "
            f"{one.made} others are made by {one.method}."
            for one in composer.tokenizers.made_rows(recipe.stages)
        ),
    )


@dataclass(frozen=True)
class _Tensors:
    """What a recipe is explained on.

    Args:
        lock: Of all models and adapters.
        basis: A sentence on where it comes from.
        assumed: Whether the tensors of a model are only assumed.
    """

    lock: Lock
    basis: str
    assumed: bool


def _tensors(recipe: Recipe, folders: Mapping[str, str], layers: int | None) -> _Tensors:
    models = [reference.model for reference in recipe.sources]
    adapters = [reference.model for reference in recipe.adapters]
    roles = {reference.model: role for reference, role in recipe.named}
    path = lock_path(recipe.path)
    given, locked = {}, {}
    if layers is None:
        given = {
            key: _LOCKED_BY[roles[key]](Path(folder).expanduser(), key, _Sizes())
            for key, folder in folders.items()
        }
        if path.exists() and len(given) < len(models) + len(adapters):
            sources = read_lock(path).sources
            wanted = (key for key in (*models, *adapters) if key not in given)
            locked = {key: sources[key] for key in wanted if key in sources}
    known = {**locked, **given}
    missing = [key for key in models if key not in known]
    if unknown := next((key for key in missing if roles[key] == "checkpoint"), None):
        raise UserError(
            f"nothing is known of the checkpoint {unknown!r}, and none is like another",
            recipe.where(unknown),
            "Lock the recipe (`snakemake lock`), or say where it lies with --sources.",
        )
    if len(missing) < len(models):
        origins = ["the models' folders"] if given else []
        origins += [str(path)] if locked else []
        basis = f"Tensors as in {' and '.join(origins)}."
        if missing:
            like = next(key for key in models if key in known)
            basis += f" {', '.join(missing)}: assumed to have those of {like}."
            known |= dict.fromkeys(missing, known[like])
    else:
        asked = f"there is no {path} and no --sources" if layers is None else "as --layers asks"
        source, what = _assumed(recipe, layers)
        known, basis = dict.fromkeys(models, source), f"{what}: {asked}."
    for key in adapters:
        if key not in known:
            known[key] = adapter_of(known[models[0]])
            basis += f" {key}: assumed to change every matrix in the layers."
    texts = dict.fromkeys(recipe.texts, LockedFile(FULL_HASH_BYTES))  # not read here
    lock = Lock({key: known[key] for key in (*models, *adapters)}, texts)
    return _Tensors(lock, basis, assumed=bool(missing))


def _assumed(recipe: Recipe, layers: int | None) -> tuple[LockedSource, str]:
    """Return a source as its filters suggest, and what it is."""
    filters = {
        rule.filter: None
        for stage in recipe.stages.values()
        for settings in stage.levels
        for setting in settings.values()
        for rule in setting.rules
        if rule.filter not in (None, "*")
    }
    family = family_for(list(filters))
    ends = [i.layers[1] for s in recipe.stages.values() for i in s.inputs if i.layers]
    count = layers or max(ends, default=LAYERS)
    what = f"Tensors assumed as in a {family.title}-like model of {count} layers"
    return source_of(family.tensors(count)), what


#: Who reads the tensors of a local source, by its role.
_LOCKED_BY = {"model": lock_folder, "adapter": lock_adapter, "checkpoint": lock_checkpoint}


class _Sizes:
    """Stands in for content identities, which nothing needs here and which cost reading files."""

    def of(self, path: Path) -> LockedFile:
        return LockedFile(path.stat().st_size)

    def save(self) -> None:
        pass
