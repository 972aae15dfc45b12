"""What a job that makes LoRA factors is told: content without paths; its digest names the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardmerge.base import forms
from shardmerge.base.digest import digest
from shardmerge.base.forms import entry

#: Changes when the factors change for the same specification and the same libraries.
FACTORS_VERSION = 1
#: How a module's tensor is kept by peft, and what its update is a product of.
KINDS = ("linear", "embedding", "experts")

_scalar = forms.holds(lambda value: value is None or isinstance(value, (str, bool, int, float)))


@dataclass(frozen=True)
class AlignedMerge:
    """A merge of adapters that is done in the space that all their updates share (KnOTS).

    Args:
        method: Name of the merge method.
        base: Index of the base model among the inputs.
        parameters, per_input, models: As of ``algebra.nodes.Call``.
        products: How many pairs of factors each input has.
    """

    method: str = entry(forms.text)
    base: int = entry(forms.count)
    parameters: tuple[tuple[str, Any], ...] = entry(forms.listed(forms.row(forms.text, _scalar)))
    per_input: tuple[tuple[str, tuple[Any, ...]], ...] = entry(
        forms.listed(forms.row(forms.text, forms.listed(_scalar)))
    )
    models: tuple[str, ...] = entry(forms.listed(forms.text))
    products: tuple[int, ...] = entry(forms.listed(forms.count))


@dataclass(frozen=True)
class FactorModule:
    """A module whose update is written as two factors.

    Args:
        name: As peft calls it.
        tensor: Of the base model; the update's name in the file that it is read from.
        kind: One of ``KINDS``: two factors, those of an embedding, or those of fused experts.
        transposed: Whether the tensor is the transpose of the factors' product.
        products: How many pairs of factors the update is given as; 0 if it is given whole.
        uniform: Whether its rank is the largest that is allowed, whatever its update needs:
            libraries stack the factors of a layer's experts.
        within: How many adapted tensors of the same module come after it: peft wraps the module
            once for each, the first one innermost.
        merge: How the pairs of factors are merged, or None where their products are summed.
    """

    name: str = entry(forms.text)
    tensor: str = entry(forms.text)
    kind: str = entry(forms.one_of(lambda: KINDS), "linear")
    transposed: bool = entry(forms.truth, False)
    products: int = entry(forms.count, 0)
    uniform: bool = entry(forms.truth, False)
    within: int = entry(forms.count, 0)
    merge: AlignedMerge | None = entry(forms.made_of(AlignedMerge), None)

    def factor_names(self, number: int) -> tuple[str, str]:
        """Return what the factors b and a of a pair are called where the update is read from."""
        return f"{self.tensor}.b.{number}", f"{self.tensor}.a.{number}"

    @property
    def outputs(self) -> tuple[str, str]:
        """What the factors b and a are called in the adapter, as peft has it."""
        prefix = f"base_model.model.{self.name}."
        if self.kind == "embedding":
            return f"{prefix}lora_embedding_B", f"{prefix}lora_embedding_A"
        if self.kind == "experts":
            parent = self.name.rpartition(".")[0]
            prefix = f"base_model.model.{parent}.{'base_layer.' * self.within}"
        return f"{prefix}lora_B.weight", f"{prefix}lora_A.weight"


@dataclass(frozen=True)
class FactorSpec(forms.Written):
    """All that determines the bytes of one file of factors.

    Args:
        update: Digest of the job that writes the updates that are read.
        modules: In the order of their data.
        saved: Tensors that are copied: name there and name in the adapter.
        decomposition: As in the recipe, and so are the others.
        rank: The largest rank, None for all of what is given.
        energy, cut, alpha, seed, dtype: See ``recipe.extraction.Extraction``.
    """

    update: str = entry(forms.sha256)
    modules: tuple[FactorModule, ...] = entry(forms.listed(forms.made_of(FactorModule)))
    saved: tuple[tuple[str, str], ...] = entry(forms.listed(forms.row(forms.text, forms.text)))
    decomposition: str = entry(forms.text)
    rank: int | None = entry(forms.maybe(forms.count))
    energy: float | None = entry(forms.maybe(forms.number))
    cut: float | None = entry(forms.maybe(forms.number))
    alpha: float | None = entry(forms.maybe(forms.number))
    seed: int = entry(forms.count)
    dtype: str = entry(forms.text)
    version: int = entry(forms.count, default_factory=lambda: FACTORS_VERSION)

    @property
    def digest(self) -> str:
        """The job's identity, 64 hexadecimal digits."""
        return digest([self.version, self.to_json()])


@dataclass(frozen=True)
class ModuleRecord:
    """What became of a module's update.

    Args:
        name: As peft calls it.
        rank: Of its factors, 0 where the update is zero and nothing is written.
        norm: Frobenius norm of the update.
        error: Frobenius norm of the update minus the factors' product as it is saved.
        values: The singular values that are kept, in falling order; of fused experts each one's.
        kept: How many of them each expert has, of fused experts only.
    """

    name: str = entry(forms.text)
    rank: int = entry(forms.count)
    norm: float = entry(forms.number)
    error: float = entry(forms.number)
    values: tuple[float, ...] = entry(forms.listed(forms.number))
    kept: tuple[int, ...] = entry(forms.listed(forms.count), ())

    @property
    def relative(self) -> float:
        """The error over the update's norm, 0 if there is no update."""
        return self.error / self.norm if self.norm else 0.0

    @property
    def energy(self) -> float:
        """Share of the update's sum of squares that the factors hold."""
        return max(0.0, 1.0 - self.relative**2)


@dataclass(frozen=True)
class FactorRecord:
    """What a job that makes factors tells of itself.

    Args:
        spec: Its digest.
        sha256: Of the file that it wrote.
        size: Its bytes.
        modules: In the specification's order.
    """

    spec: str = entry(forms.sha256)
    sha256: str = entry(forms.sha256)
    size: int = entry(forms.count)
    modules: tuple[ModuleRecord, ...] = entry(forms.listed(forms.made_of(ModuleRecord)))
