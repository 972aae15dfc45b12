"""The declarations of the merge methods, and the documentation made from them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT
from shardmerge.methods.registry import (
    REQUIRED,
    MergeMethod,
    Parameter,
    Request,
    Workspace,
    in_mergekit,
    kernel_of,
    merge_method,
    method,
    methods,
    result_dtype,
    step_kernel,
    workspace_elements,
)
from shardmerge.recipe.parameters import checked_value
from tools.docs.methods import methods_markdown

NUMERICS = MERGEKIT
ROOT = Path(__file__).parents[3]


def request_for(name: str, **values: object) -> Request:
    """Return a request with two models after the base."""
    shared, per_input = {}, {}
    for parameter in method(name).parameters:
        value = values.get(parameter.name, parameter.default)
        if parameter.scope == "shared":
            shared[parameter.name] = value
        else:
            per_input[parameter.name] = (None, *value) if isinstance(value, tuple) else (value,) * 3
    return Request(("base", "first", "second"), 0, shared, per_input)


ALL_PARAMETERS = [(m, p) for m in methods() for p in m.parameters]


class TestRegistry:
    def test_planning_imports_no_torch(self) -> None:
        code = (
            "import sys; from tools.docs import methods as methods_doc\n"
            "from shardmerge.methods import registry; registry.methods()\n"
            "methods_doc.methods_markdown(); print('torch' in sys.modules)"
        )
        command = [sys.executable, "-c", code]
        environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert out.stdout == "False\n"

    def test_a_name_is_taken_once(self) -> None:
        with pytest.raises(ValueError, match="registered twice"):
            merge_method("ties", title="", reference="")(lambda group: group)

    def test_a_kernel_and_steps_are_attached_once(self) -> None:
        linear = method("linear")
        with pytest.raises(ValueError, match="kernel 'linear' is registered twice"):
            linear.mergekit_kernel()(lambda group: group)
        with pytest.raises(ValueError, match="steps of 'linear' are registered twice"):
            linear.mergekit_steps(lambda group, writer: 0)

    def test_a_step_is_no_method(self) -> None:
        with pytest.raises(ValueError, match="step 'slerp' is registered twice"):
            step_kernel("slerp", FLOAT32)(lambda group: group)
        with pytest.raises(ValueError, match="'dora' is registered twice"):
            merge_method("dora", title="", reference="")(lambda group: group)

    @pytest.mark.parametrize(
        ("declared", "parameter"), ALL_PARAMETERS, ids=lambda v: getattr(v, "name", None)
    )
    def test_samples_are_in_bounds(self, declared: MergeMethod, parameter: Parameter) -> None:
        assert len(parameter.samples) > 1 or parameter.type is not bool
        for value in parameter.samples:
            assert value is None or checked_value(value, parameter, "") == value

    def test_an_unknown_name_suggests(self) -> None:
        with pytest.raises(UserError, match="Did you mean 'dare_ties'"):
            method("dares_ties")

    def test_a_linear_method_has_no_float32_kernel(self) -> None:
        with pytest.raises(UserError, match="is linear"):
            kernel_of("linear", FLOAT32)

    def test_ours_has_no_mergekit_kernel(self) -> None:
        assert not in_mergekit("geometric_task_arithmetic")
        with pytest.raises(UserError, match="not one of mergekit"):
            kernel_of("geometric_task_arithmetic", NUMERICS)

    @pytest.mark.parametrize("declared", methods(), ids=lambda m: m.name)
    def test_declarations(self, declared: MergeMethod) -> None:
        assert (declared.linear is None) != (declared.kernel is None)
        assert declared.title and declared.summary and declared.reference.startswith("https://")
        assert len({p.name for p in declared.parameters}) == len(declared.parameters)
        for parameter in declared.parameters:
            assert parameter.description.endswith(".")
            if parameter.default not in (REQUIRED, None):
                assert type(parameter.default) is parameter.type
                low, high = parameter.minimum, parameter.maximum
                assert low is None or low <= parameter.default
                assert high is None or parameter.default <= high

    def test_seed_where_chance_decides(self) -> None:
        seeded = {m.name for m in methods() if m.parameter("seed")}
        assert seeded == {m.name for m in methods() if not m.deterministic}
        assert seeded == {"dare_linear", "dare_ties", "della", "della_linear"}

    def test_what_mergekit_promotes(self) -> None:
        promoted = {
            m.name
            for m in methods()
            if in_mergekit(m.name) and result_dtype(m.name, NUMERICS, "F16") == "F32"
        }
        assert promoted == {"arcee_fusion", "ramplus_tl"}
        assert result_dtype("ramplus_tl", NUMERICS, "F64") == "F64"
        assert result_dtype("ramplus_tl", "float32", "F32") == "F32"

    def test_workspace_counts_inputs_rows_and_blocks(self) -> None:
        tensor, space = 4096 * 4096, Workspace(per_input=0.25, rows=12.0, blocks=48.0)
        two, three = (space.elements((4096, 4096), inputs) for inputs in (2, 3))
        assert three - two == tensor // 4
        assert space.elements((tensor,), 2) - two == 12 * (tensor - 4096)
        assert workspace_elements("slerp", FLOAT32, (8192, 28672), 2) < 10_000_000


class TestChecks:
    @pytest.mark.parametrize("name", ["della", "della_linear"])
    @pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.5, 0.6), (0.9, 0.15)])
    def test_della_probabilities(self, name: str, density: float, epsilon: float) -> None:
        request = request_for(name, density=(1.0, density), epsilon=(0.9, epsilon), weight=(1, 1))
        with pytest.raises(UserError, match=r"of second.*\n.*epsilon below"):
            method(name).check(request)

    @pytest.mark.parametrize(("density", "epsilon"), [(0.0, 0.5), (1.0, 0.5), (0.5, 0.49)])
    def test_della_accepts(self, density: float, epsilon: float) -> None:
        pairs = {"density": (density, density), "epsilon": (epsilon, epsilon), "weight": (1, 1)}
        method("della").check(request_for("della", **pairs))

    def test_multislerp_weights(self) -> None:
        check = method("multislerp").check
        with pytest.raises(UserError, match="sum to 0"):
            check(request_for("multislerp", weight=(1.0, -1.0)))
        check(request_for("multislerp", weight=(1.0, -1.0), normalize_weights=False))
        check(request_for("multislerp", weight=(1.0, -0.5)))


class TestValues:
    """A value of another type or out of bounds is told in a sentence with file and line."""

    def refused(self, declared: Any, parameter: Any, value: object) -> str:
        with pytest.raises(UserError) as caught:
            checked_value(value, parameter, "r.yaml:7")
        text = str(caught.value)
        assert text.startswith("r.yaml:7: ") and repr(parameter.name) in text
        return text

    @pytest.mark.parametrize(
        ("declared", "parameter"), ALL_PARAMETERS, ids=lambda v: getattr(v, "name", None)
    )
    def test_wrong_types_and_bounds(self, declared: MergeMethod, parameter: Parameter) -> None:
        wrong: list[object] = ["much"] if parameter.type is not str else [1]
        if parameter.type in (int, float):
            wrong += [float("nan"), float("inf")]
        if parameter.type is int:
            wrong.append(1.5)
        if parameter.type is bool:
            wrong.append(2)
        for value in wrong:
            self.refused(declared, parameter, value)
        if parameter.minimum is not None and "minimum" not in parameter.clamped:
            told = self.refused(declared, parameter, parameter.minimum - 1)
            assert f"{parameter.minimum}" in told
            assert checked_value(parameter.minimum, parameter, "") == parameter.minimum
        if parameter.maximum is not None and "maximum" not in parameter.clamped:
            assert f"{parameter.maximum}" in self.refused(
                declared, parameter, parameter.maximum + 1
            )
            assert checked_value(parameter.maximum, parameter, "") == parameter.maximum

    def test_shares_have_bounds(self) -> None:
        """What is a share of something lies between 0 and 1."""
        for declared, parameter in ALL_PARAMETERS:
            if parameter.name in ("density", "gamma", "select_topk") and not parameter.unused:
                assert (parameter.minimum, parameter.maximum) == (0, 1), declared.name


class TestDocumentation:
    def test_no_drift(self) -> None:
        assert (ROOT / "docs" / "methods.md").read_text() == methods_markdown(), "run tools/docs"

    def test_every_method_and_parameter(self) -> None:
        text = methods_markdown()
        for declared in methods():
            section = text.split(f"\n## {declared.name}\n")[1].split("\n## ")[0]
            assert declared.reference in section
            for parameter in declared.parameters:
                assert f"| `{parameter.name}` |" in section
                assert parameter.description in section
        assert "``" not in text
