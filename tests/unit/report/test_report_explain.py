"""explain: what a recipe makes, with or without models at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.large_models import RECIPE, large_plan, llama_70b, mixtral
from helpers.models import llama
from shardmerge.base.errors import UserError
from shardmerge.base.markdown import link
from shardmerge.methods.registry import REQUIRED, MergeMethod, methods
from shardmerge.package.card_usage import describe_methods
from shardmerge.recipe.naming import short_names, shortener
from shardmerge.recipe.settings import explain_options, load_settings
from shardmerge.report.explain import explain
from shardmerge.report.explain_view import explanation_text
from shardmerge.report.summary import summarize
from shardmerge.report.terminal import Terminal

SCRIPT = RECIPE.parents[2] / "scripts" / "explain.py"

MIX = """\
name: mix
merge_method: linear
parameters: {normalize: false}
models:
  - model: lab/a
    parameters:
      weight:
        - filter: FILTER
          value: [0, 1]
        - value: 0.5
  - model: lab/b
    parameters: {weight: 0.5}
"""


def write(folder: Any, filter_: Any = "up_proj", text: Any = MIX) -> str:
    path = folder / "mix.yaml"
    path.write_text(text.replace("FILTER", filter_))
    return str(path)


class TestBasis:
    def test_without_lock_and_models_a_llama_of_80_layers_is_assumed_and_said(
        self, tmp_path: Path
    ) -> None:
        found = explain(write(tmp_path), {})
        assert found.models["mix"].frame.layers == 80
        assert found.basis.startswith("Tensors assumed as in a Llama-like model of 80 layers: ")

    @pytest.mark.parametrize(
        ("filter_", "family"),
        [
            ("block_sparse_moe.experts", "Mixtral"),
            ("qkv_proj", "Phi-3"),
            ("q_proj.bias", "Qwen2"),
            ("q_norm", "Gemma 3"),
            ("dense_h_to_4h", "GPT-NeoX"),
            ("c_fc", "GPT-2"),
        ],
    )
    def test_an_architecture_that_has_the_filters_names_is_taken(
        self, tmp_path: Path, filter_: str, family: str
    ) -> None:
        found = explain(write(tmp_path, filter_), {}, 4)
        assert f"a {family}-like model of 4 layers" in found.basis

    def test_a_misspelt_filter_is_told_with_what_was_assumed(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="'up_porj' matches no tensor") as caught:
            explain(write(tmp_path, "up_porj"), {})
        assert "assumed as in a Llama-like model" in caught.value.hint
        assert "--sources" in caught.value.hint

    def test_a_filter_that_no_architecture_has_is_a_warning(self, tmp_path: Path) -> None:
        text = MIX.replace("- value: 0.5", "- {filter: q_norm, value: 1}\n        - value: 0.5")
        found = explain(write(tmp_path, "nowhere", text), {})
        assert found.basis.startswith("Tensors assumed as in a Gemma 3-like model")
        assert any("'nowhere' matches no tensor" in warning for warning in found.warnings)

    def test_a_lock_gives_the_tensors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        text = MIX.replace("FILTER", "experts.1.")
        large_plan(tmp_path, mixtral(3, experts=2), text, files=2)
        found = explain(str(tmp_path / "recipe.yaml"), {})
        assert found.basis == f"Tensors as in {tmp_path / 'recipe.lock.json'}."
        cell = found.models["mix"].cells["experts.*.w1", 2]
        assert (cell["lab/a"].low, cell["lab/a"].high) == (0.5, 1.0)

    def test_layers_win_over_a_lock(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        large_plan(tmp_path, llama_70b(3), MIX.replace("FILTER", "mlp"), files=2)
        found = explain(str(tmp_path / "recipe.yaml"), {}, 7)
        assert found.models["mix"].frame.layers == 7

    def test_a_folder_gives_the_tensors_and_lends_them_to_the_others(self, tmp_path: Path) -> None:
        path = write(tmp_path)
        llama(tmp_path / "model", 0, layers=5)
        before = sorted(tmp_path.rglob("*"))
        found = explain(path, {"lab/a": str(tmp_path / "model")})
        assert found.models["mix"].frame.layers == 5
        assert found.basis.endswith("lab/b: assumed to have those of lab/a.")
        assert sorted(tmp_path.rglob("*")) == before  # it writes nothing

    def test_a_folder_of_no_model_of_the_recipe_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="reads no model 'lab/c'"):
            explain(write(tmp_path), {"lab/c": "."})


class TestText:
    def test_layers_with_equal_values_share_a_row(self, tmp_path: Path) -> None:
        text = explanation_text(explain(write(tmp_path), {}, 3), Terminal(80))
        rows = [line.split() for line in text.split("\n")]
        assert ["A", "=", "a"] in rows
        assert ["0-2", "0.5", "█" * 12, "0.5", "█" * 12] in rows
        gradient = rows.index(["up_proj"])
        assert rows[gradient + 1] == ["layers", "A", "B"]
        assert rows[gradient + 2] == ["0", ".", "0.5", "█" * 6]
        assert rows[gradient + 3] == ["1", "0.5", "█" * 6, "0.5", "█" * 6]
        assert rows[gradient + 4] == ["2", "1", "█" * 12, "0.5", "█" * 6]

    @pytest.mark.parametrize("width", [60, 80, 120])
    def test_no_line_is_wider_than_the_terminal(self, width: int) -> None:
        text = explanation_text(explain(str(RECIPE), {}, 12), Terminal(width))
        assert all(len(line) <= width for line in text.split("\n") if "g * (" not in line)

    def test_every_final_document_is_explained(self, tmp_path: Path) -> None:
        text = MIX + "---\nname: other\nmerge_method: passthrough\nmodels: [{model: lab/a}]\n"
        found = explain(write(tmp_path, text=text), {}, 2)
        assert list(found.models) == ["mix", "other"]
        text = explanation_text(found, Terminal())
        assert "every tensor = a\n" in text
        # where one formula is true of all tensors, no table repeats it
        assert "layers" not in text.split("every tensor = a\n")[1]


class TestCommand:
    def run(self, *arguments: Any, **environment: Any) -> Any:
        return subprocess.run(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )

    def test_the_flagship_needs_nothing_heavy(self) -> None:
        """It takes a third of a second of one core; what could cost more is not imported."""
        code = (
            "import runpy, sys\n"
            f"sys.argv = ['explain.py', {str(RECIPE)!r}]\n"
            f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
            "heavy = {'torch', 'numpy', 'matplotlib', 'transformers', 'huggingface_hub'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        )
        folder = str(SCRIPT.parent)
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r})\n{code}"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert "72-79" in done.stdout

    def test_ascii_streams_get_ascii(self) -> None:
        done = self.run(RECIPE, PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
        assert "####" in done.stdout
        assert done.stdout.isascii()

    def test_mistakes_are_sentences(self, tmp_path: Path) -> None:
        for arguments in (("--layers", 0), ("--sources", "x"), ("--sources", "x/y=z")):
            done = self.run(RECIPE, *arguments)
            assert done.returncode == 1
            assert done.stderr.startswith("error: ")
            assert "Traceback" not in done.stderr

    def test_the_heatmap_is_written_on_demand(self, tmp_path: Path) -> None:
        done = self.run(RECIPE, "--layers", 4, "--plot", tmp_path / "x.svg")
        assert done.returncode == 0, done.stderr
        assert "<svg" in (tmp_path / "x.svg").read_text()

    def test_documents_norms_and_silence(self) -> None:
        donor = "_miquplus-midnight-70b"
        plain = self.run(RECIPE, "--layers", 4, "--stages", donor)
        assert "[norms-summed]" in plain.stdout
        silent = self.run(RECIPE, "--layers", 4, "--stages", donor, "--silence", "norms-summed")
        assert "warning" not in silent.stdout
        ratios = self.run(RECIPE, "--layers", 4, "--stages", donor, "--norm-merge", "geometric")
        assert "geometric_task_arithmetic(" in ratios.stdout
        assert "warning" not in ratios.stdout
        one = self.run(
            RECIPE, "--layers", 4, "--stages", donor, "--norm-merge", f"{donor}=geometric"
        )
        assert one.stdout == ratios.stdout

    def test_several_recipes(self, tmp_path: Path) -> None:
        done = self.run(RECIPE, write(tmp_path), "--layers", 4, "--plot", tmp_path / "x.svg")
        assert done.returncode == 0, done.stderr
        assert "\nmix\n" in done.stdout and "\nmiquplus-midnight-70b\n" in done.stdout
        assert len(list(tmp_path.glob("x-*.svg"))) == 2

    def test_a_method_that_is_no_sum_shows_its_parameters(self, tmp_path: Path) -> None:
        text = (
            "name: mix\nmerge_method: ties\nbase_model: lab/c\nparameters: {density: 0.5}\n"
            "models:\n"
            "  - {model: lab/a, parameters: {weight: [0, 1]}}\n"
            "  - {model: lab/b, parameters: {weight: 0.25}}\n"
        )
        done = self.run(write(tmp_path, text=text), "--layers", 3)
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.split("\n")]
        assert "= ties(base c, a, b); parameters: weight 0..1 (a) and 0.25 (b)," in done.stdout
        assert " * " not in done.stdout
        call = ["ties(base", "c,", "a,", "b)"]
        assert ["A", "=", *call] in rows
        assert ["B", "=", *call[:-1], "b):", "weight", "of", "a"] in rows
        assert ["C", "=", *call[:-1], "b):", "weight", "of", "b"] in rows
        bar = "█" * 12
        assert ["0", "1", bar, "0", "0.25", "███"] in rows
        assert ["1", "1", bar, "0.5", "█" * 6, "0.25", "███"] in rows
        assert ["2", "1", bar, "1", bar, "0.25", "███"] in rows


def recipe_of(method: MergeMethod) -> str:
    """Return a recipe of as few models as a method takes, with what it must be told."""
    inputs = method.inputs
    count = max(inputs.minimum, (inputs.minimum_models or 0) + 1, 2)
    most = inputs.maximum or (inputs.maximum_models or count) + (inputs.base == "required")
    count = min(count, most)
    names = [f"lab/m{i}" for i in range(count)]
    with_base = inputs.base == "required"
    must = [p for p in method.parameters if p.default is REQUIRED]
    values = {p.name: p.samples[0] if p.type is str else 0.5 for p in must}
    own = {p.name: values[p.name] for p in must if p.scope != "shared"}
    document = {
        "name": "made",
        "merge_method": method.name,
        "parameters": {p.name: values[p.name] for p in must if p.scope == "shared"},
        "models": [{"model": name, "parameters": own} for name in names[with_base:]],
    }
    if with_base:
        document["base_model"] = names[0]
        if method.name in ("slerp", "nearswap", "arcee_fusion"):
            document["models"].insert(0, {"model": names[0]})
    return yaml.safe_dump(document)


class TestEveryMethod:
    """Only sums are told by coefficients, all other methods by their parameters."""

    @pytest.mark.parametrize("method", methods(), ids=lambda m: m.name)
    def test_is_told_as_what_it_is(self, method: MergeMethod, tmp_path: Path) -> None:
        found = explain(str(write(tmp_path, text=recipe_of(method))), {}, layers=1)
        (model,) = found.models.values()
        line, *others = summarize(model, shortener(short_names(found.sources)))
        formula, _, told = line.formula.partition("; parameters: ")
        if method.measure:
            formulas = [line.formula, *(other.formula for other in others)]
            assert any(one.startswith(f"{method.measure.step}(") for one in formulas)
            return
        assert not others
        if method.linear:
            assert f"{method.name}(" not in line.formula and not told
            return
        assert formula.startswith(f"{method.name}(") and formula.endswith(")")
        assert " * " not in formula and " + " not in formula
        wanted = {
            p.name for p in method.parameters if not (p.unused or p.idle) and p.default is not None
        }
        assert {words.split()[0] for words in told.split(", ") if words} == wanted

    def test_card_names_what_it_does_and_its_reference(self) -> None:
        text = describe_methods(method.name for method in methods())
        assert len(text.splitlines()) == len(methods())
        for method in methods():
            assert f"{method.title} (`{method.name}`): {method.summary}" in text
            assert link("reference", method.reference) in text


class TestTarget:
    def test_options_of_a_configuration(self) -> None:
        settings = load_settings(
            {"recipes": ["a b.yaml"], "norm_merge": {"x": "geometric"}, "silence": ["fp16-range"]}
        )
        assert explain_options(settings) == [
            *("a b.yaml", "--stages", "final", "--norm-merge", "x=geometric"),
            *("--silence", "fp16-range"),
        ]
