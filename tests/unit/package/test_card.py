"""The model card: front matter that the Hub reads, and text that no name can break out of."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import add_scores
import write_card
from helpers.built_model import RECIPE, build_model, changed
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.markdown import block, code, link, table
from shardmerge.benchmark import scores
from shardmerge.package.card import base_models, make_card
from shardmerge.package.card_picture import remove_picture, shows_picture
from shardmerge.package.card_scores import receipt
from shardmerge.plan.description import BuildDescription
from shardmerge.plan.plan import NO_PLAN, Build
from shardmerge.recipe.settings import load_settings
from shardmerge.run.targets import Targets

HOSTILE = "x`|<b> --- # y: [z](w) {a} \"'"


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("card"))
        yield build_model().description


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("\n---\n")[0])


def body(text: str) -> str:
    return ModelCard(text).text


def html(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def section(text: str, title: str) -> str:
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def results(model: str, value: float) -> dict:
    """Return a benchmark result as lm-eval's jobs leave it."""
    return {
        "model_name": model,
        "requested_task": "copy",
        "results": {"copy": {"acc,none": value, "acc_stderr,none": 0.01}},
        "n-shot": {"copy": 0},
        "higher_is_better": {"copy": {"acc": True}},
        "lm_eval_version": "0.4.13",
        "config": {"limit": None, "dtype": "float32", "random_seed": 0},
    }


class TestFrontMatter:
    def test_as_the_hub_reads_it(self, description: BuildDescription) -> None:
        settings = {"license": "llama2", "tags": ["merge", "tiny"]}
        assert front_matter(make_card(description, settings)) == {
            "base_model": ["lab/long", "lab/base", "lab/tuned"],
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "license": "llama2",
            "tags": ["mergekit", "merge", "shardmerge", "tiny"],
            "base_model_relation": "merge",
        }

    def test_only_names_of_the_hub_are_base_models(self, description: BuildDescription) -> None:
        sources = {
            "lab/long": {"kind": "local", "files": {}},
            "/srv/a/model": {"kind": "local", "files": {}},
            "some/longer/folder": {"kind": "local", "files": {}},
            "lab/fast@v1": {"kind": "hub", "repo": "lab/fast", "commit": "0" * 40, "files": {}},
        }
        found = base_models(changed(description, sources=sources, reference="lab/fast@v1"))
        assert found == ["lab/fast", "lab/long"]

    def test_benchmarks(self, description: BuildDescription) -> None:
        table = scores.score_table([results("merged", 0.75), results("long", 0.5)])
        text = make_card(description, {}, table)
        data = ModelCard(text).data
        assert [r.metric_value for r in data.eval_results] == [0.75]
        assert data.model_name == "merged"
        assert "| merged | 0.750 ± 0.010 |" in section(text, "Benchmarks")

    def test_benchmarks_of_others_only(self, description: BuildDescription) -> None:
        table = scores.score_table([results("long", 0.5)])
        text = make_card(description, {}, table)
        assert "model-index" not in front_matter(text)
        assert "| long | 0.500 ± 0.010 |" in section(text, "Benchmarks")

    def test_license_is_never_missing(self, description: BuildDescription) -> None:
        assert front_matter(make_card(description, {}))["license"] == "other"


class TestBody:
    def test_sections(self, description: BuildDescription) -> None:
        text = make_card(description, {"description": "Why.", "prompt_format": "`{prompt}`"})
        titles = re.findall("^#+ (.*)", body(text).split("```")[0], flags=re.MULTILINE)
        assert titles == ["merged", "Prompt format", "How to use it"]
        titles = re.findall("^## (.*)", body(text), flags=re.MULTILINE)
        assert titles[2:] == ["How it was built", "Sources", "Recipe"]
        assert section(text, "Prompt format").strip() == "`{prompt}`"
        assert body(text).index("Why.") < body(text).index("## Prompt format")

    def test_usage_is_of_text_models(self, description: BuildDescription) -> None:
        text = section(make_card(description, {}), "How to use it")
        assert 'from_pretrained(name, dtype="float16", device_map="auto")' in text
        assert "vllm serve" in text
        other = make_card(description, {"pipeline_tag": "image-text-to-text"})
        assert "## How to use it" not in other
        assert front_matter(other)["pipeline_tag"] == "image-text-to-text"

    def test_one_formula_is_of_every_tensor(self, description: BuildDescription) -> None:
        terms = {name: [["lab/long", 0.5]] for name in description.coefficients}
        text = make_card(replace(description, coefficients=terms), {})
        assert "- every tensor: `0.5 * long`" in text
        assert "everything else" not in text

    def test_parameters_of_a_method_that_is_no_sum(self, description: BuildDescription) -> None:
        call = "ties(base lab/base, lab/tuned, lab/long)"
        terms = {}
        for layer, name in enumerate(description.coefficients):
            rows = [[call, 1.0], [f"{call}: weight of lab/tuned", 0.1 * layer]]
            terms[name] = [*rows, [f"{call}: weight of lab/long", 0.5], [f"{call}: normalize", 1.0]]
        text = section(make_card(replace(description, coefficients=terms), {}), "How it was built")
        assert "`ties(base base, tuned, long)`, parameters: weight" in text
        assert "and 0.5 (long), normalize true" in text
        assert "\nParameter `weight` of `tuned` in `ties(base base, tuned, long)`:\n" in text
        assert "Coefficient of" not in text

    def test_recipe_as_written(self, description: BuildDescription) -> None:
        block = re.search(r"```yaml\n(.*?)\n```\n", make_card(description, {}), re.DOTALL)
        assert block[1] == RECIPE.strip()

    def test_coefficients(self, description: BuildDescription) -> None:
        text = section(make_card(description, {}), "How it was built")
        assert "from 3 models in 2 stages: `task_arithmetic` (`donor`), then `linear`" in text
        assert "28 of 30 tensors are those of `long`; the other 2 are computed:" in text
        rows = re.findall(r"^\| (\d\S*) \| (.*?) \|$", text, flags=re.MULTILINE)
        # donor = base + 0.7 (tuned - base) + (long - base), weighed by 0, 0.75 and 1
        tuned = section_of_term(text, "tuned - base")
        assert tuned == [("0", "0"), ("1", "0.525"), ("2", "0.7")]
        assert len(rows) >= 3

    def test_sources_of_the_hub_are_links(self, description: BuildDescription) -> None:
        commit = "0123456789abcdef" * 2 + "01234567"
        source = {"kind": "hub", "repo": "lab/fast", "revision": "v|1", "commit": commit}
        sources = description.to_json()["sources"] | {"lab/fast@v|1": source | {"files": {}}}
        text = section(make_card(changed(description, sources=sources), {}), "Sources")
        assert "[`lab/fast`](https://huggingface.co/lab/fast)" in text
        assert f"[`{commit[:12]}`](https://huggingface.co/lab/fast/tree/{commit})" in text
        assert r"`v\|1`" in text
        assert "local folder" in text

    def test_folders_of_this_machine_are_not_told(self, description: BuildDescription) -> None:
        told = json.dumps(description.to_json()).replace("lab/long", "/srv/someone/long")
        rows = [row | {"text": "as: written"} for row in json.loads(told)["stages"]]
        text = make_card(changed(description, **json.loads(told) | {"stages": rows}), {})
        assert "someone" not in text
        assert "`long`" in section(text, "Sources")

    def test_one_source_copied(self, description: BuildDescription) -> None:
        terms = {name: [["lab/long", 1.0]] for name in description.coefficients}
        text = make_card(changed(description, coefficients=terms), {})
        assert "Every tensor is that of `long`." in text

    def test_layers_with_equal_coefficients_share_a_row(
        self, description: BuildDescription
    ) -> None:
        terms = {}
        for layer in range(80):
            for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"):
                share = 0.5 if 20 <= layer < 60 and "q_proj" not in module else 0.0
                rows = [["lab/long", 1.0]] + ([["lab/tuned - lab/base", share]] if share else [])
                terms[f"model.layers.{layer}.{module}.weight"] = rows
        terms["lm_head.weight"] = [["lab/long", 1.0], ["lab/tuned - lab/base", 0.25]]
        text = section(make_card(changed(description, coefficients=terms), {}), "How it was built")
        assert section_of_term(text, "tuned - base") == [
            ("0-19", "0"),
            ("20-59", "0.5"),
            ("60-79", "0"),
        ]
        assert "| layers | `v_proj`, `up_proj` |" in text
        assert "Outside the layers: `lm_head` 0.25." in text

    def test_same_text_every_time(self, description: BuildDescription) -> None:
        assert make_card(description, {}) == make_card(copy.deepcopy(description), {})


def section_of_term(text: str, term: str) -> list[tuple[str, str]]:
    """Return the rows of a term's table of coefficients: layers, and the first column."""
    after = text.split(f"Coefficient of `{term}`")[1].split("Coefficient of")[0]
    return re.findall(r"^\| (\d[\d-]*) \| ([^ ]*) \|", after, flags=re.MULTILINE)


class TestHostileNames:
    @pytest.fixture
    def text(self, description: BuildDescription) -> Any:
        data = copy.deepcopy(description.to_json())
        data["sources"][HOSTILE] = {"kind": "local", "files": {}}
        repo = {"kind": "hub", "repo": HOSTILE, "revision": HOSTILE, "commit": HOSTILE}
        data["sources"]["evil/hub"] = repo | {"files": {}}
        data["stages"][0] |= {"text": f"a: |\n  ```\n  ---\n  {HOSTILE}\n````\n# out\n"}
        data["stages"][0] |= {"method": HOSTILE, "name": HOSTILE}
        first = next(iter(data["coefficients"]))
        data["coefficients"][first] = [[HOSTILE, 0.5], [f"{HOSTILE} - lab/base", 0.25]]
        data["coefficients"][HOSTILE] = [["lab/long", 1.0]]
        tags = [HOSTILE, "a: b", "- c", "#d", "{e", "yes", "1"]
        return make_card(changed(description, **data), {"license": HOSTILE, "tags": tags})

    def test_front_matter(self, text: str) -> None:
        data = ModelCard(text).data.to_dict()
        assert data["license"] == HOSTILE
        assert data["tags"][3:] == [HOSTILE, "a: b", "- c", "#d", "{e", "yes", "1"]
        assert HOSTILE in data["base_model"]
        assert data["base_model_relation"] == "merge"
        assert body(text).lstrip().startswith("# merged\n")

    def test_markdown(self, text: str) -> None:
        """A Markdown parser sees our headings and cells only, and no HTML of theirs."""
        rendered = html(body(text))
        headings = re.findall("<h[1-6]>(.*?)</h", rendered)
        assert headings == ["merged", "How to use it", "How it was built", "Sources", "Recipe"]
        assert "<b>" not in rendered
        assert "<hr" not in rendered
        assert rendered.count("<pre>") == 3
        hosts = re.findall('href="([^"]*)"', rendered)
        assert all(
            host.startswith(("https://huggingface.co/", "https://arxiv.org/")) for host in hosts
        )

    def test_table_cells(self, text: str) -> None:
        rendered = html(section(text, "Sources"))
        rows = re.findall("<tr>(.*?)</tr>", rendered, re.DOTALL)
        assert {len(re.findall("<t[dh]", row)) for row in rows} == {4}


class TestMarkdown:
    @pytest.mark.parametrize("text", ["a", "`", "a``b", "`a`", " a\nb ", "<i>", "*a*", ""])
    def test_code(self, text: str) -> None:
        import html as escaping

        shown = re.findall("<code>(.*?)</code>", html(code(text)), re.DOTALL)
        wanted = " ".join(text.split())
        assert [escaping.unescape(s).strip() for s in shown] == ([wanted] if wanted else [""])

    def test_block(self) -> None:
        rendered = html(block("a\n```\n<b>\n`````\n", "yaml") + "\nafter")
        assert rendered.count("<pre>") == 1
        assert "<p>after</p>" in rendered

    def test_link(self) -> None:
        assert link("a", "https://h/a b)c") == "[a](https://h/a%20b%29c)"

    def test_table(self) -> None:
        assert table(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |\n"


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, script: Any, *arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()

    def write(self, monkeypatch: pytest.MonkeyPatch, build: Any, license: Any = "mit") -> None:
        arguments = ["--card", json.dumps({"license": license}), "--receipt", "card.json"]
        self.run(monkeypatch, write_card, "--build", build, *arguments, "--output", "README.md")

    def test_benchmarks_come_later_and_stay(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The checksums are right at every moment; a card that is written anew has its results."""
        monkeypatch.chdir(tmp_path)
        build = build_model().build.digest
        self.write(monkeypatch, build)
        assert "## Benchmarks" not in Path("README.md").read_text()
        Path("SHA256SUMS").write_text(f"{sha256_of('README.md')}  README.md\n")
        for name in ("merged", "long"):
            Path(f"{name}.json").write_text(json.dumps(results(name, 0.5)))
        arguments = ["--build", build, "--card", '{"license": "mit"}', "--readme", "README.md"]
        arguments += ["--results", "merged.json", "long.json", "--output", "card.json"]
        self.run(monkeypatch, add_scores, *arguments)
        first = Path("README.md").read_text()
        card = ModelCard(first)
        assert card.data.license == "mit"
        assert len(card.data.eval_results) == 1
        assert Path("SHA256SUMS").read_text() == f"{sha256_of('README.md')}  README.md\n"
        self.write(monkeypatch, build)
        assert Path("README.md").read_text() == first
        self.write(monkeypatch, build, license="other")
        assert Path("README.md").read_text() == first.replace("license: mit", "license: other")

    def test_results_of_another_build_do_not_stay(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        build = build_model().build.digest
        Path("merged.json").write_text(json.dumps(results("merged", 0.5)))
        for told in (
            receipt("0" * 64, ["merged.json"]),
            receipt(build, ["merged.json"]) | {"results": [["merged.json", "0" * 64]]},
            receipt(build, ["merged.json"]) | {"results": [["gone.json", "0" * 64]]},
            {"build": build, "results": 1},
        ):
            Path("card.json").write_text(json.dumps(told))
            self.write(monkeypatch, build)
            assert "## Benchmarks" not in Path("README.md").read_text()

    def test_broken_settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["--build", "x", "--card", "{", "--output", tmp_path / "R.md"]
        with pytest.raises(UserError, match="not JSON"):
            self.run(monkeypatch, write_card, *arguments)


class TestPicture:
    def test_is_shown_where_tensors_differ_unless_turned_off(self, description: Any) -> None:
        image = "](coefficients.svg)"
        assert image in make_card(description, {})
        assert image not in make_card(description, {"picture": False})
        same = [["x", 0.5], ["y", 0.5]]
        alike = changed(description, coefficients=dict.fromkeys(description.coefficients, same))
        assert image not in make_card(alike, {})

    def test_the_plan_asks_for_what_the_card_shows(self, description: BuildDescription) -> None:
        plan = replace(NO_PLAN, builds={"a": Build("a", "digest", (), {}, varied=True)})
        for settings in ({}, {"picture": False}, {"models": {"a": {"picture": False}}}):
            targets = Targets(load_settings({"recipes": ["r"], "card": settings}), plan)
            shown = shows_picture(description, json.loads(targets.card("a")))
            assert targets.picture("a") == ["results/a/model/coefficients.svg"] * shown

    def test_an_earlier_one_goes_if_it_is_ours(self, tmp_path: Path) -> None:
        picture = tmp_path / "coefficients.svg"
        picture.write_text("mine")
        remove_picture(tmp_path)
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {picture.name}\n")
        remove_picture(tmp_path)
        assert picture.exists()
        (tmp_path / "SHA256SUMS").write_text(f"{sha256_of(picture)}  {picture.name}\n")
        remove_picture(tmp_path)
        assert not picture.exists()
