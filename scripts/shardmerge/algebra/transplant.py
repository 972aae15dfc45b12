"""How tokens that a model lacks are made of its own rows: what a job is told that finds it out.

Its result is a made source with two tensors, ``rows`` and ``weights``, which ``RowSums`` reads; or,
of ways that make no sums, with the rows themselves, ``made``.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardmerge.base import forms
from shardmerge.base.digest import digest
from shardmerge.base.forms import entry

#: Changes when the job finds other rows or weights for the same specification.
TRANSPLANT_VERSION = 1
#: Stands in a table of rows where a sum has fewer terms than others.
NO_ROW = -1
#: Tensors of the file that the job writes.
ROWS, WEIGHTS, ERRORS, MADE = "rows", "weights", "errors", "made"
#: Parts that a token may be split into at most.
MOST_PARTS = 64

#: Ways that make no sums of the model's rows: they look at its embedding as well as the donor's.
TURNED = ("landmark_pca",)
#: Ways that look at a donor's embeddings, those that look at texts, and those that draw rows.
BY_DONOR, BY_TEXT = ("omp", "common_interpolation", *TURNED), ("subword",)
BY_CHANCE = ("john_hewitt",)


@dataclass(frozen=True)
class StoredTable:
    """An embedding of a model.

    Args:
        identity: Of the content of its file.
        tensor: Its name there.
        dtype: safetensors code.
        shape: [rows, width].
    """

    identity: str = entry(forms.text)
    tensor: str = entry(forms.text)
    dtype: str = entry(forms.text)
    shape: tuple[int, ...] = entry(forms.listed(forms.count))


@dataclass(frozen=True)
class DonorTensor(StoredTable):
    """A donor's embedding.

    Args:
        shared: Table of its rows of the tokens that both models have, ``algebra.rows``.
        targets: Of its rows of the tokens that the model lacks.
    """

    shared: str = entry(forms.text)
    targets: str = entry(forms.text)


@dataclass(frozen=True)
class TrainedModel:
    """What tells which tokens of a model were hardly trained.

    Args:
        tables: Its input embedding, then its output embedding unless the two are tied.
        unused: Table of the rows that no text reaches.
    """

    tables: tuple[StoredTable, ...] = entry(forms.listed(forms.made_of(StoredTable)))
    unused: str = entry(forms.text)


@dataclass(frozen=True)
class TransplantSpec(forms.Written):
    """All that determines which rows, and with what weights, make the tokens that a model lacks.

    Args:
        method: One of ``BY_DONOR``, ``BY_TEXT`` or ``BY_CHANCE``.
        count: How many tokens there are.
        most: How many rows one is made of at most.
        limit: Rows of the model's embedding.
        scale: What all weights are multiplied by.
        head: Whether the rows are those of an output embedding.
        own: Table of the model's rows of the tokens that both have, in the donor's order.
        donor: The donor's embedding, where it is looked at.
        cosine: Whether neighbours are those with the most similar direction.
        weighting: How neighbours are weighted, or the parts of a token.
        texts: Of the tokens, where these are looked at.
        tokenizer: (name, identity) of the files that split them.
        trained: The donor and the model, where shared tokens that either was hardly trained on are
            left out.
        table: The model's own embedding, where it is looked at.
        seed: Of the random numbers, where rows are drawn.
        stream: What says beside it which they are: document, kind of tensor, model.
    """

    method: str = entry(forms.one_of(lambda: (*BY_DONOR, *BY_TEXT, *BY_CHANCE)))
    count: int = entry(forms.count)
    most: int = entry(forms.count)
    limit: int = entry(forms.count)
    scale: float = entry(forms.number, 1.0)
    head: bool = entry(forms.truth, False)
    own: str = entry(forms.text, "")
    donor: DonorTensor | None = entry(forms.made_of(DonorTensor), None)
    cosine: bool = entry(forms.truth, False)
    weighting: str = entry(forms.text, "")
    texts: tuple[str, ...] = entry(forms.listed(forms.text), ())
    tokenizer: tuple[tuple[str, str], ...] = entry(
        forms.listed(forms.row(forms.text, forms.text)), ()
    )
    trained: tuple[TrainedModel, ...] = entry(forms.listed(forms.made_of(TrainedModel)), ())
    table: StoredTable | None = entry(forms.made_of(StoredTable), None)
    seed: int = entry(forms.count, 0)
    stream: tuple[str, ...] = entry(forms.listed(forms.text), ())
    version: int = entry(forms.count, default_factory=lambda: TRANSPLANT_VERSION)

    @property
    def digest(self) -> str:
        """The job's identity, 64 hexadecimal digits."""
        return digest([self.version, self.to_json()])

    @property
    def memory(self) -> int:
        """Bytes of the rows that are held, of both kinds of tokens, and of what is worked on."""
        if self.method in BY_CHANCE:
            return 16 * self.count * self.most + WORK_BYTES
        if self.donor is None:
            return 200 * self.count + 16 * self.count * self.most
        rows, width = self.donor.shape
        if self.table:
            own, other = self.table.shape
            held = 4 * (rows * width + own * other + self.count * other)
            return held + 80 * max(width, other) ** 2 + 4 * WORK_BYTES
        tables = [one.shape for model in self.trained for one in model.tables]
        largest = max((4 * r * w for r, w in tables), default=0)
        return 4 * rows * width + largest + 16 * self.count * self.most + 4 * WORK_BYTES


#: Bytes of one array that the job works on, such as the similarities of a batch of tokens.
WORK_BYTES = 128 << 20
