"""Which tokenizer files a model's package copies, which are written for it, and what they hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.compose.aligned_model import vocabulary_rows
from shardmerge.compose.output_config import check_finite
from shardmerge.compose.tokenizer.combine import Tokenizer
from shardmerge.recipe.chat import TEMPLATE_FILE, most_common, named_template
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Stage
from shardmerge.sources.store import TEMPLATES

if TYPE_CHECKING:
    from shardmerge.compose.composer import Composer

TOKENIZER_CONFIG = "tokenizer_config.json"
TABLE = "tokenizer.json"
#: Files that make a tokenizer, besides those that say the same in older ways.
_FILES = (TABLE, TOKENIZER_CONFIG, "normalizer.json", TEMPLATE_FILE, "chat_template.json")
#: Files that say the same as tokenizer.json and tokenizer_config.json in other ways.
_OTHER_WAYS = re.compile(
    r"special_tokens_map\.json|added_tokens\.json|vocab\.json|vocab\.txt|merges\.txt|tekken\.json"
    r"|[^/]+\.(?:model|tiktoken|bpe|spm)"
)
#: What is read to write the first two.
_READ = (TABLE, TOKENIZER_CONFIG, "special_tokens_map.json")
#: Where configurations of models with several parts have the language model's.
_SECTIONS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer's files of a package.

    Args:
        copied: (model, file) of those that are copied, by name.
        made: Names of those that are written.
        read: (model, file) of what is read for them.
        description: What they hold, as JSON-able data.
    """

    copied: dict[str, tuple[str, str]]
    made: tuple[str, ...] = ()
    read: tuple[tuple[str, str], ...] = ()
    description: dict[str, Any] = field(default_factory=dict)


def tokenizer_files(composer: Composer, stage: str) -> TokenizerFiles:
    """Return the tokenizer's files of a stage's package.

    Raises:
        UserError: If they cannot be made from what the models have.
    """
    if composer.recipe.stages[stage].tensors:
        return TokenizerFiles({}, description={"source": composer.reference_source(stage)})
    where = composer.recipe.stages[stage].where
    tokenizer, template = _tokenizer(composer, stage), _template(composer, stage)
    source = composer.tokenizers.source_of(stage)
    files = composer.lock.sources[source].files
    others = {name for name in files if _OTHER_WAYS.fullmatch(name)}
    copied = {name: (source, name) for name in sorted(files) if _is_of_tokenizers(name)}
    description: dict[str, Any] = {"source": source}
    if tokenizer is not None:
        description |= {"tokens": len(tokenizer.ids), "vocabulary": digest(dict(tokenizer.ids))}
    if made := composer.tokenizers.made_rows(composer.recipe.needed(stage)):
        description["made_rows"] = [[one.model, one.method, one.own, one.made] for one in made]
    changed = tokenizer is not None and not tokenizer.is_original
    if not changed and template is None:
        return TokenizerFiles(copied, description=description)
    if not copied:
        raise UserError(f"model {source!r} has no tokenizer to put a chat template into", where)
    made, replaced = [TOKENIZER_CONFIG], {TOKENIZER_CONFIG}
    donors = [source]
    if changed:
        if TABLE not in files:
            raise UserError(
                f"model {source!r} has no tokenizer.json, which the new tokens are written into",
                where,
                "Load its tokenizer with transformers' AutoTokenizer, save it with "
                "`save_pretrained` into a folder with the model's other files, and name that "
                "folder under `sources` in the configuration.",
            )
        made = [TABLE, *made]
        replaced |= {TABLE, *others}
        donors += [key for key in tokenizer.added.values() if key]
        description["within"] = min(len(tokenizer.original), tokenizer.size)
        description["added"] = [
            [token, tokenizer.ids[token], key] for token, key in tokenizer.added.items()
        ]
    if template is not None:
        made = [*made, TEMPLATE_FILE]
        replaced |= {TEMPLATE_FILE, "chat_template.json"}
        description["template"] = template
    read = [
        (key, name)
        for key in dict.fromkeys(donors)
        for name in _READ
        if name in composer.lock.sources[key].files
    ]
    return TokenizerFiles(
        {name: key for name, key in copied.items() if name not in replaced},
        tuple(made),
        tuple(read),
        description,
    )


def _is_of_tokenizers(name: str) -> bool:
    return name in _FILES or name.startswith(TEMPLATES) or _OTHER_WAYS.fullmatch(name) is not None


def config_values(composer: Composer, stage: str) -> dict[str, Any]:
    """Return the values of config.json that follow from a stage's tokenizer, by their place."""
    tokenizer = _tokenizer(composer, stage)
    if tokenizer is None:
        return {}
    source = composer.reference_source(stage)
    config = composer.origin(stage).config
    rows = vocabulary_rows(composer.model(Reference(stage)))
    places = [""] + [f"{key}." for key in _SECTIONS if isinstance(config.get(key), dict)]
    values: dict[str, Any] = {}
    for place in places:
        section = config[place[:-1]] if place else config
        if section.get("vocab_size", rows) != rows:
            values[f"{place}vocab_size"] = rows
    if tokenizer.source != source:  # its tokens keep the ids that they have there
        other = composer.lock.sources[tokenizer.source].config
        for key in dict.fromkeys([*config, *other]):
            if key.endswith("_token_id") and other.get(key) != config.get(key):
                values[key] = other.get(key)
    check_finite(values, tokenizer.source)
    return values


def generation_source(composer: Composer, stage: str) -> str:
    """Return the source whose generation_config.json names tokens by the ids that they have."""
    tokenizer = _tokenizer(composer, stage)
    return tokenizer.source if tokenizer else composer.reference_source(stage)


def _tokenizer(composer: Composer, stage: str) -> Tokenizer | None:
    if not composer.recipe.needs_vocabularies:
        return None
    return composer.tokenizers.of(Reference(stage))


def _template(composer: Composer, name: str) -> str | None:
    """Return the chat template that a stage, or one that it has its tokenizer from, asks for."""
    stage = composer.recipe.stages.get(name)
    if stage is None:
        return None
    if stage.chat_template is None:
        return _template(composer, _origin(stage).model)
    if stage.chat_template != "auto":
        return named_template(stage.chat_template)
    merged = dict.fromkeys([stage.reference_model, *(i.model for i in stage.inputs)])
    return most_common(_own_template(composer, reference.model) for reference in merged)


def _own_template(composer: Composer, name: str) -> str | None:
    """Return the chat template that a source or a stage's result has, or None."""
    known = composer.tokenizers.templates
    if name not in known:
        known[name] = _found_template(composer, name)
    return known[name]


def _found_template(composer: Composer, name: str) -> str | None:
    stage = composer.recipe.stages.get(name)
    if stage is None:
        return composer.lock.sources[name].chat_template or None
    found = _template(composer, name)
    return found.strip() if found else _own_template(composer, _origin(stage).model)


def _origin(stage: Stage) -> Reference:
    """Return the model that a stage has its tokenizer's files from."""
    return (stage.tokenizer and stage.tokenizer.model) or stage.reference_model
