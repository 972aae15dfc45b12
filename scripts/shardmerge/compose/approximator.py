"""Rows of tokens that a model lacks: which it has under another name, and what makes the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.transplant import (
    BY_DONOR,
    MOST_PARTS,
    DonorTensor,
    StoredTable,
    TrainedModel,
    TransplantSpec,
)
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.names import is_embedding, is_head
from shardmerge.compose.context import Context
from shardmerge.compose.made_sources import MadeSource
from shardmerge.compose.models import Model
from shardmerge.compose.tokenizer.matching import ComparedTokens
from shardmerge.compose.transplants import made_rows, transplant
from shardmerge.recipe.stage import Approximation

#: Rows that one is made of, where a recipe does not say.
DEFAULT_K = 64
EMBEDDING, HEAD, OTHER = "embedding", "head", "other"
#: Makes one row for each of some tokens from a model's tensor.
Making = Callable[[ex.Expression], ex.Expression]
_SPLITTING = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Party:
    """A model as far as its tokens are compared.

    Args:
        name: As the recipe writes it.
        tokens: Its tokens.
        model: Its tensors.
        source: The source of its tokenizer, or None if it has none.
    """

    name: str
    tokens: ComparedTokens
    model: Model
    source: str | None


class Approximator:
    """Makes rows of tokens that a stage's inputs lack.

    Args:
        context: The recipe, and its models.
        settings: What the recipe says.
        wanted: The result's tokens.
        members: The stage's inputs.
        donors: Models whose embeddings are looked at, the first that has a token counts.
        role: Of the tensor: its rows are input embeddings, output embeddings, or neither.
    """

    def __init__(
        self,
        context: Context,
        settings: Approximation,
        wanted: ComparedTokens,
        members: Sequence[Party],
        donors: Sequence[Party],
        role: str,
    ) -> None:
        self._context, self._settings, self._wanted = context, settings, wanted
        self._members, self._donors, self._role = members, donors, role

    def own(self, index: int) -> dict[str, int]:
        """Return the row of each of the result's tokens that an input has, by token."""
        tokens, name = self._members[index].tokens, self._table_name
        how = {"prefix": name in self._settings.prefix, "byte": name in self._settings.byte}
        found = {token: tokens.row(self._wanted.key(token), **how) for token in self._wanted.ids}
        return {token: row for token, row in found.items() if row is not None}

    def making(self, index: int, lacking: Iterable[str]) -> list[tuple[list[str], Making]]:
        """Return what makes the rows of tokens that an input lacks; of others they are zeros.

        Raises:
            UserError: If they cannot be made.
        """
        lacking, method = list(lacking), self._settings.method
        if not lacking or self._role == OTHER or method == "zero":
            return []
        if method == "mean":
            every = rows.format_rows([0] * len(lacking))
            return [(lacking, lambda operand: ex.take_rows(ex.Mean(operand), every))]
        if method not in BY_DONOR:
            return [(lacking, self._noted(self._by_text(index, lacking)))]
        found = []
        for donor, tokens in self._by_donor(index, lacking):
            spec = self._spec(self._members[index], donor, tokens)
            found.append((tokens, self._noted(spec)))
        return found

    @property
    def _table_name(self) -> str:
        return "lm_head" if self._role == HEAD else "embed" if self._role == EMBEDDING else ""

    def _noted(self, one: MadeSource) -> Making:
        return partial(made_rows, self._context.note_made(one))

    def _by_donor(self, index: int, lacking: Sequence[str]) -> list[tuple[Party, list[str]]]:
        found: dict[int, list[str]] = {}
        for token in lacking:
            having = (
                number
                for number, donor in enumerate(self._donors)
                if token in donor.tokens.ids and donor.name != self._members[index].name
            )
            if (number := next(having, None)) is not None:
                found.setdefault(number, []).append(token)
        return [(self._donors[number], tokens) for number, tokens in sorted(found.items())]

    def _spec(self, member: Party, donor: Party, tokens: Sequence[str]) -> MadeSource:
        pairs = {}
        for token, row in sorted(donor.tokens.ids.items(), key=lambda item: item[1]):
            own = member.tokens.row(donor.tokens.key(token))
            if own is not None:
                pairs[row] = own
        if not pairs:
            raise UserError(
                f"{member.name!r} and {donor.name!r} have no token in common, so that no embedding "
                "can be made of others",
                self._settings.where,
                "Write another `donor`, or `method: subword`, `mean` or `zero`.",
            )
        source = self._donor_tensor(donor, tied=self._is_tied(member))
        locked = self._context.lock.sources[source.model]
        trained, files = self._trained((donor, member)) if self._settings.magikarp else ((), ())
        return transplant(
            TransplantSpec(
                method=self._settings.method,
                count=len(tokens),
                most=self._k(len(pairs), member, donor),
                limit=member.tokens.rows,
                scale=self._settings.scale,
                own=rows.format_rows(pairs.values()),
                donor=DonorTensor(
                    identity=locked.files[source.file].identity,
                    tensor=source.tensor,
                    dtype=source.dtype,
                    shape=source.shape,
                    shared=rows.format_rows(pairs),
                    targets=rows.format_rows(donor.tokens.ids[token] for token in tokens),
                ),
                cosine=self._settings.cosine,
                weighting=self._settings.weighting,
                trained=trained,
            ),
            ((source.model, source.file), *files),
        )

    def _trained(
        self, parties: Iterable[Party]
    ) -> tuple[tuple[TrainedModel, ...], tuple[tuple[str, str], ...]]:
        """Return what tells which tokens are hardly trained, and the files that it lies in."""
        models, files = [], []
        for party in parties:
            names = [name for name in party.model.table if is_embedding(name)]
            heads = [] if self._is_tied(party) else [n for n in party.model.table if is_head(n)]
            found = [self._stored(party, name) for name in (*names, *heads)]
            files += [(one.model, one.file) for one in found]
            locked = self._context.lock.sources
            tables = tuple(
                StoredTable(
                    identity=locked[one.model].files[one.file].identity,
                    tensor=one.tensor,
                    dtype=one.dtype,
                    shape=one.shape,
                )
                for one in found
            )
            models.append(TrainedModel(tables=tables, unused=rows.format_rows(party.tokens.unused)))
        return tuple(models), tuple(files)

    def _k(self, shared: int, member: Party, donor: Party) -> int:
        asked = self._settings.k
        if asked is not None and asked > shared:
            raise UserError(
                f"`k: {asked}` asks for more rows than the {shared} of tokens that {member.name!r} "
                f"and {donor.name!r} have in common",
                self._settings.where,
                f"Write `k: {shared}` at most.",
            )
        return min(asked or DEFAULT_K, shared)

    def _donor_tensor(self, donor: Party, *, tied: bool) -> ex.Source:
        """Return the donor's tensor of the same kind: of tied embeddings the one that both are."""
        wanted = is_head if self._role == HEAD and not tied else is_embedding
        names = [name for name in donor.model.table if wanted(name)]
        names = names or [name for name in donor.model.table if is_embedding(name)]
        if len(names) != 1:
            raise UserError(
                f"the donor {donor.name!r} has no one embedding that is known by its name",
                self._settings.where,
                "`method: subword`, `mean` and `zero` need no embeddings of a donor.",
            )
        return self._stored(donor, names[0])

    def _stored(self, party: Party, tensor: str) -> ex.Source:
        """Return a tensor of a model that a job can read as it is."""
        found, entry = party.model.expression(tensor), party.model.table[tensor]
        if not isinstance(found, ex.Source) or found.model not in self._context.lock.sources:
            raise UserError(
                f"the embeddings of {party.name!r} are not stored as they are",
                self._settings.where,
                "Name a model that is not quantised and has no adapter; build one that is made by "
                "a document first, and name its folder.",
            )
        if not DTYPES[entry.dtype].floating or len(entry.shape) != 2:
            raise UserError(
                f"the embeddings of {party.name!r} are no matrix of floats",
                self._settings.where,
            )
        return found

    def _is_tied(self, member: Party) -> bool:
        """Whether an input's output embedding is its input embedding, whatever its files hold."""
        return member.model.config.get("tie_word_embeddings") is True

    def _by_text(self, index: int, lacking: Sequence[str]) -> MadeSource:
        member = self._members[index]
        locked = self._context.lock.sources.get(member.source or "")
        if locked is None or _SPLITTING[0] not in locked.files:
            raise UserError(
                f"model {member.name!r} has no tokenizer.json, which splits tokens into its own",
                self._settings.where,
                "Load its tokenizer with transformers' AutoTokenizer, and save it with "
                "`save_pretrained` into a folder with the model's other files.",
            )
        files = tuple(name for name in _SPLITTING if name in locked.files)
        texts = tuple(self._wanted.text(token) for token in lacking)
        longest = max(len(text.encode()) for text in texts) + 2
        return transplant(
            TransplantSpec(
                method=self._settings.method,
                count=len(lacking),
                most=min(longest, MOST_PARTS),
                limit=member.tokens.rows,
                scale=self._settings.scale,
                head=self._role == HEAD and not self._is_tied(member),
                weighting=self._settings.weighting,
                texts=texts,
                tokenizer=tuple((name, locked.files[name].identity) for name in files),
            ),
            tuple((member.source, name) for name in files),
        )


def role_of(tensor: str) -> str:
    """Return what the rows of a vocabulary's tensor are."""
    return HEAD if is_head(tensor) else EMBEDDING if is_embedding(tensor) else OTHER
