"""RegMean, Fisher averaging and MetaGPT: by hand, and by the properties that define them."""

from __future__ import annotations

import math

import pytest
import torch

from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT
from shardmerge.methods.measured.kernels import regmean, shares_of_squares
from shardmerge.methods.registry import Group, Request, bounds_of, kernel_of, method


def regression(
    layers: list[torch.Tensor],
    grams: list[torch.Tensor],
    scale: float = 1.0,
    weights: tuple[float, ...] | None = None,
) -> Group:
    nothing = (None,) * len(layers)
    weights = weights or (1.0,) * len(layers)
    return Group([*layers, *grams], None, {"scale": scale}, {"weight": (*weights, *nothing)})


def solution(*arguments: object, **options: object) -> torch.Tensor:
    return kernel_of("regmean_solution", FLOAT32)[0](regression(*arguments, **options))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gram(rows: torch.Tensor) -> torch.Tensor:
    return rows.t() @ rows / len(rows)


class TestRegMean:
    def test_by_hand(self) -> None:
        """(G1 + G2) w = G1 w1 + G2 w2: [[3, 1], [1, 3]] w = [2, 1] + [0, 6] for w1 = (1, 0)."""
        grams = [torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
        layers = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 6.0]])]
        # right side (2, 7); the determinant is 8
        assert torch.allclose(solution(layers, grams), torch.tensor([[-1 / 8, 19 / 8]]))

    def test_scale_by_hand(self) -> None:
        """With half of what is off the diagonal: [[3, .5], [.5, 3]] w = (2, 6.5)."""
        grams = [torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.eye(2)]
        layers = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 6.0]])]
        found = solution(layers, grams, 0.5)
        assert torch.allclose(found, torch.tensor([[2.75 / 8.75, 18.5 / 8.75]]))

    def test_it_minimises_the_loss(self) -> None:
        rows = [random(60, 8, seed=i) * torch.logspace(-2, 2, 8) for i in range(3)]
        layers = [random(5, 8, seed=9 + i) for i in range(3)]
        found = solution(layers, [gram(x) for x in rows]).double()

        def loss(weight: torch.Tensor) -> float:
            pairs = zip(rows, layers, strict=True)
            return sum(float((x.double() @ (weight - w.double()).t()).square().sum())
                       for x, w in pairs)  # fmt: skip

        least = loss(found)
        assert all(least < loss(w.double()) for w in (*layers, sum(layers) / 3))
        for seed in range(20):
            assert least < loss(found * (1 + 0.01 * random(5, 8, seed=seed).double()))

    def test_equal_grams_give_the_mean(self) -> None:
        layers = [random(4, 6, seed=i) for i in range(3)]
        found = solution(layers, [gram(random(50, 6))] * 3, 0.9)
        assert torch.allclose(found, sum(layers) / 3, atol=1e-6)

    def test_equal_layers_stay(self) -> None:
        layer = random(4, 6)
        grams = [gram(random(50, 6, seed=i)) for i in range(2)]
        assert torch.allclose(solution([layer, layer], grams), layer, atol=1e-5)

    def test_without_the_rest_columns_are_weighted_means(self) -> None:
        layers = [random(4, 6, seed=i) for i in range(2)]
        grams = [gram(random(50, 6, seed=i)) for i in range(2)]
        found = solution(layers, grams, 0.0, (2.0, 1.0))
        a, b = 2 * grams[0].diagonal(), grams[1].diagonal()
        assert torch.allclose(found, (a * layers[0] + b * layers[1]) / (a + b), atol=1e-6)

    def test_dead_features_get_the_mean(self) -> None:
        rows = [random(50, 6, seed=i) for i in range(2)]
        for x in rows:
            x[:, 2] = 0
        layers = [random(4, 6, seed=i) for i in range(2)]
        found = solution(layers, [gram(x) for x in rows])
        assert torch.allclose(found[:, 2], (layers[0] + layers[1])[:, 2] / 2)
        assert found.isfinite().all()

    def test_no_inverse_is_told(self) -> None:
        one = torch.ones(2, 2)
        with pytest.raises(UserError, match=r"no inverse\n.*smaller `scale`"):
            solution([torch.eye(2)] * 2, [one, one])
        assert solution([torch.eye(2)] * 2, [one, one], 0.9).isfinite().all()

    def test_a_bound_of_another_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        group = regression(
            [random(5, 24, seed=i).double() for i in range(2)],
            [gram(random(60, 24, seed=i).double() * torch.logspace(-2, 2, 24)) for i in range(2)],
            0.9,
        )
        ours, bound = bounds_of("regmean_solution")(group, 0.0)
        monkeypatch.setattr("shardmerge.methods.measured.kernels._solved", torch.linalg.solve)
        theirs, _ = regmean(group)
        assert 0 < float((ours - theirs).abs().max()) <= bound < 1e-7 * float(ours.abs().max())

    def test_inputs_errors_are_within_the_bound(self) -> None:
        group = regression(
            [random(5, 12, seed=i).double() for i in range(2)],
            [gram(random(60, 12, seed=i).double()) for i in range(2)],
        )
        changed = [t + 1e-12 for t in group.tensors]
        ours, bound = bounds_of("regmean_solution")(group, 1e-12 * 12)
        theirs, _ = regmean(Group(changed, None, group.parameters, group.per_input))
        assert float((ours - theirs).abs().max()) <= bound < 1e-3


class TestFisher:
    @staticmethod
    def average(
        tensors: list[list[float]], fishers: list[list[float]], floor: float, *weights: float
    ) -> list[float]:
        given = [torch.tensor(row) for row in (*tensors, *fishers)]
        per_input = {"weight": (*(weights or (1.0,) * len(tensors)), *(None for _ in tensors))}
        group = Group(given, None, {"floor": floor}, per_input)
        before = [tensor.clone() for tensor in given]
        found = kernel_of("fisher_average", FLOAT32)[0](group).tolist()
        assert all(map(torch.equal, before, given))
        return found

    def test_by_hand(self) -> None:
        """(1*1 + 3*5) / 4, the floor for both, the floor for one: (0.5*2 + 1.5*6) / 2."""
        found = self.average([[1.0, 1.0, 2.0], [5.0, 3.0, 6.0]],
                             [[1.0, 0.0, 0.1], [3.0, 0.2, 1.5]], 0.5)  # fmt: skip
        assert found == [4.0, 2.0, 5.0]

    def test_weights(self) -> None:
        """(2*1*1 + 1*2*5) / 4."""
        assert self.average([[1.0], [5.0]], [[1.0], [2.0]], 0.1, 2.0, 1.0) == [3.0]

    def test_equal_information_gives_the_mean(self) -> None:
        assert self.average([[1.0, 7.0], [2.0, 1.0]], [[0.25, 4.0]] * 2, 1e-10) == [1.5, 4.0]


class TestMetaGpt:
    def test_shares_by_hand(self) -> None:
        assert shares_of_squares([3.0, 4.0, 0.0]) == [9 / 25, 16 / 25, 0.0]
        assert shares_of_squares([0.0, 0.0]) == [0.5, 0.5]

    @pytest.mark.parametrize("norms", [[1e-30, 2e-30], [1e30, 3e30, 1e-9], [0.1] * 7])
    def test_shares_sum_to_one(self, norms: list[float]) -> None:
        assert math.fsum(shares_of_squares(norms)) == pytest.approx(1.0, rel=1e-15)

    def test_sum_by_hand(self) -> None:
        """The base 1, 3 and 6 beside it: 1 + 0.25 * 2 + 0.75 * 5."""
        base, a, b = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([6.0])
        given = [a, base, b, torch.tensor([0.25]), torch.tensor([0.75])]
        found = kernel_of("metagpt_sum", FLOAT32)[0](Group(given, 1, {}, {}))
        assert found.tolist() == [5.25]

    def test_a_row_of_a_share(self) -> None:
        values = {"model": 1, "width": 3, "lambda": 0.5}
        given = [torch.tensor([1.0]), torch.tensor([3.0])]
        found = kernel_of("metagpt_share", FLOAT32)[0](Group(given, None, values, {}))
        assert torch.equal(found, torch.full((1, 3), 0.45))


@pytest.mark.parametrize("name", ["regmean", "fisher"])
def test_what_is_not_measured_gets_the_weighted_mean(name: str) -> None:
    request = Request(("a", "b"), None, {}, {"weight": (1.0, 3.0)})
    assert method(name).linear(request).direct == {0: 0.25, 1: 0.75}


@pytest.mark.parametrize("name", ["regmean", "fisher", "metagpt"])
def test_mergekit_has_none_of_them(name: str) -> None:
    with pytest.raises(UserError, match="not one of mergekit"):
        method(name).rendering(MERGEKIT)
