"""Recipe checks: what will build, but is probably not what was meant.

They look at what the plan made of a recipe, so that they speak of what is really blended: a
document that no model is built from, or a tensor that folds to one model, gives no finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.findings import Finding
from shardmerge.compose.architecture.names import (
    is_embedding,
    is_head,
    is_vocabulary,
)
from shardmerge.compose.architecture.norms import is_scale
from shardmerge.compose.architecture.rope import is_rotated, rope_of
from shardmerge.compose.composer import Composer
from shardmerge.compose.norms import ARITHMETIC
from shardmerge.compose.output_config import untold_periods
from shardmerge.plan.checked_build import Case, places
from shardmerge.plan.checkpoint_checks import left_out_weights, partial_tensors
from shardmerge.plan.mixture_checks import equal_experts, equal_tokens, expert_tokenizers, scales
from shardmerge.plan.part_checks import (
    module_folders,
    mtp_layers,
    quantised_source,
    remote_code,
    stale_quantisation,
    text_into_vision,
)
from shardmerge.recipe.parameters import Rule
from shardmerge.recipe.recipe import Recipe
from shardmerge.recipe.references import Reference
from shardmerge.sources.tokens import Tokens, compare

#: What rounding to float32 may leave of a sum that is meant to be 1 or of a coefficient that is 0.
_TOLERANCE = 1e-4
_WIDE = ("BF16", "F32", "F64")


def check_build(
    composer: Composer,
    name: str,
    outputs: Sequence[OutputTensor],
    expressions: Mapping[str, ex.Expression],
) -> list[Finding]:
    """Return what is odd about a model that is to be built.

    Args:
        composer: Of its recipe.
        name: The stage.
        outputs: Its tensors.
        expressions: What each of them is, as sums (``Composer.sums``).
    """
    case = Case(composer, name, outputs, expressions)
    checks = _OF_CHECKPOINTS if case.stage.tensors else _CHECKS
    return [finding for check in checks for finding in check(case)]


def check_norm_merge(recipe: Recipe, wanted: str | Mapping[str, str]) -> list[Finding]:
    """Return a finding if the configuration's ``norm_merge`` cannot touch a recipe."""
    if wanted != "geometric" or any(s.method == ARITHMETIC for s in recipe.stages.values()):
        return []
    message = f"`norm_merge: geometric` changes nothing: no document is a {ARITHMETIC}"
    return [Finding("norm-merge-unused", message, recipe.path)]


def _rope_blend(case: Case) -> Iterator[Finding]:
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for blend, own in case.kinds:
        if len(blend.models) > 1 and any(map(is_rotated, own)):
            ropes = {m: rope_of(s.config, m) for m, s in case.sources(blend).items()}
            if len(set(ropes.values())) > 1:
                found.setdefault(tuple(sorted(ropes.items())), []).extend(filter(is_rotated, own))
    for ropes, tensors in found.items():
        models = " and ".join(f"{model} ({rope})" for model, rope in ropes)
        yield case.finding(
            "rope-blend",
            f"{places(tensors)} blend models whose rotary embeddings differ: {models}. Rotations "
            "by different frequencies do not add; leave these projections to one model",
        )


def _norms_summed(case: Case) -> Iterator[Finding]:
    tensors = [
        tensor
        for blend, own in case.kinds
        if any(c < -_TOLERANCE for c in blend.coefficients.values())
        for tensor in filter(is_scale, own)
    ]
    if tensors:
        yield case.finding(
            "norms-summed",
            f"{places(tensors)} add differences of models, but the scale of a norm multiplies. "
            "Leave norms to one model, or merge them by ratios with `norm_merge: geometric`",
        )


def _tokenizer_blend(case: Case) -> Iterator[Finding]:
    if any(stage.tokenizer for stage in case.stages):
        return
    found: dict[tuple[str, ...], list[str]] = {}
    for blend, own in case.kinds:
        if len(blend.models) > 1 and (rows := list(filter(is_vocabulary, own))):
            found.setdefault(tuple(case.sources(blend)), []).extend(rows)
    for models, tensors in found.items():
        tokens = compare([case.composer.lock.sources[model] for model in models])
        if tokens is Tokens.SAME:
            continue
        yield case.finding(
            "tokenizer-blend",
            f"{places(tensors)} blend models whose {tokens.difference}: {', '.join(models)}. "
            "One row may stand for different tokens; take embeddings from one model, or write "
            "`tokenizer_source: union`",
        )


def _few_shared_tokens(case: Case) -> Iterator[Finding]:
    names = [stage.name for stage in case.stages]
    for one in case.composer.tokenizers.made_rows(names):
        tokens = case.composer.tokenizers.of(Reference(one.stage))
        if 4 * one.own < len(tokens.ids):
            message = (
                f"{one.model} has rows of its own for {one.own} of {len(tokens.ids)} tokens: it "
                "needs training before it is of use"
            )
            where = case.composer.recipe.stages[one.stage].tokenizer.where
            yield Finding("few-shared-tokens", message, where, one.stage)


def _fp16_range(case: Case) -> Iterator[Finding]:
    locked = case.composer.lock.sources
    suspects = {m for m, s in locked.items() if any(t.dtype in _WIDE for t in s.tensors.values())}
    wide: dict[str, None] = {}
    for output in case.outputs if suspects else ():
        if output.dtype != "F16":
            continue
        models = suspects.intersection(case.blends[output.name].models)
        if models:  # factors of adapters are not saved
            leaves = ex.sources(case.expressions[output.name])
            found = (s.model for s in leaves if s.dtype in _WIDE and s.model in models)
            wide |= dict.fromkeys(found)
            suspects.difference_update(wide)
    if wide:
        yield case.finding(
            "fp16-range",
            f"saves as float16 what {', '.join(wide)} store in a type of wider range: a value "
            "beyond 65504 fails the job, one below 6e-8 becomes 0. `out_dtype: bfloat16` keeps "
            "the range",
        )


def _weights_sum(case: Case) -> Iterator[Finding]:
    if any(scales(stage) for stage in case.stages):
        return
    odd: dict[str, float] = {}
    for blend, own in case.kinds:
        value = sum(blend.coefficients.values())
        if blend.coefficients and not blend.through and abs(value - 1) > _TOLERANCE:
            odd |= dict.fromkeys(own, value)
    if odd:
        low, high = min(odd.values()), max(odd.values())
        values = f"{low:.3g}" if high - low < _TOLERANCE else f"{low:.3g} to {high:.3g}"
        yield case.finding(
            "weights-sum",
            f"the coefficients of {places(list(odd))} sum to {values}, not to 1, which scales "
            "the result. Write weights that sum to 1, or `normalize: true`",
        )


def _layer_period(case: Case) -> Iterator[Finding]:
    for key, value in untold_periods(case.composer, case.name).items():
        yield case.finding(
            "layer-period",
            f"its layers are no longer where `{key}: {value}` of config.json has them, so that "
            "some are taken for another kind; take runs of layers that keep each at its place in "
            "the period",
        )


def _missing_tensor(case: Case) -> Iterator[Finding]:
    tied: dict[tuple[str, ...], list[str]] = {}
    for tensor, blend in case.blends.items():
        if is_head(tensor) and len(blend.models) > 1:
            leaves = ex.sources(case.expressions[tensor])
            giving = dict.fromkeys(s.model for s in leaves if is_embedding(s.tensor))
            if giving and any(is_head(s.tensor) for s in leaves):
                tied.setdefault(tuple(giving), []).append(tensor)
    for models, tensors in tied.items():
        yield case.finding(
            "missing-tensor",
            f"{places(tensors)} blend the input embeddings of {', '.join(models)}, whose own are "
            "tied, with the output embeddings of other models. The result is untied; take it from "
            "one model if that is not meant",
        )
    lacking: dict[tuple[str, str], list[str]] = {}
    for stage in case.stages:
        for tensor, part in case.composer.model(Reference(stage.name)).parts.items():
            if None in part.names and not part.copied and tensor in case.blends:
                models = list(zip(part.piece.inputs, part.names, strict=True))
                having = dict.fromkeys(str(i.model) for i, name in models if name)
                others = dict.fromkeys(str(i.model) for i, name in models if not name)
                key = (", ".join(having), ", ".join(others))
                lacking.setdefault(key, []).append(tensor.removesuffix(".bias"))
    for (having, others), modules in lacking.items():
        yield case.finding(
            "missing-tensor",
            f"{places([f'{module}.weight' for module in modules])} have a bias in {having} but "
            f"not in {others}. It is merged from the former alone, although a missing bias means "
            "0. config.json must say that there is a bias",
        )


def _unused_models(case: Case) -> Iterator[Finding]:
    used = {model for blend, _ in case.kinds for model in blend.models}
    recipe = case.composer.recipe
    # A base gives config, layout and tokenizer at least.
    given = {case.composer.reference_source(stage.name) for stage in case.stages}
    given |= {s.base_model.model for s in case.stages if s.base_model}
    for stage in case.stages:
        for item in stage.inputs if not stage.mixture else ():  # its experts may be left out
            key = item.model.model
            if key not in used and key not in given and key not in recipe.stages:
                used.add(key)
                message = f"takes nothing of {key}: its weights are 0 or cancel"
                yield Finding("unused-model", message, item.where, case.name)


def _unmatched_filters(case: Case) -> Iterator[Finding]:
    for stage in case.stages:
        for rule in case.composer.unmatched(stage.name):
            message = f"the filter {rule.filter!r} matches no tensor of the model"
            yield Finding("unmatched-filter", message, rule.where, stage.name)


def _fused_filters(case: Case) -> Iterator[Finding]:
    for stage in case.stages:
        found: dict[Rule, list[str]] = {}
        for tensor, rules in case.composer.unclear(stage.name).items():
            for rule in rules:
                found.setdefault(rule, []).append(tensor)
        for rule, tensors in found.items():
            whole = rule.matches(tensors[0])
            counts = "counts for all" if whole else "does not count for any"
            message = (
                f"the filter {rule.filter!r} names some of the projections that share "
                f"{tensors[0]!r}, which is merged as a whole: it {counts} of it"
            )
            if whole and "." not in rule.filter:
                message += f"; {'.' + rule.filter!r} is the name of the projection alone"
            yield Finding("fused-filter", message, rule.where, stage.name)


#: All that ``check_build`` asks, in the order in which it tells.
_CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    equal_experts,
    equal_tokens,
    expert_tokenizers,
    _rope_blend,
    _norms_summed,
    _tokenizer_blend,
    _few_shared_tokens,
    _fp16_range,
    _weights_sum,
    _layer_period,
    _missing_tensor,
    mtp_layers,
    module_folders,
    quantised_source,
    stale_quantisation,
    remote_code,
    _unused_models,
    _unmatched_filters,
    _fused_filters,
    text_into_vision,
)

#: The same of a merge of checkpoints, of which nothing is known but their tensors' names.
_OF_CHECKPOINTS = (
    _fp16_range,
    _weights_sum,
    partial_tensors,
    left_out_weights,
    quantised_source,
    _unused_models,
    _unmatched_filters,
)
