"""Embeddings follow a tokenizer: which row of which model each token of each model gets.

As mergekit 0.1.5 has it, every model is brought to the result's tokens before the merge method
sees it. A model keeps its own row of a token that it has. A token that it lacks gets what the
recipe's rule says; without a rule, the row of the only model that has it, else the base model's,
else the mean over the models that have it; zeros if none has. Where the recipe has it so, a row
without a rule is made of the model's own rows instead (``Approximating``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.compose.tokenizer.combine import Tokenizer
from shardmerge.recipe.stage import TokenRule, unknown_rule

#: What a row is made from: (input, row of its tensor) pairs, the mean of several, zeros if none.
Choices = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Member:
    """An input of a stage as far as tokens matter.

    Args:
        name: As the recipe names it.
        ids: Its tokens' ids; those at or beyond ``rows`` have no embedding.
        rows: Rows of its embeddings.
    """

    name: str
    ids: Mapping[str, int]
    rows: int


class Approximating(Protocol):
    """Makes rows of tokens that a model lacks from those that it has."""

    def own(self, index: int) -> Mapping[str, int]:
        """Return the row of each token that an input has, perhaps under another name."""
        ...

    def making(
        self, index: int, lacking: Iterable[str]
    ) -> Iterable[tuple[Sequence[str], Callable[[ex.Expression], ex.Expression]]]:
        """Return tokens that an input lacks, and what makes a row for each from its tensor."""
        ...

    def finished(self, index: int, placed: ex.Expression) -> ex.Expression:
        """Return rows that were made for an input, which stand at their tokens' ids."""
        ...


class Alignment:
    """How the vocabulary tensors of a stage's inputs become tensors of one vocabulary.

    Args:
        members: The stage's inputs, in its order.
        base: Index of the base model among them, or None.
        tokenizer: The result's.
        rules: Of single tokens.
        pad_to_multiple_of: What the number of rows is rounded up to, or None.
        approximating: Makes rows of tokens without a rule, or None.
    """

    def __init__(
        self,
        members: Sequence[Member],
        base: int | None,
        tokenizer: Tokenizer,
        rules: Sequence[TokenRule],
        pad_to_multiple_of: int | None,
        approximating: Approximating | None = None,
    ) -> None:
        self.members = tuple(members)
        self.base = base
        self.size = tokenizer.size
        self._ids = tokenizer.ids
        self._approximating = approximating
        self._rules = {rule.token: rule for rule in rules}
        multiple = pad_to_multiple_of or 1
        self.rows = -(-self.size // multiple) * multiple

    def expression(self, index: int, inputs: Callable[[int], ex.Expression]) -> ex.Expression:
        """Return an input's tensor brought to the result's tokens.

        Args:
            index: Of the input.
            inputs: Gives the tensor of an input of the stage.
        """
        tables, choice = self._tables[index]
        taken = [ex.take_rows(inputs(i), table) for i, table in tables.items()]
        for tokens, make in self._made[index]:
            placed = ex.take_rows(make(inputs(index)), self._places(tokens))
            taken.append(self._approximating.finished(index, placed))
        found = taken[0] if choice is None else ex.Choice(tuple(taken), choice)
        if self.rows == self.size:
            return found
        padding = self.rows - self.size
        kept = rows.format_rows([*range(self.size), *[rows.ZERO] * padding])
        means = rows.format_rows([*[rows.ZERO] * self.size, *[0] * padding])
        parts = ex.take_rows(found, kept), ex.take_rows(ex.Mean(found), means)
        return ex.Choice(parts, rows.format_choice([(0,)] * self.size + [(1,)] * padding))

    def is_own(self, index: int) -> bool:
        """Whether an input's tensor is made of its own rows and zeros, so that it stays a sum."""
        return self._tables[index][1] is None and self.rows == self.size

    def rows_of(self, index: int) -> str:
        """Return the table of an input that ``is_own``."""
        return self._tables[index][0][index]

    def counts(self, index: int) -> tuple[int, int]:
        """Return for how many tokens an input has a row, and for how many others one is made."""
        own = sum(row != rows.ZERO for row in self._own_rows[index])
        return own, sum(len(tokens) for tokens, _ in self._made[index])

    @cached_property
    def _tables(self) -> list[tuple[dict[int, str], str | None]]:
        """For each input, the rows to take of every input, and which of them make each row."""
        return [self._member_tables(index) for index in range(len(self.members))]

    def _member_tables(self, index: int) -> tuple[dict[int, str], str | None]:
        own = self._own_rows[index]
        given: dict[int, Choices] = {}  # of the tokens whose own row is not used
        for number, row in enumerate(own):
            if row == rows.ZERO or number in self._forced:
                given[number] = () if self._is_made(number) else self._default(number)
        used = [index, *sorted({i for row in given.values() for i, _ in row} - {index})]
        tables = {}
        for i in used:
            taken = list(own) if i == index else [rows.ZERO] * self.size
            for number, row in given.items():
                taken[number] = next((at for j, at in row if j == i), rows.ZERO)
            tables[i] = rows.format_rows(taken)
        made = self._made[index]
        if used == [index] and not made:
            return tables, None
        places = {i: place for place, i in enumerate(used)}
        choice = [(0,)] * self.size
        for number, row in given.items():
            choice[number] = tuple(places[i] for i, _ in row)
        for place, (tokens, _) in enumerate(made, len(used)):
            for token in tokens:
                choice[self._ids[token]] = (place,)
        return tables, rows.format_choice(choice)

    @cached_property
    def _made(
        self,
    ) -> list[list[tuple[Sequence[str], Callable[[ex.Expression], ex.Expression]]]]:
        """For each input, the tokens whose rows are made of its own, and what makes them."""
        if self._approximating is None:
            return [[] for _ in self.members]
        tokens = {number: token for token, number in self._ids.items() if self._is_made(number)}
        found = []
        for index, own in enumerate(self._own_rows):
            lacking = [tokens[i] for i in sorted(tokens) if own[i] == rows.ZERO]
            found.append(list(self._approximating.making(index, lacking)))
        return found

    def _is_made(self, number: int) -> bool:
        return self._approximating is not None and number not in self._rule_of

    def _places(self, tokens: Sequence[str]) -> str:
        """Return the table that puts rows of tokens, in their order, where these have their ids."""
        taken = [rows.ZERO] * self.size
        for place, token in enumerate(tokens):
            taken[self._ids[token]] = place
        return rows.format_rows(taken)

    @cached_property
    def _own_rows(self) -> list[list[int]]:
        """For each input, the row of every id of the result, ZERO where it has none."""
        found = []
        for index, member in enumerate(self.members):
            own = [rows.ZERO] * self.size
            having = self._approximating.own(index) if self._approximating else member.ids
            for token, number in self._ids.items():
                row = having.get(token, rows.ZERO)
                if row < member.rows:
                    own[number] = row
            found.append(own)
        return found

    @cached_property
    def _forced(self) -> dict[int, None]:
        """The ids of the tokens whose own rows are not used."""
        return {self._ids[rule.token]: None for rule in self._rules.values() if rule.force}

    @cached_property
    def _rule_of(self) -> dict[int, TokenRule]:
        return {self._ids[rule.token]: rule for rule in self._rules.values()}

    def _default(self, number: int) -> Choices:
        """Return what an id is made from in a model that lacks it, or must not use its own."""
        if number not in self._defaults:
            rule = self._rule_of.get(number)
            self._defaults[number] = self._ruled(rule) if rule else self._usual(number)
        return self._defaults[number]

    @cached_property
    def _defaults(self) -> dict[int, Choices]:
        return {}

    def _usual(self, number: int) -> Choices:
        found = ((i, own[number]) for i, own in enumerate(self._own_rows))
        having = {i: row for i, row in found if row != rows.ZERO}
        if len(having) > 1 and self.base in having:
            return ((self.base, having[self.base]),)
        return tuple(having.items())

    def _row(self, index: int, token: str) -> int | None:
        member = self.members[index]
        found = member.ids.get(token)
        return found if found is not None and found < member.rows else None

    def _ruled(self, rule: TokenRule) -> Choices:
        if rule.kind is None:
            raise unknown_rule(rule)
        if rule.kind == "zero":
            return ()
        index = self._index(rule)
        member = self.members[index]
        if rule.kind == "model":
            row = self._row(index, rule.token)
            what = repr(rule.token)
        elif isinstance(rule.other, int):
            row = rule.other if rule.other < member.rows else None
            what = f"of id {rule.other}"
        else:
            row = self._row(index, rule.other)
            what = repr(rule.other)
        if row is None:
            raise UserError(
                f"model {member.name!r} has no embedding of the token {what}",
                rule.where,
                None if rule.kind == "model" or isinstance(rule.other, int)
                else did_you_mean(rule.other, member.ids),
            )  # fmt: skip
        return ((index, row),)

    def _index(self, rule: TokenRule) -> int:
        names = [member.name for member in self.members]
        if str(rule.model) not in names:
            raise UserError(
                f"token {rule.token!r} takes its embedding from {str(rule.model)!r}, which is not "
                "one of the models that are merged",
                rule.where,
                did_you_mean(str(rule.model), names),
            )
        return names.index(str(rule.model))
