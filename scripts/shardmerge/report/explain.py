"""A recipe explained: which source contributes how much to every layer and module.

It needs no weights. The tensors' names come from model folders, from the recipe's lock, or, where
there is neither, from a well-known architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.checks import check_build, check_norm_merge
from shardmerge.compose import Composer
from shardmerge.errors import UserError
from shardmerge.files import load_json
from shardmerge.findings import audible
from shardmerge.local import lock_adapter, lock_folder
from shardmerge.lock import Lock, LockedFile, LockedSource
from shardmerge.norms import geometric_stages
from shardmerge.recipe import Recipe, load_recipe
from shardmerge.report.coefficients import Coefficients, coefficients
from shardmerge.report.synthetic import adapter_of, family_for, source_of
from shardmerge.sources import lock_path
from shardmerge.terms import terms_of

#: Layers where nothing tells their number: those of a Llama of 70B.
LAYERS = 80


@dataclass(frozen=True)
class Explanation:
    """What a recipe makes.

    Args:
        models: Coefficients of each document that is explained, by name.
        stages: (name, merge method) of all documents, each after those that it reads.
        sources: The models that the recipe reads.
        basis: A sentence on where the tensors' names come from.
        warnings: One sentence each.
    """

    models: Mapping[str, Coefficients]
    stages: tuple[tuple[str, str], ...]
    sources: tuple[str, ...]
    basis: str
    warnings: tuple[str, ...]


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
    of_models = {key: folder for key, folder in folders.items() if key in references}
    lock, basis, assumed = _lock(recipe, references, of_models, layers)
    if adapters:
        lock, basis = _with_adapters(recipe, adapters, lock, folders, basis)
    composer = Composer(recipe, lock, "float32", None, geometric_stages(recipe, norm_merge))
    wanted = [n for n in recipe.stages if n in stages or ("final" in stages and n in recipe.final)]
    models, findings = {}, [*recipe.warnings, *check_norm_merge(recipe, norm_merge)]
    try:
        for name in wanted:
            outputs = composer.outputs(name)
            sums = composer.sums(name, outputs)
            models[name] = coefficients({tensor: terms_of(e) for tensor, e in sums.items()})
            findings += check_build(composer, name, outputs, sums)
    except UserError as error:
        if not assumed:
            raise
        hint = f"{basis} Name the models' folders with --sources, or lock the recipe."
        raise UserError(error.message, error.where, hint) from None
    return Explanation(
        models=models,
        stages=tuple((name, stage.method) for name, stage in recipe.stages.items()),
        sources=(*references, *adapters),
        basis=basis,
        warnings=audible(findings, silence),
    )


def _lock(
    recipe: Recipe, references: list[str], folders: Mapping[str, str], layers: int | None
) -> tuple[Lock, str, bool]:
    """Return a lock of all sources, where it comes from, and whether it is only assumed."""
    if layers is not None:
        return _assumed(recipe, references, layers, "as --layers asks")
    known = {key: lock_folder(Path(f).expanduser(), key, _Sizes()) for key, f in folders.items()}
    origin = "the models' folders" if known else ""
    path = lock_path(recipe.path)
    if path.exists() and len(known) < len(references):
        locked = Lock.from_json(load_json(path), str(path)).sources
        known = {key: locked[key] for key in references if key in locked} | known
        origin = " and ".join(filter(None, [origin, str(path)]))
    if not known:
        return _assumed(recipe, references, None, f"there is no {path} and no --sources")
    basis = f"Tensors as in {origin}."
    missing = [key for key in references if key not in known]
    if missing:
        like = next(key for key in references if key in known)
        basis += f" {', '.join(missing)}: assumed to have those of {like}."
        known |= dict.fromkeys(missing, known[like])
    return Lock({key: known[key] for key in references}), basis, bool(missing)


def _with_adapters(
    recipe: Recipe, adapters: list[str], lock: Lock, folders: Mapping[str, str], basis: str
) -> tuple[Lock, str]:
    """Return a lock of models with their adapters, and where it comes from."""
    path = lock_path(recipe.path)
    locked = Lock.from_json(load_json(path), str(path)).sources if path.exists() else {}
    found: dict[str, LockedSource] = {}
    for key in adapters:
        if key in folders:
            found[key] = lock_adapter(Path(folders[key]).expanduser(), key, _Sizes())
        elif key in locked and basis.endswith(f"{path}."):
            found[key] = locked[key]
        else:
            found[key] = adapter_of(next(iter(lock.sources.values())))
            basis += f" {key}: assumed to change every matrix in the layers."
    return Lock({**lock.sources, **found}), basis


def _assumed(
    recipe: Recipe, references: list[str], layers: int | None, why: str
) -> tuple[Lock, str, bool]:
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
    source: LockedSource = source_of(family.tensors(count))
    basis = f"Tensors assumed as in a {family.title}-like model of {count} layers: {why}."
    return Lock(dict.fromkeys(references, source)), basis, True


class _Sizes:
    """Stands in for content identities, which nothing needs here and which cost reading files."""

    def of(self, path: Path) -> LockedFile:
        return LockedFile(path.stat().st_size)

    def save(self) -> None:
        pass
