"""The kernels of float32 numerics: what each method means, on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import kernel_cases as cases
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.registry import Group, kernel_of, methods

NAMES = [m.name for m in methods() if m.kernel]
#: Those whose bits a library decides, on each device and for each number of threads.
DECOMPOSED = [m.name for m in methods() if m.bounds]
ELEMENTWISE = [m.name for m in methods() if m.kernel and kernel_of(m.name, FLOAT32)[1]]
RANDOM = [m.name for m in methods() if not m.deterministic]


def merged(group: Group, name: str) -> torch.Tensor:
    return kernel_of(name, FLOAT32)[0](group)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_dtype_and_inputs(self, name: str, dtype: torch.dtype) -> None:
        for shape in ((6,), (4, 6), (3, 4, 2, 2), (0,), (1, 1)):
            group = cases.ordinary(name, shape, models=3, dtype=dtype)
            before = [tensor.clone() for tensor in group.tensors]
            result = merged(group, name)
            assert (result.shape, result.dtype) == (shape, dtype)
            assert all(map(torch.equal, group.tensors, before))
            assert all(
                result.data_ptr() != tensor.data_ptr() for tensor in group.tensors if shape[0]
            )

    def test_threads_change_no_bit(self, name: str, threads: None) -> None:
        if name in DECOMPOSED:
            pytest.skip("its bits are the library's")
        group = cases.ordinary(name, (3, BLOCK // 2), models=3, rescale=True)
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(merged(group, name))
        assert cases.differing(*results) == 0

    def test_strides_change_no_bit(self, name: str) -> None:
        group = cases.ordinary(name, (30, 20), models=3)
        strided = [tensor.t().contiguous().t() for tensor in group.tensors]
        assert (
            cases.differing(merged(group, name), merged(replace(group, tensors=strided), name)) == 0
        )

    def test_models_equal_to_the_base_give_it(self, name: str) -> None:
        group = cases.ordinary(name, (8, 9), models=3, weight=1.0)
        same = replace(group, tensors=[group.tensors[0]] * len(group.tensors))
        tolerance = 2e-7 if name in ("karcher", "slerp", "nuslerp", "multislerp") else 0
        assert torch.allclose(merged(same, name), group.tensors[0], rtol=tolerance, atol=0)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_gpu_changes_no_bit(self, name: str) -> None:
        group = cases.ordinary(name, (300, 700), models=3)
        there = replace(group, tensors=[tensor.cuda() for tensor in group.tensors])
        result = merged(there, name).cpu()
        if name in DECOMPOSED:
            assert torch.allclose(result, merged(group, name), rtol=1e-6, atol=1e-7)
        else:
            assert cases.differing(merged(group, name), result) == 0


@pytest.mark.parametrize("name", ELEMENTWISE)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_blocks_have_the_whole_tensors_bits(name: str, data: st.DataObject) -> None:
    group = data.draw(cases.groups(name, (torch.float32, torch.float64)))
    edges = data.draw(st.lists(st.integers(0, 10**6), max_size=3))
    parts = [merged(part, name) for part in cases.blocks(group, edges)]
    assert cases.differing(torch.cat(parts), merged(group, name).reshape(-1)) == 0


def task_group(name: str, vectors: list[list[float]], **values: object) -> Group:
    """Return a group of models that are a base of zeros plus task vectors."""
    group = cases.ordinary(name, (len(vectors[0]),), models=len(vectors), **values)
    tensors = [torch.tensor(vector) for vector in [[0.0] * len(vectors[0]), *vectors]]
    return replace(group, tensors=tensors)


class TestSparsified:
    def test_ties_by_hand(self) -> None:
        """Of 4 elements the 2 largest stay; signs are elected; agreeing models are averaged."""
        group = task_group(
            "ties", [[3.0, -2.0, 1.0, 0.5], [-1.0, -4.0, 2.0, 0.1]], weight=1.0, density=0.5
        )
        assert merged(group, "ties").tolist() == [3.0, -3.0, 2.0, 0.0]

    def test_ties_keeps_the_first_of_equals_and_at_least_one(self) -> None:
        group = task_group("ties", [[1.0, -1.0, 1.0, 1.0]], weight=1.0, density=0.5)
        assert merged(group, "ties").tolist() == [1.0, -1.0, 0.0, 0.0]
        one = task_group("ties", [[1.0, -1.0, 1.0, 1.0]], weight=1.0, density=0.01)
        assert merged(one, "ties").tolist() == [1.0, 0.0, 0.0, 0.0]

    def test_breadcrumbs_by_hand(self) -> None:
        group = task_group(
            "breadcrumbs",
            [[8.0, -1.0, 2.0, -7.0, 3.0, 4.0, 5.0, 6.0]],
            weight=2.0,
            density=0.5,
            gamma=0.25,
        )
        assert merged(group, "breadcrumbs").tolist() == [0, 0, 0, 0, 6.0, 8.0, 10.0, 12.0]

    @pytest.mark.parametrize("density", [0.0, 1.0])
    @pytest.mark.parametrize("name", ["ties", "dare_linear", "della", "breadcrumbs"])
    def test_none_and_all(self, name: str, density: float) -> None:
        group = cases.ordinary(name, (20, 30), models=1, weight=1.0, density=density)
        base, model = group.tensors
        expected = base if density == 0 else base + (model - base)
        assert torch.equal(merged(group, name), expected)

    @pytest.mark.parametrize("name", ["ties", "dare_linear", "della", "breadcrumbs"])
    def test_rescaling_restores_the_norm(self, name: str) -> None:
        group = cases.ordinary(name, (64, 70), models=1, weight=1.0, rescale=True, normalize=False)
        group = replace(group, tensors=[torch.zeros(64, 70), group.tensors[1]])
        norms = [tensor.abs().sum() for tensor in (group.tensors[1], merged(group, name))]
        assert norms[0] == pytest.approx(float(norms[1]), rel=1e-5)

    def test_lambda_and_normalize(self) -> None:
        group = task_group(
            "dare_linear", [[2.0, 4.0], [6.0, 0.0]], weight=2.0, density=1.0, normalize=True
        )
        group = replace(group, parameters={**group.parameters, "lambda": 0.5})
        assert merged(group, "dare_linear").tolist() == [2.0, 1.0]


@pytest.mark.parametrize("name", RANDOM)
class TestChance:
    def kept(self, group: Group, method_name: str, **changes: object) -> torch.Tensor:
        changed = replace(group, **changes)
        return merged(changed, method_name) != changed.tensors[0]

    def group(self, name: str) -> Group:
        return cases.ordinary(name, (40, 50), models=1, density=0.5, rescale=False)

    def test_depends_on_seed_stage_tensor_and_model(self, name: str) -> None:
        group = self.group(name)
        first = self.kept(group, name)
        assert torch.equal(first, self.kept(group, name))
        others = [
            {"parameters": {**group.parameters, "seed": 1}},
            {"parameters": {**group.parameters, "stage": "second"}},
            {"name": "lm_head.weight"},
            {"models": ("model-0", "another")},
        ]
        for changes in others:
            assert 700 < int((first != self.kept(group, name, **changes)).sum()) < 1300

    def test_not_on_the_other_models(self, name: str) -> None:
        """A model's random choice stays when another model is added."""
        group = self.group(name)
        silent = (None, 0.5, 0.0)
        more = replace(
            group,
            tensors=[*group.tensors, group.tensors[1] + 1],
            models=(*group.models, "another"),
            per_input={k: (*v, v[-1]) for k, v in group.per_input.items()} | {"weight": silent},
        )
        assert torch.equal(self.kept(group, name), self.kept(more, name))


class TestDella:
    def test_larger_elements_stay_more_often(self) -> None:
        group = cases.ordinary(
            "della_linear", (400, 50), models=1, density=0.5, epsilon=0.4, rescale=False
        )
        base, model = group.tensors
        kept = (merged(group, "della_linear") != base).double()
        share = kept.gather(1, (model - base).abs().argsort(dim=1)).mean(dim=0)
        assert (share - torch.linspace(0.1, 0.9, 50, dtype=torch.float64)).abs().max() < 0.12

    def test_refuses_impossible_probabilities(self) -> None:
        with pytest.raises(UserError, match="epsilon"):
            merged(cases.ordinary("della", (4, 4), density=0.1, epsilon=0.2), "della")


class TestConsensus:
    def test_ram_by_hand(self) -> None:
        group = task_group("ram", [[4.0, 2.0, 0.0], [0.0, 4.0, 1e-6]])
        assert merged(group, "ram").tolist() == [4.0, 3.0, 0.0]

    def test_ramplus_by_hand(self) -> None:
        """One shared change to two unique ones, so a ratio of 0.5 and a factor of 1.05."""
        group = task_group("ramplus_tl", [[4.0, 2.0, 1.0, 0.0], [0.0, 4.0, 0.0, 1.0]], alpha=0.6)
        expected = torch.tensor([4.2, 3.0, 1.05, 1.06])
        assert torch.allclose(merged(group, "ramplus_tl"), expected)

    def test_sce_by_hand(self) -> None:
        """Energies 2.5 and 8.5 weigh the first element; the second's signs disagree."""
        group = task_group("sce", [[2.0, 1.0], [1.0, -4.0]], select_topk=1.0)
        assert torch.allclose(merged(group, "sce"), torch.tensor([(2 * 2.5 + 8.5) / 11, -4.0]))

    def test_sce_selects_what_varies(self) -> None:
        group = task_group("sce", [[2.0, 1.0, 5.0], [1.0, 5.0, 5.0]], select_topk=0.5)
        result = merged(group, "sce")
        assert result[0] == 0 and result[1] > 0 and result[2] == 0


class TestSpherical:
    def test_slerp_keeps_to_the_arc(self) -> None:
        group = cases.ordinary("slerp", (2,), t=1 / 3)
        group = replace(group, tensors=[torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
        expected = torch.tensor([3**0.5 / 2, 0.5])
        assert torch.allclose(merged(group, "slerp"), expected)

    @pytest.mark.parametrize("t", [0.0, 1.0])
    def test_slerp_ends_are_the_models(self, t: float) -> None:
        group = cases.ordinary("slerp", (12, 13), t=t)
        assert torch.allclose(merged(group, "slerp"), group.tensors[int(t)], rtol=1e-6)

    def test_slerp_leaves_what_has_no_weight(self) -> None:
        group = cases.ordinary("slerp", (2, 2), t=0.0)
        group.tensors[1].fill_(torch.inf)
        assert torch.equal(merged(group, "slerp"), group.tensors[0])

    @pytest.mark.parametrize(("row_wise", "axis"), [(False, 1), (True, 0)])
    def test_nuslerp_by_vectors_is_slerp_of_each(self, row_wise: bool, axis: int) -> None:
        group = cases.ordinary("nuslerp", (5, 7), nuslerp_flatten=False, nuslerp_row_wise=row_wise)
        pair = [torch.randn(5, 7, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        result = merged(replace(group, tensors=pair), "nuslerp")
        flat = cases.ordinary("nuslerp", (1,))
        for index in range(pair[0].shape[1 - axis]):
            vectors = [tensor.select(1 - axis, index).contiguous() for tensor in pair]
            one = merged(replace(flat, tensors=vectors), "nuslerp")
            assert torch.allclose(result.select(1 - axis, index), one, rtol=1e-6)

    def test_multislerp_is_the_mean_direction(self) -> None:
        group = cases.ordinary("multislerp", (3,), models=2, weight=1.0)
        group = replace(group, tensors=[torch.tensor([2.0, 0, 0]), torch.tensor([0, 4.0, 0])])
        assert torch.allclose(merged(group, "multislerp"), torch.tensor([4.5**0.5] * 2 + [0.0]))

    def test_multislerp_refuses_what_cancels(self) -> None:
        group = cases.ordinary("multislerp", (2,), models=4, weight=1.0)
        cross = [[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]]
        with pytest.raises(UserError, match="cancel out"):
            merged(replace(group, tensors=[torch.tensor(v) for v in cross]), "multislerp")

    def test_karcher_is_the_centre(self) -> None:
        """Three vectors at the same angle around an axis: the axis, with their mean norm."""
        group = cases.ordinary("karcher", (3,), models=3)
        result = merged(
            replace(group, tensors=list(torch.eye(3) * torch.tensor([1.0, 2.0, 3.0]))), "karcher"
        )
        assert torch.allclose(result, torch.full((3,), 2 / 3**0.5))

    def test_karcher_of_antipodes_is_finite(self) -> None:
        group = cases.ordinary("karcher", (5, 5), models=2)
        opposite = replace(group, tensors=[group.tensors[0], -group.tensors[0]])
        assert merged(opposite, "karcher").isfinite().all()

    def test_model_stock_by_hand(self) -> None:
        """Task vectors at 60 degrees: t = 2 * 0.5 / 1.5."""
        group = cases.ordinary("model_stock", (2,), models=2)
        vectors = [[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]]
        result = merged(replace(group, tensors=[torch.tensor(v) for v in vectors]), "model_stock")
        assert torch.allclose(result, torch.tensor([0.5, 0.75**0.5 / 3]))

    def test_model_stock_by_rows(self) -> None:
        group = cases.ordinary("model_stock", (4, 9), models=3, filter_wise=True)
        rows = [
            merged(replace(group, tensors=[t[i].clone() for t in group.tensors]), "model_stock")
            for i in range(4)
        ]
        assert torch.equal(torch.stack(rows), merged(group, "model_stock"))


class TestBlending:
    def test_nearswap_by_hand(self) -> None:
        group = cases.ordinary("nearswap", (3,), t=0.5)
        pair = [torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.25, 2.0, 1.0])]
        assert merged(replace(group, tensors=pair), "nearswap").tolist() == [0.25, 0.5, 1.0]

    def test_fusion_takes_whole_elements(self) -> None:
        group = cases.ordinary("arcee_fusion", (60, 80))
        base, model = group.tensors
        result = merged(group, "arcee_fusion")
        taken = result == model
        assert torch.equal(torch.where(taken, model, base), result)
        p, q = (t.double().softmax(dim=-1) for t in (model, base))
        importance = (model - base).abs().double() * (p * (p / q).log()).sum(-1, keepdim=True)
        ordered = importance.reshape(-1).sort().values
        lower, median, upper = (ordered[int(q * 4799)] for q in (0.25, 0.5, 0.75))
        sure = (importance / (median + 1.5 * (upper - lower)) - 1).abs() > 1e-5
        expected = importance >= median + 1.5 * (upper - lower)
        assert torch.equal(taken[sure], expected[sure]) and 0 < taken.sum() < 1000


class TestGeometric:
    """Scales of norms multiply: two fine-tunes of a base give first * second / base."""

    NAME = "geometric_task_arithmetic"

    def result(self, *columns: tuple[float, ...], **values: object) -> torch.Tensor:
        group = cases.ordinary(self.NAME, (len(columns),), **({"weight": 1.0} | values))
        tensors = [torch.tensor(row) for row in zip(*columns, strict=True)]
        return merged(replace(group, tensors=tensors), self.NAME)

    def test_ratios(self) -> None:
        assert self.result((0.5, 2.0, 3.0), (-1.0, -2.0, -4.0)).tolist() == [12.0, -8.0]

    def test_is_rounded_once(self) -> None:
        group = cases.ordinary(self.NAME, (1000,), weight=1.0)
        tensors = [tensor.abs() + 0.1 for tensor in group.tensors]
        base, first, second = (tensor.double() for tensor in tensors)
        result = merged(replace(group, tensors=tensors), self.NAME)
        assert torch.equal(result, (first * second / base).float())

    def test_weights_are_exponents(self) -> None:
        assert self.result((1.0, 4.0, 9.0), weight=(None, 0.5, 1.0)).tolist() == [18.0]
        normal = self.result((1.0, 4.0, 9.0), weight=1.0, normalize=True)
        assert normal.tolist() == [6.0]

    def test_adds_where_there_is_no_ratio(self) -> None:
        columns = [(0.0, 2.0, 3.0), (1.0, -1.0, 4.0), (-1.0, -2.0, 0.0), (0.0, 0.0, 0.0)]
        assert self.result(*columns).tolist() == [5.0, 2.0, -1.0, 0.0]

    def test_weight_zero_has_no_say(self) -> None:
        assert self.result((2.0, -1.0, 3.0), weight=(None, 0.0, 1.0)).tolist() == [3.0]
        assert self.result((2.0, torch.inf, 3.0), weight=(None, 0.0, 1.0)).tolist() == [3.0]

    def test_has_no_counterpart_in_mergekit(self) -> None:
        assert kernel_of(self.NAME, FLOAT32)[1]
