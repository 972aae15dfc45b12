"""The plan as text and as a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.large_models import large_plan, llama_70b, mixtral
from shardmerge.algebra.expression import deltas
from shardmerge.plan.description import load_description
from shardmerge.plan.files import load_spec
from shardmerge.report import plan_facts
from shardmerge.report.plan_table import plan_page
from shardmerge.report.plan_view import plan_text
from shardmerge.report.terminal import Terminal

NAME = "miquplus-midnight-70b"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestTotals:
    def test_they_are_sums_over_the_jobs(self, folder: Path) -> None:
        plan = large_plan(folder, llama_70b(20), files=4, deltas="store")
        totals = plan_facts.plan_totals(plan, exists=lambda path: False)
        shards = plan.builds[NAME].shards
        assert totals.models == plan_facts.Amount(4 + 1, sum(j.bytes_written for j in shards))
        assert totals.deltas.bytes == sum(j.bytes_written for j in plan.deltas) > 0
        assert totals.read == sum(j.bytes_read for j in (*plan.deltas, *shards))
        assert totals.disk == totals.fetch.bytes + totals.models.bytes + totals.deltas.bytes
        assert (totals.present.files, totals.done.files) == (0, 0)

    def test_each_hub_file_is_counted_once_as_needed_or_only_for_benchmarks(
        self, folder: Path
    ) -> None:
        plan = large_plan(folder, llama_70b(20), files=12)
        totals = plan_facts.plan_totals(plan, exists=lambda path: False)
        assert totals.fetch.files + totals.whole.files == len(plan.fetches)
        assert totals.unread.files > 0
        assert totals.unread.bytes == sum(plan.unread.values())
        weights = [path for path in plan.fetches if path.endswith(".safetensors")]
        assert totals.weights == len(weights)
        needed = sum(plan.fetches[p].size for p in weights if p not in plan.unread)
        small = 3 * 600  # the base's config and two tokenizer files
        assert totals.fetch.bytes == needed + small

    def test_what_is_on_disk_needs_none(self, folder: Path) -> None:
        plan = large_plan(folder, llama_70b(20), files=4)
        first, *_ = plan.builds[NAME].shards
        source = first.sources[0]
        there = {first.output, source}
        totals = plan_facts.plan_totals(plan, exists=there.__contains__)
        assert totals.present == plan_facts.Amount(1, plan.fetches[source].size)
        assert totals.done == plan_facts.Amount(1, first.bytes_written)
        everything = plan_facts.plan_totals(plan, exists=lambda path: False)
        assert totals.disk == everything.disk - plan.fetches[source].size - first.bytes_written


class TestShards:
    def test_a_copy_is_a_shard_whose_tensors_are_all_as_in_one_file(self, folder: Path) -> None:
        plan = large_plan(folder, llama_70b(20), files=12)
        shards = plan_facts.shards(plan.builds[NAME])
        merged = [bool(deltas_of(shard.job.digest)) for shard in shards]
        assert [shard.copied is None for shard in shards] == merged
        assert True in merged and False in merged
        assert sum(shard.tensors for shard in shards) == len(llama_70b(20))

    def test_a_tensor_that_changes_its_type_is_not_copied(self, folder: Path) -> None:
        recipe = "name: x\nmerge_method: passthrough\nmodels: [{model: a/b}]\ndtype: bfloat16\n"
        plan = large_plan(folder, llama_70b(2), recipe, files=2)
        assert not any(shard.copied for shard in plan_facts.shards(plan.builds["x"]))
        plan = large_plan(folder, llama_70b(2), recipe.replace("bfloat16", "float16"), files=2)
        assert all(shard.copied for shard in plan_facts.shards(plan.builds["x"]))


def deltas_of(digest: Any) -> list[Any]:
    return [d for tensor in load_spec(digest).tensors for d in deltas(tensor.expression)]


class TestText:
    def test_the_flagship_in_a_screen(self, folder: Path) -> None:
        plan = large_plan(folder, llama_70b())
        text = plan_text(plan, Terminal(100))
        assert "\n  shards      16 (138 GB, 723 tensors, float16)\n" in text
        assert "layers 8-71: v_proj o_proj gate_proj up_proj down_proj\n" in text
        assert "everything else = miqu-1-70b-sf\n" in text
        assert re.search(r"not needed  4 of 48 source files \(\d+\.\d GB\)", text)
        assert "\x1b" not in text
        assert len(text.split("\n")) < 24

    @pytest.mark.parametrize("width", [60, 80, 120])
    def test_lines_fit(self, folder: Path, width: int) -> None:
        plan = large_plan(folder, llama_70b(12), files=4)
        lines = plan_text(plan, Terminal(width)).split("\n")
        assert all(len(line) <= width for line in lines if "g * (" not in line)

    def test_stages_are_printed_as_written(self, folder: Path) -> None:
        plan = large_plan(folder, llama_70b(12), files=4)
        (found,) = [load_description(build.digest) for build in plan.builds.values()]
        text = plan_text(plan, Terminal(), stages=True)
        assert "(task_arithmetic; folded into it, not written)" in text
        for stage in found.stages:
            for line in stage.text.strip().split("\n"):
                assert f"    {line}\n" in text
        assert "merge_method" not in plan_text(plan, Terminal())

    def test_warnings_and_stored_task_vectors_are_told(self, folder: Path) -> None:
        recipe = (Path(__file__).parents[3] / f"config/recipes/{NAME}.yaml").read_text()
        recipe = recipe.replace(
            "base_model: 152334H", "parameters: {density: 1}\nbase_model: 152334H"
        )
        plan = large_plan(folder, llama_70b(12), recipe, files=4, deltas="store")
        text = " ".join(plan_text(plan, Terminal(80)).split())
        assert "warning: " in text and "'density'" in text
        assert "stored task-vector shards" in text
        assert "of task vectors" in text


class _Text(HTMLParser):
    """Collects a page's table cells and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.tags = [], []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: Any) -> None:
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


class TestPage:
    def test_every_shard_source_and_group_of_tensors_has_a_row(self, folder: Path) -> None:
        plan = large_plan(folder, llama_70b(20), files=12)
        parsed = _Text()
        parsed.feed(plan_page(plan, NAME))
        keys = [row[0] for row in parsed.rows if row]
        assert {Path(job.output).name for job in plan.builds[NAME].shards} <= set(keys)
        assert set(plan.sources) <= set(keys)
        copies = [row for row in parsed.rows if row and row[-1].startswith("copy of ")]
        assert len(copies) == sum(
            shard.copied is not None for shard in plan_facts.shards(plan.builds[NAME])
        )
        assert not {"script", "link", "img", "iframe"} & set(parsed.tags)

    def test_text_of_the_user_is_escaped(self, folder: Path) -> None:
        recipe = (
            "name: x\nmerge_method: passthrough\nparameters: {density: 1}\nmodels: [{model: a/b}]\n"
        )
        path = folder / "<b>"
        path.mkdir()
        plan = large_plan(path, mixtral(1), recipe, files=1)
        page = plan_page(plan, "x")
        assert "<b>" not in page
        assert "&lt;b&gt;/recipe.yaml" in page

    def test_it_is_the_same_text_every_time(self, folder: Path) -> None:
        plan = large_plan(folder, llama_70b(12), files=4)
        assert plan_page(plan, NAME) == plan_page(plan, NAME)
