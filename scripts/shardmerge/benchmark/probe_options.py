"""What is measured of a model beside tasks, on a text: perplexity, divergence, needles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shardmerge.base.digest import canonical_json
from shardmerge.base.errors import UserError
from shardmerge.benchmark.options import benchmark_given, table_given
from shardmerge.recipe.benchmark_entries import PROBES

#: Grows when a probe gives other numbers for the same model.
_VERSION = 1
_WINDOWS = ("characters", "context", "stride", "longest")
_NEEDLES = (
    "characters",
    "longest",
    "lengths",
    "depths",
    "needles",
    "needle",
    "question",
    "symbols",
    "seed",
)
_DECIDES = dict(zip(PROBES, (_WINDOWS, _WINDOWS, _NEEDLES), strict=True))


@dataclass(frozen=True)
class ProbeOptions:
    """How models are probed; names and meanings as below ``benchmark.probes``.

    Args:
        text: A text file.
        characters: How much of it counts, from its beginning.
        context: Tokens of a window, or None for what the model declares.
        stride: Tokens from window to window, or None for half a window.
        longest: Most tokens where the model declares more.
        lengths: Tokens of haystacks, or None: what the model declares, a half and a quarter.
        depths: Where in it the needle is, from 0 (beginning) to 1.
        needles: For each length and depth.
        needle: The sentence, with ``{secret}``.
        question: What stands at the end, with ``{secret}``.
        symbols: What a secret is made of.
        seed: Of secrets and haystacks.
    """

    text: str
    characters: int
    context: int | None
    stride: int | None
    longest: int
    lengths: tuple[int, ...] | None
    depths: tuple[float, ...]
    needles: int
    needle: str
    question: str
    symbols: str
    seed: int

    def window(self, declared: int) -> tuple[int, int]:
        """Return the tokens of a window, and how many of them the next one does not repeat.

        Args:
            declared: The model's longest input.
        """
        context = self.context or min(declared, self.longest)
        return context, min(self.stride or max(1, context // 2), context)

    def haystacks(self, declared: int) -> list[int]:
        """Return the lengths of haystacks in tokens.

        Args:
            declared: The model's longest input.
        """
        whole = min(declared, self.longest)
        return sorted(set(self.lengths or (whole // 4, whole // 2, whole)))

    def identity(self, probe: str) -> dict[str, Any]:
        """Return what of the options decides a probe's result, less the text itself."""
        values = asdict(self)
        return {"version": _VERSION} | {key: values[key] for key in _DECIDES[probe]}

    def to_json(self) -> str:
        """Return the options as text for a job."""
        return canonical_json(asdict(self))


def probe_options(benchmark: Mapping[str, Any]) -> ProbeOptions:
    """Return how models are probed.

    Args:
        benchmark: The configuration's part, as ``Settings`` has it; with ``probes.text``.
    """
    given = benchmark["probes"]
    values = {key: given[key] for key in ProbeOptions.__dataclass_fields__}
    for key in ("lengths", "depths"):
        values[key] = None if values[key] is None else tuple(values[key])
    return ProbeOptions(**values)


def parse_probes(text: str) -> ProbeOptions:
    """Return the options that a command line gives, checked as the configuration is.

    Args:
        text: Options as JSON, by their names in the configuration.

    Raises:
        UserError: If there is no such option, or it cannot have this value.
    """
    given = table_given(text, "--probes")
    if not given.get("text"):
        raise UserError("has no `text`", "--probes")
    return probe_options(benchmark_given({"probes": given}))
