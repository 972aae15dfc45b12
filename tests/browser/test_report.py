"""Snakemake's report of the real workflow, as a browser shows it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import BROWSER, DRIVER, Page, page

from helpers.workflow import NAME, Project
from shardmerge.report.coefficients import coefficients
from shardmerge.report.plots import draw_coefficients
from shardmerge.report.synthetic import FAMILIES

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver here"),
]

PLOTS = {"coefficients": "coefficients.svg", "task vector": "norms.svg", "time": "timings.svg"}
PLOTS |= {"distance to parents": "distances.svg"}
#: Opens a result by its label: the first of its row's buttons shows it, the second tells of it.
_PRESS = """
const rows = [...document.querySelectorAll('nav tbody tr')];
const row = rows.find(r => r.innerText.trim() === arguments[0]);
row?.querySelectorAll('a')[arguments[1]].click();
return row !== undefined;
"""
_PICTURE = (
    "return [...document.querySelectorAll('#app img')].find(i => i.src.includes(arguments[0]))"
)
#: Where the picture is once its container is scrolled to the top.
_BOX = f"""
const picture = (() => {{ {_PICTURE} }})();
if (!picture?.complete || !picture.naturalWidth) return null;
picture.closest('.overflow-auto').scrollTop = 0;
const box = picture.getBoundingClientRect();
return [box.top, box.width, box.height, picture.naturalWidth / picture.naturalHeight];
"""


@pytest.fixture(scope="module")
def project(once: Any) -> Any:
    """A built project with its report."""

    def make(folder: Any) -> None:
        project = Project.create(folder)
        project.build("report")
        project.build("--report", "report.html")

    return Project(once("report", make))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with page() as opened:
        yield opened


@pytest.fixture
def report(project: Any, browser: Any) -> Page:
    """The report's results, just opened."""
    browser.open(project.folder / "report.html")
    browser.click("Results")
    browser.wait("return document.querySelector('nav tbody tr')")
    return browser


class TestReport:
    def test_the_first_page_introduces_the_workflow(self, project: Any, browser: Any) -> None:
        browser.open(project.folder / "report.html")
        text = browser.wait("return document.querySelector('#app .prose')?.innerText")
        assert "mergekit recipes" in text
        assert "recipe.yaml" in text
        assert "{{" not in text and "Snakemake(" not in text

    def test_every_result_of_the_model_is_listed_under_its_name(self, report: Any) -> None:
        labels = report.run(
            "return [...document.querySelectorAll('nav tbody tr')].map(r => r.innerText.trim())"
        )
        assert set(labels) == {*PLOTS, "plan", "at a glance"}
        assert labels[0] == "at a glance"
        assert NAME in report.run("return document.querySelector('nav').innerText")

    @pytest.mark.parametrize("label", PLOTS)
    def test_a_plot_is_shown_whole(self, report: Any, label: Any) -> None:
        assert report.run(_PRESS, label, 0)
        top, width, height, ratio = report.wait(_BOX, f"filename={PLOTS[label]}")
        assert top >= 0  # else its title is out of reach
        assert width > 600
        assert width / height == pytest.approx(ratio, rel=0.02)

    def test_the_plan_is_a_page_with_every_shard(self, project: Any, report: Any) -> None:
        assert report.run(_PRESS, "plan", 0)
        source = report.wait("return document.querySelector('#app iframe')?.src")
        plan = base64.b64decode(source.split(",", 1)[1]).decode()
        assert plan == (project.folder / f"results/{NAME}/report/plan.html").read_text()
        assert all(shard in plan for shard in project.shards())

    def test_the_summary_says_what_is_known_so_far(self, project: Any, report: Any) -> None:
        assert report.run(_PRESS, "at a glance", 0)
        source = report.wait("return document.querySelector('#app iframe')?.src")
        summary = base64.b64decode(source.split(",", 1)[1]).decode()
        assert "Verified: " in summary and "Not loaded by transformers yet" in summary

    @pytest.mark.parametrize("label", [*PLOTS, "plan", "at a glance"])
    def test_every_result_has_a_caption_that_names_the_model(self, report: Any, label: Any) -> None:
        assert report.run(_PRESS, label, 1)
        caption = report.wait("return document.querySelector('nav .prose')?.innerText")
        assert NAME in caption
        assert "{{" not in caption

    def test_nothing_is_loaded_from_elsewhere_and_nothing_fails(
        self, project: Any, report: Any
    ) -> None:
        loaded = report.run("return performance.getEntriesByType('resource').map(e => e.name)")
        assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []
        assert report.errors() == []


#: What of a picture lies outside of it.
_OUTSIDE = """
const whole = document.documentElement.getBoundingClientRect();
return [...document.querySelectorAll('text, use, image, path')]
  .filter(e => !e.closest('defs'))
  .filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && (box.left < whole.left - 1 || box.right > whole.right + 1
      || box.top < whole.top - 1 || box.bottom > whole.bottom + 1);
  })
  .map(e => e.outerHTML.slice(0, 80));
"""


class TestPlots:
    """The plots alone, as files."""

    @pytest.mark.parametrize("name", PLOTS.values())
    def test_nothing_leaves_the_canvas(self, project: Any, browser: Any, name: Any) -> None:
        browser.open(project.folder / f"results/{NAME}/report/{name}")
        assert browser.run("return document.querySelectorAll('use').length") > 20
        assert browser.run(_OUTSIDE) == []

    @pytest.mark.parametrize("panels", [1, 2, 5])
    def test_long_names_do_not_either(self, browser: Any, tmp_path: Path, panels: Any) -> None:
        names = [n for family in FAMILIES for n in family.tensors(26)]
        names += [f"vision_tower.encoder.layers.{i}.mlp.fc1.weight" for i in range(27)]
        names += ["vision_tower.embeddings.position_embedding.weight"]
        models = [f"somebody/a-model-of-70b-with-a-name-v{i}" for i in range(panels)]
        terms = {name: [[model, 1 / 3] for model in models] for name in names}
        draw_coefficients("x", coefficients(terms), models, tmp_path / "x.svg")
        browser.open(tmp_path / "x.svg")
        assert browser.run(_OUTSIDE) == []
