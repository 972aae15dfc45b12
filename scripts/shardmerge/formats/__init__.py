"""Formats of quantised weights: what a model's stored tensors mean as tensors of floats.

``detect`` says how a model is quantised, ``Reading.logical`` which tensors it has, ``rows`` and
``decode`` give any range of a tensor's rows. Nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shardmerge.base.errors import UserError
from shardmerge.formats import (
    awq,
    bitsandbytes,
    compressed,
    float8,
    fp4,
    fp8,
    fp8_block,
    gptq,
    mxfp4,
)
from shardmerge.formats.announcement import UNNAMED, announcement
from shardmerge.formats.interface import (
    Announcement,
    Blocks,
    Box,
    Format,
    LogicalTensor,
    Table,
    short,
)

if TYPE_CHECKING:
    import numpy as np

#: Every format by name, to decode with; settings are in the logical tensors.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        fp8_block.Fp8Block(),
        fp8.Fp8(),
        compressed.PackQuantized(),
        compressed.IntQuantized(),
        gptq.Gptq(),
        awq.Awq(),
        bitsandbytes.Bnb8(),
        bitsandbytes.Bnb4(),
        mxfp4.Mxfp4(),
        fp4.Fp4(),
        float8.Float8(),
    )
}
_MODULES = (fp8_block, fp8, compressed, gptq, awq, bitsandbytes, mxfp4, fp4)
METHODS = (
    "awq",
    "bitsandbytes",
    "compressed-tensors",
    "fbgemm_fp8",
    "fp8",
    "gptq",
    "modelopt",
    "mxfp4",
)
#: Formats whose tensors tell all by themselves, where no file says how a model is quantised.
_PLAIN_SPOKEN = (
    fp8_block.Fp8Block(),
    fp8.Fp8(),
    bitsandbytes.Bnb8(),
    bitsandbytes.Bnb4(),
    mxfp4.Mxfp4(),
    fp4.Fp4(),
)
#: Types that codes are stored in. Numbers of 64 bits and truth values are positions and masks.
CODE_TYPES = frozenset(
    """F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0 F6_E2M3 F6_E3M2 F4
    I8 U8 I16 U16 I32 U32""".split()
)
#: What only matters while a quantised model runs: scales of activations and caches, tables that
#: the library has built in.
_RUNTIME = frozenset(
    """input_scale output_scale activation_scale k_scale v_scale q_scale
    kv_scale prob_scale prob_output_scale input_global_scale output_global_scale input_zero_point
    output_zero_point quant_map input_scale_ub""".split()
)
_SCALES = ("_scale", "_scale_inv")
_STATE = ".quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Reading:
    """How one model's stored tensors are read.

    Args:
        said: What its files say.
        formats: Formats that its tensors may be in.
    """

    said: Announcement
    formats: tuple[Format, ...]

    def needed(self, table: Table) -> list[str]:
        """Return the small tensors whose bytes ``logical`` must be given, sorted."""
        return sorted(name for form in self.formats for name in form.needed(table))

    def logical(
        self, table: Table, contents: Mapping[str, bytes] | None = None
    ) -> dict[str, LogicalTensor]:
        """Return the tensors that the stored ones make, by name, sorted.

        Args:
            table: All stored tensors of the model.
            contents: Bytes of the tensors that ``needed`` names.

        Raises:
            UserError: If parts are missing or do not fit, or a module has some that no format
                knows and that could change its weights.
        """
        return self.resolved(table, contents)[0]

    def resolved(
        self, table: Table, contents: Mapping[str, bytes] | None = None
    ) -> tuple[dict[str, LogicalTensor], set[str]]:
        """Return what ``logical`` does, and what is ``claimed`` then."""
        found: dict[str, LogicalTensor] = {}
        for form in self.formats:
            for one in form.logical(table, contents or {}):
                apart = one.lead.tensor != one.name and one.name in table
                if one.name in found or (apart and one.name not in _refs(one)):
                    raise UserError("is stored twice, in two formats", f"tensor {one.name!r}")
                found[one.name] = one
        claimed = self.claimed(table, found)
        self._no_strangers(table, found, claimed)
        return {name: found[name] for name in sorted(found)}, claimed

    def dropped(self, table: Table) -> list[str]:
        """Return the stored tensors that a model without quantisation does not have, sorted."""
        names = [n for n in table if n.rpartition(".")[2] in _RUNTIME or _STATE in n]
        scales = [n for n in table if n.endswith(_SCALES)]
        for suffix in _SCALES:
            plain = [n.removesuffix(suffix) for n in scales if n.endswith(suffix)]
            names += [n + suffix for n in plain if n in table and table[n].dtype not in CODE_TYPES]
        return sorted(set(names))

    def claimed(self, table: Table, logical: Mapping[str, LogicalTensor]) -> set[str]:
        """Return the stored tensors that are parts of logical ones or dropped."""
        parts = {ref.tensor for one in logical.values() for ref in one.parts.values()}
        return parts | set(self.dropped(table))

    def _no_strangers(
        self, table: Table, logical: Mapping[str, LogicalTensor], claimed: set[str]
    ) -> None:
        """Check that the modules of logical tensors have nothing that no format knows.

        Raises:
            UserError: If one has, such as a scale of its inputs that weights were divided by.
        """
        modules = {n.rpartition(".")[0] for n in logical if n.endswith(".weight")}
        for name in sorted(set(table) - claimed):
            module, _, last = name.rpartition(".")
            module = module.removesuffix(".weight")
            if module in modules and last != "weight" and not last.endswith("bias"):
                raise UserError(
                    f"has a part {name!r} that is not known in the format "
                    f"{logical[module + '.weight'].format}",
                    f"tensor {module + '.weight'!r}",
                    "It may change what the codes mean, so the model cannot be read.",
                )


def detect(
    config: Mapping[str, Any], side_files: Mapping[str, Any], table: Table, where: str = ""
) -> Reading | Literal["stale"] | None:
    """Return how a model's weights are quantised.

    Args:
        config: config.json.
        side_files: Parsed ``quantize_config.json``, ``quant_config.json`` and
            ``hf_quant_config.json``, by name.
        table: All stored tensors.
        where: The model, for errors.

    Returns:
        None where they are plain, ``"stale"`` where files say otherwise but all tensors are plain.

    Raises:
        UserError: If they are in a format that cannot be read.
    """
    said = announcement(config, side_files, where)
    if CODE_TYPES.isdisjoint({entry.dtype for entry in table.values()}):
        return "stale" if said.method else None
    if not said.method:
        formats = tuple(form for form in _PLAIN_SPOKEN if _speaks(form, table))
        return Reading(said, formats) if formats else None
    formats = tuple(_announced(said))
    if not formats:
        raise UserError(
            f"says that the weights are quantised with {short(said.method)}, which cannot be read"
            if said.method != UNNAMED
            else "says that the weights are quantised, but not how",
            said.where,
            f"Formats that are read: {', '.join(METHODS)}. Merge the models that they were "
            "made from.",
        )
    return Reading(said, formats)


def values_of(table: Table) -> dict[str, LogicalTensor]:
    """Return the tensors of a checkpoint of any kind that are 8-bit floats without scales."""
    return {one.name: one for one in float8.Float8().logical(table, {})}


def is_flat(logical: LogicalTensor) -> bool:
    """Return whether every element is made of the stored one at its place (``Format.flat``)."""
    return FORMATS[logical.format].flat


def rows(logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
    """Return what of every part is needed to decode a range of rows (``Format.rows``)."""
    return FORMATS[logical.format].rows(logical, first, count)


def decode(logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
    """Return a range of rows as float32 [count, columns] (``Format.decode``)."""
    import numpy as np

    with np.errstate(all="ignore"):  # codes are a stranger's: infinities and NaN are values
        return FORMATS[logical.format].decode(logical, blocks, first, count)


def _announced(said: Announcement) -> Iterable[Format]:
    for module in _MODULES:
        made = module.announced(said)
        if made is not None:
            yield from made if isinstance(made, tuple) else (made,)


def _speaks(form: Format, table: Table) -> bool:
    """Whether a format has tensors in a model that says nothing of it."""
    return bool(form.needed(table) or form.logical(table, {}))


def _refs(one: LogicalTensor) -> set[str]:
    return {ref.tensor for ref in one.parts.values()}
