"""The documentation names what exists and nothing else, and its generated parts are current."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import pytest

from helpers.flagship_70b import flagship_plan, llama_7b, llama_70b, plan_of
from shardmerge.algebra import expression
from shardmerge.recipe.document import DOCUMENT_KEYS
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.recipe.settings import SCHEMA, load_settings
from shardmerge.report.plan_facts import plan_totals
from shardmerge.sweep.outcome import report_lines
from tools.docs.__main__ import main as write_docs
from tools.docs.config import config_keys, config_markdown, with_tables
from tools.docs.methods import methods_markdown

REPO = Path(__file__).parents[3]
_PATTERNS = ("*.md", "config/*.md", "resources/demo/*.md", "docs/**/*.md")
PAGES = sorted(page for pattern in _PATTERNS for page in REPO.glob(pattern))
README = (REPO / "README.md").read_text(encoding="utf-8")
MANUAL = (REPO / "config" / "README.md").read_text(encoding="utf-8")

KEYS = {key for key, _ in config_keys()}
_ROW = re.compile(r"^\| (.+?) \| (.+) \|$", re.MULTILINE)
#: What a page may show of a Snakemake profile.
PROFILE_KEYS = {"set-resources", "set-threads", "default-resources", "executor", "jobs"}


def _code(text: str) -> str:
    """Return what a Markdown text has in code spans and blocks, one piece a line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    indented = re.findall(r"^ {4}(\w.*)$", text, re.MULTILINE)
    return "\n".join([*blocks, *spans, *indented])


def _yaml_blocks(text: str) -> list[str]:
    """Return the blocks of a page that are YAML, blocks within lists too."""
    return re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


class TestSchema:
    @pytest.mark.parametrize(("key", "rule"), config_keys(), ids=[k for k, _ in config_keys()])
    def test_key_is_described(self, key: str, rule: dict[str, Any]) -> None:
        assert rule["description"].endswith(".")
        assert "default" in rule

    def test_objects_refuse_unknown_keys(self) -> None:
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
        tables = [schema, *(rule for _, rule in config_keys() if "properties" in rule)]
        assert all(table["additionalProperties"] is False for table in tables)

    def test_defaults_are_valid(self) -> None:
        assert load_settings({})["recipes"] == ["config/recipes/miquplus-midnight-tiny.yaml"]


class TestGenerated:
    def test_config_manual(self) -> None:
        assert with_tables(MANUAL) == MANUAL, "run `make docs`"

    def test_methods(self) -> None:
        text = (REPO / "docs" / "methods.md").read_text(encoding="utf-8")
        assert text == methods_markdown(), "run `make docs`"

    def test_make_docs_changes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manual = tmp_path / "README.md"
        manual.write_text(MANUAL, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["docs", f"--folder={tmp_path}", f"--config={manual}"])
        write_docs()
        assert manual.read_text(encoding="utf-8") == MANUAL
        for name in ("methods.md", "flagship-coefficients.svg", "sweep.svg", "search.svg"):
            kept = (REPO / "docs" / name).read_bytes()
            assert (tmp_path / name).read_bytes() == kept, f"{name}: run `make docs`"

    def test_search_tells_what_was_measured(self) -> None:
        found = json.loads((REPO / "docs" / "search.json").read_text(encoding="utf-8"))
        page = (REPO / "docs" / "howto" / "search.md").read_text(encoding="utf-8")
        assert "\n".join(report_lines(found["table"])) in page
        metrics = {
            (found["table"]["reported"][cell["model"]], cell["label"]): cell["value"]
            for cell in found["table"]["report"]["cells"]
        }
        best, first = found["table"]["best"][0], found["points"]["trials"][0]["name"]
        assert metrics[best, "open_B/perplexity"] < metrics[first, "open_B/perplexity"]
        for label in ("open_B/acc", "open_C/acc", "open_copy/acc"):
            assert metrics[best, label] >= metrics[first, label]
        verdicts = {row["label"]: row["verdict"] for row in found["table"]["report"]["comparisons"]}
        assert verdicts["open_B/perplexity"] == verdicts["open_B/acc"] == "better"
        assert "worse" not in verdicts.values()

    def test_table_has_every_key_once(self) -> None:
        found = re.findall(r"^\| `([\w.]+)` \|", config_markdown(), re.MULTILINE)
        assert found == [key for key, _ in config_keys()]

    def test_missing_marker(self) -> None:
        with pytest.raises(ValueError, match="marker"):
            with_tables("no table here")


class TestNames:
    def test_document_keys(self) -> None:
        """Every key of a recipe is either explained or said to be refused."""
        recipes = MANUAL.partition("## Recipes")[2].partition("## Sources")[0]
        for key in DOCUMENT_KEYS:
            assert re.search(rf"`{key}[`:]", recipes), key

    def test_targets(self) -> None:
        rules = "".join(p.read_text() for p in [REPO / "Snakefile", *REPO.glob("rules/*.smk")])
        plain = re.findall(r"^rule (all|[a-z]+):$", rules, re.MULTILINE)
        table = README.partition("| Target |")[2].partition("\n\n")[0]
        assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(plain)

    def test_make_targets(self) -> None:
        makefile = (REPO / "Makefile").read_text()
        declared = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
        named = re.findall(r"\bmake ([a-z][\w-]*)", _code(README))
        assert set(named) == set(declared)

    def test_make_targets_in_other_pages(self) -> None:
        makefile = (REPO / "Makefile").read_text()
        declared = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
        for page in PAGES:
            for name in re.findall(r"\bmake ([a-z][\w-]*)", _code(page.read_text())):
                assert name in declared, (page.name, name)

    @pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
    def test_yaml_keys_exist(self, page: Path) -> None:
        """The configurations that the pages show pass the schema, parts of recipes the reader."""
        import yaml

        for block in _yaml_blocks(page.read_text(encoding="utf-8")):
            if any(key in block for key in ("merge_method", "experts:", "_expert:")):
                parse_recipe(block, page.name)
                continue
            if set(yaml.safe_load(block)) <= {*DOCUMENT_KEYS} - {"merge_method", "models"}:
                parse_recipe(f"merge_method: linear\nmodels: [{{model: o/a}}]\n{block}", page.name)
                continue
            if not set(shown := yaml.safe_load(block)) <= KEYS and set(shown) <= PROFILE_KEYS:
                continue
            settings = load_settings(shown)
            for recipe in settings["recipes"]:
                assert (REPO / recipe).is_file(), recipe

    @pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
    def test_files_exist(self, page: Path) -> None:
        """What is named as a file of the repository is one."""
        pattern = r"(?:scripts|tests|rules|docs|config|profiles|envs|resources/demo)/[\w./-]+"
        for path in re.findall(rf"(?<![\w/]){pattern}", _code(page.read_text())):
            if path.isupper() or "NAME" in path or "ROOM" in path:
                continue
            assert (REPO / path.rstrip("./")).exists(), path

    def test_tests_of_differences_exist(self) -> None:
        page = (REPO / "docs" / "numerics.md").read_text()
        text = page.partition("## Deliberate differences")[2]
        source = "".join(p.read_text() for p in (REPO / "tests" / "parity").glob("test_*.py"))
        rows = re.findall(r"^\|.*\| `(Test\w+)(?:::(\w+))?` \|$", text, re.MULTILINE)
        assert len(rows) == text.count("\n| ") - 2  # all but heading and line
        for group, name in rows:
            body = source.partition(f"class {group}:")[2].partition("\nclass ")[0]
            assert f"def {name or 'test_'}" in body, group

    def test_tests_of_mergekits_features_exist(self) -> None:
        text = (REPO / "docs" / "mergekit.md").read_text()
        folder = REPO / "tests" / "parity"
        for name in set(re.findall(r"`(?:tests/parity/)?(test_\w+\.py)`", text)):
            assert (folder / name).is_file(), name
        found = "".join(p.read_text() for p in folder.glob("test_*.py"))
        for name in re.findall(r"`(Test\w+)`", text):
            assert f"class {name}:" in found, name


class TestDesign:
    """The map of the library is true."""

    TEXT = "\n".join((REPO / "docs" / p).read_text() for p in ("design.md", "develop/engine.md"))
    ROOMS = sorted(p.parent.name for p in (REPO / "scripts" / "shardmerge").glob("*/__init__.py"))

    def test_every_room_is_listed(self) -> None:
        table = self.TEXT.partition("| Room |")[2].partition("\n\n")[0]
        assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == self.ROOMS

    def test_names_exist(self) -> None:
        rooms = "|".join(self.ROOMS)
        names = re.findall(rf"`((?:{rooms})(?:\.\w+)+)`", self.TEXT)
        assert len(names) > 40
        for name in names:
            resolve_name(f"shardmerge.{name}")

    @pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
    def test_modules_exist(self, page: Path) -> None:
        pattern = rf"(?<![\w/])(?:{'|'.join(self.ROOMS)})/[\w/]+\.py"
        for path in re.findall(pattern, _code(page.read_text(encoding="utf-8"))):
            assert (REPO / "scripts" / "shardmerge" / path).is_file(), path

    def test_every_kind_of_node_is_listed(self) -> None:
        table = self.TEXT.partition("| Node |")[2].partition("\n\n")[0]
        nodes = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert nodes == [node.__name__ for node in get_args(expression.Expression)]


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
    def test_resolve(self, page: Path) -> None:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if link.startswith(("https://", "http://")):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            assert target.exists(), link
            if anchor:
                assert anchor in _anchors(target.read_text(encoding="utf-8")), link


class TestFigures:
    """The README's figures at 7 and 70 billion parameters are what the planner finds."""

    @pytest.fixture(scope="class")
    def recipe(self) -> Any:
        return next(b for b in _yaml_blocks(README) if "merge_method" in b)

    @pytest.fixture(scope="class")
    def plans(self, recipe: str) -> tuple[Any, ...]:
        return plan_of(recipe, llama_7b()), flagship_plan()

    @pytest.fixture(scope="class")
    def rows(self) -> dict[Any, Any]:
        table = README.partition("| 7B, two fine-tunes |")[2].partition("\n\n")[0]
        return {name: rest.split(" | ") for name, rest in _ROW.findall(table)}

    def test_sizes(self, plans: tuple[Any, ...], rows: dict[str, Any]) -> None:
        found = [plan_totals(plan, lambda path: False) for plan in plans]
        models = [sum(model.size for model in plan.sources.values()) for plan in plans]
        fetch = [m - f.unread.bytes for m, f in zip(models, found, strict=True)]
        assert [len(plan.sources) for plan in plans] == [3, 3]

        def gigabytes(counts: Any) -> list[Any]:
            return [f"{count / 1e9:.1f} GB" for count in counts]

        sizes = {
            "One model": [m // 3 for m in models],
            "Three sources as they are": models,
            "To fetch": fetch,
            "To read": [f.read for f in found],
            "To write": [f.models.bytes for f in found],
            "Disk with all sources kept": [
                a + f.models.bytes for a, f in zip(fetch, found, strict=True)
            ],
            "Disk with `keep_sources: false`": [f.lean for f in found],
        }
        assert {name: rows[name] for name in sizes} == {k: gigabytes(v) for k, v in sizes.items()}

    def test_memory(self, plans: tuple[Any, ...], recipe: str, rows: dict[str, Any]) -> None:
        def most(plan: Any) -> Any:
            return max(job.memory for build in plan.builds.values() for job in build.shards)

        assert rows["Memory of a merge job"] == [f"{most(p) // 10**6} MB" for p in plans]
        ties = recipe.replace("task_arithmetic", "ties")
        heavy = [plan_of(ties, shapes) for shapes in (llama_7b(), llama_70b())]
        found = [f"{most(plan) / 1e9:.1f} GB" for plan in heavy]
        assert rows["Memory of a merge job with `ties` instead"] == found

    def test_times(self, rows: dict[str, Any]) -> None:
        """100 MB/s of network, 500 MB/s of disk."""
        fetch, read, written = (
            [float(cell.split()[0]) for cell in rows[name]]
            for name in ("To fetch", "To read", "To write")
        )
        assert rows["Time to fetch"] == [f"{f * 10 / 60:.0f} min" for f in fetch]
        moved = zip(read, written, strict=True)
        assert rows["Time to merge"] == [f"{(r + w) * 2 / 60:.0f} min" for r, w in moved]

    def test_demo_table(self) -> None:
        """README and the demo's own page tell the same accuracies."""
        page = (REPO / "resources" / "demo" / "README.md").read_text()
        rows = {"miquplus-midnight-tiny": "the recipe, word for word"}
        for name, b, c, copied in re.findall(
            r"^\| `([\w-]+)` \([^)]*\) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.M
        ):
            label = rows.get(name, f"`{name}`")
            assert f"| {label} | {copied} | 1.000 | 1.000 | {b} | {c} |" in page, name
