"""The float32 kernels are at least as near to the exact result as mergekit's float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_oracle import mergekit_result

from helpers import kernel_cases as cases
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32
from shardmerge.methods.registry import Group, in_mergekit, kernel_of, methods

#: Roundings of float32, in units of the largest input, that are forgiven.
TOLERANCE = 4 * 2.0**-24
#: They choose by comparing, so the last bit may decide; here the choices are far apart.
CHOOSING = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce", "ramplus_tl", "arcee_fusion")
SMOOTH = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "ram")
#: Within the distances between the models' elements, so that some are swapped and some not.
VALUES = {"nearswap": {"t": 0.001}}


def errors(name: str, group: Group) -> tuple[float, float]:
    """Return the largest errors of ours and of mergekit's float32, relative to the inputs."""
    exact = mergekit_result(name, replace(group, tensors=[t.double() for t in group.tensors]))
    theirs = mergekit_result(name, group)
    ours = kernel_of(name, FLOAT32)[0](group)
    assert ours.dtype == torch.float32 and ours.shape == exact.shape
    scale = max(tensor.abs().max().item() for tensor in group.tensors) or 1.0
    return tuple((r.double() - exact).abs().max().item() / scale for r in (ours, theirs))


class TestAccuracy:
    @pytest.mark.parametrize("name", SMOOTH)
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_random_groups(self, name: str, data: st.DataObject) -> None:
        kinds = ("tuned", "apart", "equal", "sparse", "zero")
        group = data.draw(cases.groups(name, (torch.float32,), kinds))
        try:
            ours, theirs = errors(name, group)
        except (UserError, ValueError):  # what mergekit refuses; see the tests of bits
            assume(False)
        assert ours <= theirs + TOLERANCE

    @pytest.mark.parametrize("name", CHOOSING + SMOOTH)
    def test_fine_tunes(self, name: str) -> None:
        group = cases.ordinary(name, (96, 130), models=3, **VALUES.get(name, {}))
        ours, theirs = errors(name, group)
        assert ours <= theirs + TOLERANCE
        assert ours < 1e-6

    @pytest.mark.parametrize("name", SMOOTH)
    def test_far_nearer_than_mergekit_in_half_precision(self, name: str) -> None:
        values = {"dtype": torch.float16, **VALUES.get(name, {})}
        group = cases.ordinary(name, (64, 64), models=3, **values)
        exact = mergekit_result(name, replace(group, tensors=[t.double() for t in group.tensors]))
        theirs = mergekit_result(name, group).double()
        wide = replace(group, tensors=[tensor.float() for tensor in group.tensors])
        ours = kernel_of(name, FLOAT32)[0](wide).double()
        assert (ours - exact).norm() < 0.01 * (theirs - exact).norm()

    @pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
    def test_random_methods_given_all(self, name: str) -> None:
        group = cases.ordinary(name, (40, 50), models=3, density=1.0)
        ours, theirs = errors(name, group)
        assert ours <= theirs + TOLERANCE

    @pytest.mark.parametrize("name", SMOOTH + CHOOSING)
    def test_float64_stays(self, name: str) -> None:
        group = cases.ordinary(name, (16, 20), models=3, dtype=torch.float64)
        ours = kernel_of(name, FLOAT32)[0](group)
        assert ours.dtype == torch.float64
        assert torch.allclose(ours, mergekit_result(name, group), rtol=1e-9, atol=1e-12)

    def test_every_kernel_is_covered(self) -> None:
        random = ("dare_linear", "dare_ties", "della", "della_linear")
        kernels = {m.name for m in methods() if m.kernel and in_mergekit(m.name)}
        assert kernels == {*CHOOSING, *SMOOTH, *random}
