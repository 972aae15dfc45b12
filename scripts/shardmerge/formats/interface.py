"""What a format of quantised weights is: stored tensors that together make one of floats."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from shardmerge.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np

#: Types that scales have, and codes of 8-bit floats.
FLOATS = ("F32", "F16", "BF16")
FP8 = ("F8_E4M3", "F8_E5M2")
#: Of every dimension of a stored tensor, the indices [begin, end) that are needed.
Box = tuple[tuple[int, int], ...]
Blocks = Mapping[str, "np.ndarray"]
#: Largest number of elements that a tensor of a real model could have.
MAX_ELEMENTS = 1 << 48


class Stored(Protocol):
    """What a file's header says of a tensor."""

    @property
    def dtype(self) -> str:
        """Code in the safetensors header."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions as stored."""


Table = Mapping[str, Stored]


class PartRef(NamedTuple):
    """A stored tensor that is part of a logical one: name, dtype code and shape."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]


class LogicalTensor(NamedTuple):
    """A tensor of floats that several stored tensors make.

    Args:
        name: As the model has it when it is not quantised.
        shape: Of the floats.
        format: Name of the format that decodes it.
        parts: Stored tensors by role, such as ``codes``, ``scales``, ``zeros``.
        parameters: What else decoding needs, sorted pairs of plain values.
        dtype: Code of the type of the floats. All formats decode to float32, before any rounding.
        step: Rows (of the last dimension) that are best decoded together; a multiple wastes least.
        first: Another one that it differs from in the names of its parts alone, None if that is
            not known: the same one for all that are so alike. Parts are sorted by role then.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    parts: Mapping[str, PartRef]
    parameters: tuple[tuple[str, Any], ...] = ()
    dtype: str = "F32"
    step: int = 1
    first: LogicalTensor | None = None

    def __hash__(self) -> int:
        return hash((self.name, self.shape, self.format, self.parameters))

    @property
    def lead(self) -> PartRef:
        """The part that tells where the whole lies: its codes, else the first one by role."""
        return self.parts.get("codes") or self.parts[min(self.parts)]

    @property
    def columns(self) -> int:
        """Elements of a row; a single number is a row of one."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Number of rows, all dimensions but the last taken together."""
        return math.prod(self.shape[:-1])

    def parameter(self, key: str) -> Any:
        """Return a parameter, or None where it is not given."""
        return dict(self.parameters).get(key)


class Format(Protocol):
    """A way to store quantised weights, with the settings of one model.

    ``rows`` and ``decode`` use nothing of the settings: a logical tensor has all they need.

    Args:
        name: Of the format, in specifications.
        flat: Whether every element is made of one stored one at its place, the only part.
    """

    name: str
    flat: bool

    def logical(self, table: Table, contents: Mapping[str, bytes]) -> list[LogicalTensor]:
        """Return the logical tensors that the stored ones make.

        Args:
            table: All stored tensors of the model.
            contents: Bytes of the tensors that ``needed`` names.

        Raises:
            UserError: If parts are missing or do not fit each other; names the tensor.
        """

    def needed(self, table: Table) -> list[str]:
        """Return the small tensors whose bytes decide a logical tensor's shape."""

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """Return what of every part is needed to decode a range of rows.

        The range must lie in one matrix (``row_spans`` cuts it so).
        """

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """Return a range of rows as float32 [count, columns].

        Args:
            logical: What to decode.
            blocks: By role, the elements in the boxes that ``rows`` returns, in numpy's type of
                the stored one (``stored_type``).
            first: Number of the first row.
            count: Number of rows.

        Raises:
            UserError: If stored values make no sense, such as a group that does not exist.
        """


@dataclass(frozen=True)
class Announcement:
    """What a model's files say about how it is quantised.

    Args:
        method: Such as ``fp8``, ``gptq``, ``compressed-tensors``; "" where nothing is said.
        settings: The table that says so.
        where: File that it stands in, for errors.
    """

    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    def integer(self, key: str, default: int, *others: int) -> int:
        """Return a whole number above 0 (or one of ``others``) that the settings hold.

        Raises:
            UserError: If it is anything else.
        """
        value = self.settings.get(key)
        value = default if value is None else value
        if type(value) is not int or not (0 < value < 1 << 31 or value in others):
            raise UserError(f"has {key} = {short(value)}, which is no sensible number", self.where)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a true or false that the settings hold.

        Raises:
            UserError: If it is anything else.
        """
        value = self.settings.get(key)
        value = default if value is None else value
        if type(value) is not bool:
            raise UserError(
                f"has {key} = {short(value)}, which is neither true nor false", self.where
            )
        return value

    def text(self, key: str) -> str:
        """Return a word that the settings hold in lower case, or "".

        Raises:
            UserError: If it is not text.
        """
        value = self.settings.get(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f"has {key} = {short(value)}, which is not text", self.where)
        return (value or "").lower()


def part(
    table: Table, name: str, of: str, codes: tuple[str, ...], ranks: tuple[int, ...]
) -> PartRef:
    """Return a stored tensor as a part, of one of the types and numbers of dimensions.

    Args:
        table: All stored tensors.
        name: The part.
        of: The logical tensor, for errors.
        codes: Types that it may have.
        ranks: Numbers of dimensions that it may have.

    Raises:
        UserError: If it is missing or another.
    """
    entry = table.get(name)
    if entry is None:
        raise UserError(f"is quantised, but its part {name!r} is missing", f"tensor {of!r}")
    if entry.dtype not in codes:
        raise UserError(
            f"has a part {name!r} of type {entry.dtype}, not {' or '.join(codes)}", f"tensor {of!r}"
        )
    shape = tuple(entry.shape)
    if len(shape) not in ranks or not all(type(n) is int and n >= 0 for n in shape):
        raise UserError(
            f"has a part {name!r} of shape {shown(shape)}, not of "
            f"{' or '.join(map(str, ranks))} dimensions",
            f"tensor {of!r}",
        )
    if max(shape, default=0) > MAX_ELEMENTS or math.prod(shape) > MAX_ELEMENTS:
        raise UserError(f"has a part {name!r} too large for any model", f"tensor {of!r}")
    return PartRef(name, entry.dtype, shape)


def short(value: object) -> str:
    """Return a stranger's value as an error may show it, cut where it is long."""
    return reprlib.repr(value)


def shown(shape: Iterable[int]) -> str:
    """Return a shape in words that an error can hold."""
    sizes = [str(n) if n < 1 << 63 else "..." for n in shape]
    return " x ".join(sizes[:8]) + (" x ..." if len(sizes) > 8 else "") if sizes else "one number"


def misfit(of: str, ref: PartRef, expected: Iterable[int], why: str) -> UserError:
    """Return the error of a part whose shape is not what the others ask for."""
    return UserError(
        f"has a part {ref.tensor!r} of shape {shown(ref.shape)}, but {why} needs {shown(expected)}",
        f"tensor {of!r}",
        "The files are broken or of a format that is only similar.",
    )


def filled(of: str, *refs: PartRef) -> None:
    """Check that no part is empty.

    Raises:
        UserError: If one has no elements.
    """
    for ref in refs:
        if 0 in ref.shape:
            raise UserError(f"has an empty part {ref.tensor!r}", f"tensor {of!r}")
