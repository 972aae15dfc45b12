"""Modules that a stage does not mention: refused, kept or dropped; and decoders that do not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.modules import assign, modules_of
from shardmerge.compose.architecture.text_part import TEXT
from shardmerge.compose.differences import (
    ARCHITECTURE,
    LAYERS,
    VOCABULARY,
    differing,
    side_by_side,
)
from shardmerge.compose.folders import main_tensors
from shardmerge.compose.models import Model
from shardmerge.recipe.stage import Stage


def module_keys(stage: Stage) -> list[str]:
    """Return the modules that a stage mentions; none if it is about whole models."""
    return [module.name for module in stage.modules if module.name is not None]


def check_dropped(stage: Stage) -> None:
    """Check that a stage leaves out nothing but what is beside a text decoder.

    Raises:
        UserError: If it names other modules.
    """
    if stage.drops and module_keys(stage) != [TEXT]:
        raise UserError(
            "`other_modules: drop` makes a model of a text decoder alone",
            stage.modules[0].where,
            f"Write `modules:` with `{TEXT}` and no other module.",
        )


def check_mentioned(stage: Stage, like: Model) -> None:
    """Check that a stage says what becomes of all modules.

    Args:
        stage: The stage.
        like: The model that the output follows.

    Raises:
        UserError: If the output would lack some without its saying so.
    """
    keys, table = module_keys(stage), main_tensors(like)
    if not keys or stage.other_modules:
        return
    lost = [name for name, key in assign(table, keys).items() if key is None]
    if lost:
        by_stack = any("." in key for key in keys)
        names = dict.fromkeys(modules_of(lost if by_stack else table).values())
        drop = " or `other_modules: drop` (the text alone)" if keys == [TEXT] else ""
        raise UserError(
            f"`modules` leaves out {len(lost)} tensors of {like.name!r}, such as {lost[0]!r}",
            stage.modules[0].where,
            f"Its modules are {', '.join(names)}: mention all of them, or write "
            f"`other_modules: keep` (as the base model has them){drop}.",
        )


def kept(stage: Stage, like: Model, done: Collection[str]) -> Iterator[str]:
    """Yield the tensors of modules that a stage does not mention and keeps.

    Args:
        stage: The stage.
        like: The model that the output follows.
        done: The tensors that the output has already.
    """
    if stage.keeps:
        owner = assign(like.table, module_keys(stage))
        yield from (name for name, key in owner.items() if key is None and name not in done)


def having(names: Sequence[str | None], lacks: Sequence[bool]) -> tuple[int, ...]:
    """Return which models have a tensor that the others, text models, have no part for.

    Args:
        names: Each model's tensor, None where it has none.
        lacks: Whether each model lacks the tensor's part.

    Returns:
        Indices of the models; none if all have it, or some should have it and do not.
    """
    if None not in names or not all(
        lack for name, lack in zip(names, lacks, strict=True) if name is None
    ):
        return ()
    return tuple(i for i, name in enumerate(names) if name is not None)


def check_text_part(stage: Stage, text: Model, decoder: Model) -> None:
    """Check that a text model is like the text decoder of the model that it is merged with.

    Tokens may differ where embeddings follow them, and layers where slices name them.

    Raises:
        UserError: If it is not, side by side.
    """
    sliced = any(not item.whole for item in stage.slices)
    may_differ = {ARCHITECTURE, VOCABULARY} | ({LAYERS} if sliced else set())
    if differing(decoder, text) - may_differ:
        raise UserError(
            f"{text.name!r} is a text model that is not like the text decoder of {decoder.name!r}",
            stage.where,
            f"{side_by_side(decoder, text)} Take text models of the base that {decoder.name!r} "
            "was built on.",
        )
