"""Methods that decompose task matrices: by hand, and within bounds of other libraries."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers import kernel_cases as cases
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32
from shardmerge.methods.registry import Group, bounds_of, kernel_of, methods
from shardmerge.methods.spectral import decompose

NAMES = [m.name for m in methods() if m.bounds]


def group_of(name: str, matrices: list[Any], **values: object) -> Group:
    """Return models that are zeros plus task matrices."""
    tensors = [torch.as_tensor(matrix, dtype=torch.float32) for matrix in matrices]
    group = cases.ordinary(name, (1,), models=len(tensors), **values)
    return replace(group, tensors=[torch.zeros_like(tensors[0]), *tensors])


def merged(name: str, matrices: list[Any], **values: object) -> torch.Tensor:
    return kernel_of(name, FLOAT32)[0](group_of(name, matrices, **values))


def close(found: torch.Tensor, expected: Any) -> bool:
    return torch.allclose(found, torch.as_tensor(expected, dtype=torch.float32), atol=1e-6)


def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values))


def test_the_methods_of_this_family() -> None:
    assert NAMES == ["iso_c", "iso_cts", "subspace_boosting", "tsv_m"]


class TestTaskSingularVectors:
    def test_orthogonal_models_by_hand(self) -> None:
        """Half of the singular values of each: 3 and 2 of the first, 5 and 4 of the second."""
        matrices = [diagonal(3, 2, 1, 0), diagonal(0, 0, 5, 4)]
        assert close(merged("tsv_m", matrices), diagonal(3, 2, 5, 4))
        half = merged("tsv_m", matrices, **{"lambda": 0.5, "weight": (2.0, -1.0)})
        assert close(half, diagonal(3, 2, -2.5, -2))

    def test_vectors_at_an_angle_by_hand(self) -> None:
        """Of two unit vectors the nearest orthonormal ones lie 45 degrees beside their bisector."""
        angle = 1.0
        vector = torch.tensor([math.cos(angle), math.sin(angle)])
        found = merged("tsv_m", [diagonal(2, 0), 4 * torch.outer(vector, vector)])
        first, second = (
            torch.tensor([math.cos(a), math.sin(a)])
            for a in (angle / 2 - math.pi / 4, angle / 2 + math.pi / 4)
        )
        assert close(found, 2 * torch.outer(first, first) + 4 * torch.outer(second, second))

    def test_equal_models_by_hand(self) -> None:
        assert close(merged("tsv_m", [diagonal(4, 1)] * 2), diagonal(4, 0))

    def test_what_is_no_matrix_gets_the_mean(self) -> None:
        assert close(merged("tsv_m", [[4.0, 1.0], [2.0, 0.0]]), [3.0, 0.5])
        narrow = [[[1.0, 3.0, 5.0]], [[3.0, 3.0, 0.0]]]
        assert close(merged("tsv_m", narrow), [[2.0, 3.0, 2.5]])


class TestIsotropic:
    def test_common_by_hand(self) -> None:
        """The sum has singular values 3 and 1, of mean 2."""
        assert close(merged("iso_c", [[[0, 2], [0, 0]], [[0, 1], [1, 0]]]), [[0, 2], [2, 0]])

    def test_zero_singular_values_stay(self) -> None:
        assert close(merged("iso_c", [diagonal(4, 2, 0)]), diagonal(2, 2, 0))

    def test_a_stack_of_matrices(self) -> None:
        """Experts: each matrix has its own singular values."""
        stack = torch.stack([diagonal(3, 1), diagonal(6, 2)])
        assert close(merged("iso_c", [stack]), torch.stack([diagonal(2, 2), diagonal(4, 4)]))

    def test_task_specific_by_hand(self) -> None:
        """4 and 3 are common; the models add what they have beside: 1 and 2. The mean is 2.5."""
        matrices = [diagonal(4, 0, 0, 1), diagonal(0, 3, 2, 0)]
        assert close(merged("iso_cts", matrices, common=0.5), diagonal(2.5, 2.5, 2.5, 2.5))

    def test_vectors_that_cannot_be_shared_equally_are_common(self) -> None:
        """Two of five are for three models: one each (the nearest to 2/3), so 2 are common.

        The sum has 5, 4, 3, 2, 1; the models add 3, 2 and 1. The mean is 3.
        """
        matrices = [diagonal(5, 0, 3, 0, 0), diagonal(0, 4, 0, 2, 0), diagonal(0, 0, 0, 0, 1)]
        found = merged("iso_cts", matrices, common=0.6)
        assert close(found, diagonal(3, 3, 3, 3, 3))

    def test_too_few_vectors_for_each_model_are_all_common(self) -> None:
        """One of five is for three models: none each (the nearest to 1/3), as in Iso-C."""
        group = cases.ordinary("iso_cts", (5, 9), models=3, common=0.8)
        expected = kernel_of("iso_c", FLOAT32)[0](group)
        assert torch.allclose(kernel_of("iso_cts", FLOAT32)[0](group), expected, atol=1e-6)

    def test_no_more_vectors_than_there_are(self) -> None:
        """5/3 for each of three models would be 2, but five vectors have 1 each; 2 are common."""
        group = cases.ordinary("iso_cts", (5, 9), models=3, common=0.0)
        expected = kernel_of("iso_cts", FLOAT32)[0](
            cases.ordinary("iso_cts", (5, 9), models=3, common=0.4)
        )
        assert torch.equal(kernel_of("iso_cts", FLOAT32)[0](group), expected)

    def test_all_common_is_iso_c(self) -> None:
        group = cases.ordinary("iso_cts", (6, 9), models=3, common=1.0)
        expected = kernel_of("iso_c", FLOAT32)[0](group)
        assert torch.allclose(kernel_of("iso_cts", FLOAT32)[0](group), expected, atol=1e-6)


class TestBoosting:
    @pytest.mark.parametrize(
        ("beta", "expected"), [(0.0, (6, 6, 6)), (0.7, (6, 3, 3)), (1.0, (6, 3, 1))]
    )
    def test_by_hand(self, beta: float, expected: tuple[float, ...]) -> None:
        """6, 9 and 10 tenths of the sum are reached by the first, the second and the third."""
        matrices = [diagonal(6, 0, 1), diagonal(0, 3, 0)]
        assert close(merged("subspace_boosting", matrices, beta=beta), diagonal(*expected))

    def test_vectors_are_added(self) -> None:
        assert close(merged("subspace_boosting", [[4.0, 1.0], [2.0, 0.0]]), [6.0, 1.0])


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_decompose_can_be_switched_off(self, name: str) -> None:
        matrices = [diagonal(3, 1), diagonal(5, 1)]
        mean = 1 if name == "subspace_boosting" else 2
        assert close(merged(name, matrices, decompose=False), diagonal(8 / mean, 2 / mean))

    def test_not_a_number_stays_one(self, name: str) -> None:
        found = merged(name, [[[math.nan, 1.0], [0.0, 2.0]], diagonal(2, 2)])
        assert found.isnan().tolist() == [[True, False], [False, False]]

    def test_is_rounded_once(self, name: str) -> None:
        group = cases.ordinary(name, (12, 9), models=2)
        wide = replace(group, tensors=[tensor.double() for tensor in group.tensors])
        function = kernel_of(name, FLOAT32)[0]
        assert torch.equal(function(group), function(wide).float())

    @pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (3, 12, 12)])
    def test_another_library_is_within_the_bound(
        self, name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It decomposes the matrix with its rows and columns in another order, signs turned."""
        group = cases.ordinary(name, shape, models=3, dtype=torch.float64)
        ours, bound = bounds_of(name)(group, 0.0)
        monkeypatch.setattr(decompose, "_svd", _other)
        theirs, _ = bounds_of(name)(group, 0.0)
        apart = float((ours - theirs).abs().max())
        assert 0 < apart <= bound < 1e-6

    def test_inputs_errors_are_within_the_bound(self, name: str) -> None:
        group = cases.ordinary(name, (12, 20), models=3, dtype=torch.float64)
        changed = [tensor + 1e-12 * (-1) ** i for i, tensor in enumerate(group.tensors)]
        ours, bound = bounds_of(name)(group, 1e-12 * math.sqrt(240))
        theirs = kernel_of(name, FLOAT32)[0](replace(group, tensors=changed))
        assert (ours - theirs).abs().max() <= bound < 1e-3


def _other(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    left, values, right = torch.linalg.svd(matrix.flip(0, 1), full_matrices=False)
    return -left.flip(0), values, -right.t().flip(0)


class TestNoBound:
    def test_equal_singular_values_of_which_one_is_kept(self) -> None:
        found = bounds_of("tsv_m")(group_of("tsv_m", [diagonal(2, 2), diagonal(3, 1)]), 0.0)
        assert found[1] == math.inf

    def test_equal_ones_that_are_all_kept(self) -> None:
        _, bound = bounds_of("iso_c")(group_of("iso_c", [diagonal(2, 2), diagonal(1, 1)]), 0.0)
        assert bound < 1e-12

    def test_a_share_that_is_just_reached(self) -> None:
        group = group_of("subspace_boosting", [diagonal(5, 5)], beta=0.5)
        assert bounds_of("subspace_boosting")(group, 0.0)[1] == math.inf


def test_a_decomposition_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    with pytest.raises(UserError, match=r"cannot be found.*\n.*decompose"):
        merged("iso_c", [diagonal(1, 2)])
