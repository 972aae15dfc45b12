"""A job's identity is its content: what an edit rebuilds, and what it leaves alone."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.workflow import (
    BASE,
    FILES,
    FILTERS,
    FINETUNED,
    LAYERS,
    NAME,
    RECIPIENT,
    Project,
    set_weight,
    sha256,
    shards_that_move,
)
from shardmerge.plan.decide import load_plan
from shardmerge.recipe.settings import load_settings

ALL = {f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)}
#: The flagship's own values: the recipient's, the donor's.
EDGES = [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
MIDDLE = [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def replaced(values: list[float], position: int, value: float) -> list[float]:
    """Return a copy of a gradient with one value changed."""
    return [*values[:position], value, *values[position + 1 :]]


@pytest.fixture
def project(flagship: Project, tmp_path: Path) -> Project:
    """A copy of the built project at another path, for one test to change."""
    return flagship.copy(tmp_path / "project")


def touch(folder: Path) -> int:
    """Give every file below a folder the time of now; return how many there were."""
    files = [p for p in [folder, *folder.rglob("*")] if p.is_file()]
    for path in files:
        os.utime(path)
    return len(files)


class TestNothingToDo:
    def test_after_the_project_moved(self, project: Project) -> None:
        assert project.pending() == []

    def test_after_touching_sources_recipe_and_lock(self, project: Project) -> None:
        assert touch(project.folder / "models") >= sum(FILES.values())
        assert touch(project.recipe) + touch(project.folder / "recipe.lock.json") == 2
        assert touch(project.folder / "cfg.yaml") == 1
        assert project.pending() == []

    def test_with_a_fresh_clone_of_the_workflow(
        self, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A clone has the same files with other times, at another place."""
        repository = Path(__file__).resolve().parents[2]
        clone = tmp_path / "clone"
        for part in ("rules", "scripts", "envs", "report", "profiles"):
            shutil.copytree(
                repository / part,
                clone / part,
                copy_function=shutil.copyfile,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        shutil.copytree(repository / "config" / "schemas", clone / "config" / "schemas")
        shutil.copyfile(repository / "Snakefile", clone / "Snakefile")
        monkeypatch.setattr("helpers.workflow.REPOSITORY", clone)
        assert project.pending() == []

    @pytest.mark.parametrize("flow", [True, False])
    def test_after_reformatting_the_recipe(self, project: Project, flow: bool) -> None:
        text = project.recipe.read_text()
        project.write_documents(project.documents(), default_flow_style=flow, width=40)
        comment = "# the same recipe, written otherwise\n"
        project.recipe.write_text(comment + project.recipe.read_text())
        assert project.recipe.read_text() != text
        assert project.pending() == []

    @pytest.mark.parametrize("cores", [1, 7])
    def test_with_other_cores(self, project: Project, cores: int) -> None:
        assert project.pending(cores=cores) == []

    def test_with_other_threads(self, project: Project) -> None:
        project.configure(resources={"merge_threads": 2})
        assert project.pending() == []

    def test_after_deleting_the_cache(self, project: Project) -> None:
        shutil.rmtree(project.folder / ".shardmerge")
        assert project.pending() == []

    def test_after_making_the_lock_again(self, project: Project) -> None:
        lock = project.folder / "recipe.lock.json"
        before = sha256(lock)
        lock.unlink()
        assert project.pending() == []
        assert not lock.exists(), "a dry run writes no lock"
        assert project.run("plan").returncode == 0
        assert project.pending() == []
        assert sha256(lock) == before

    def test_after_moving_the_sources(self, project: Project) -> None:
        (project.folder / "models").rename(project.folder / "elsewhere")
        project.configure(sources={name: f"elsewhere/{name}" for name in FILES})
        assert project.pending() == []

    def test_with_another_way_to_copy(self, project: Project) -> None:
        project.configure(link="copy")
        assert project.pending() == []


class TestEdits:
    """Weights of the last document: input 0 is the recipient, input 1 the donor."""

    @pytest.mark.parametrize(
        ("model", "filter_", "value"),
        [
            pytest.param(1, "v_proj", replaced(MIDDLE, 0, 0.5), id="first-layer"),
            pytest.param(1, "down_proj", replaced(MIDDLE, 10, 0.25), id="last-layer"),
            pytest.param(0, "up_proj", replaced(EDGES, 5, 0.5), id="one-middle-layer"),
            pytest.param(1, "o_proj", [0, 1, 0], id="three-anchors"),
            pytest.param(0, "gate_proj", 1, id="every-middle-layer"),
            pytest.param(1, None, 0.5, id="all-other-tensors"),
        ],
    )
    def test_only_shards_with_moved_coefficients(
        self, project: Project, model: int, filter_: str | None, value: object
    ) -> None:
        before = project.documents()
        after = set_weight(project.documents(), model, filter_, value)
        expected = shards_that_move(project, before, after)
        assert expected, "an edit that moves nothing shows nothing"
        project.write_documents(after)
        assert project.pending_shards() == expected

    def test_some_edits_leave_some_shards(self, project: Project) -> None:
        """The cases above are not all of `everything`."""
        before = project.documents()
        after = set_weight(project.documents(), 1, "v_proj", replaced(MIDDLE, 0, 0.5))
        assert len(shards_that_move(project, before, after)) == 1

    @pytest.mark.parametrize(
        ("model", "filter_", "value"),
        [
            # Weights are normalised: alone in the sum, any weight is 1.
            pytest.param(1, "v_proj", replaced(MIDDLE, 5, 0.5), id="normalised-donor"),
            pytest.param(0, None, 3, id="normalised-recipient"),
            # A constant where there was a gradient: the middle layers become mixtures.
            pytest.param(0, "o_proj", 0.5, id="constant"),
        ],
    )
    def test_edits_by_value_not_by_text(
        self, project: Project, model: int, filter_: str | None, value: object
    ) -> None:
        before = project.documents()
        after = set_weight(project.documents(), model, filter_, value)
        project.write_documents(after)
        assert project.pending_shards() == shards_that_move(project, before, after)

    def test_nothing_after_edits_that_fold_to_the_same(self, project: Project) -> None:
        documents = project.documents()
        set_weight(documents, 1, "v_proj", [2 * v for v in MIDDLE])
        set_weight(documents, 0, "o_proj", [0.25 * v for v in EDGES])
        set_weight(documents, 0, None, 7)
        assert shards_that_move(project, project.documents(), documents) == set()
        project.write_documents(documents)
        assert project.pending() == []

    def test_nothing_after_a_filter_that_says_what_held_before(self, project: Project) -> None:
        documents = project.documents()
        for entry, value in zip(documents[-1]["models"], (1, 0), strict=True):
            rules = entry["parameters"]["weight"]
            rules.insert(0, {"filter": "q_proj", "value": value})
        project.write_documents(documents)
        assert project.pending() == []

    def test_all_shards_after_another_dtype(self, project: Project) -> None:
        documents = project.documents()
        documents[-1]["dtype"] = "bfloat16"
        project.write_documents(documents)
        assert project.pending_shards() == ALL

    def test_an_edit_and_back_again(self, project: Project) -> None:
        original = project.documents()
        edited = set_weight(project.documents(), 1, "v_proj", replaced(MIDDLE, 0, 0.5))
        project.write_documents(edited)
        assert project.pending_shards() != set()
        project.write_documents(original)
        assert project.pending() == []

    def test_a_rebuild_writes_what_a_fresh_build_writes(
        self, project: Project, tmp_path: Path
    ) -> None:
        before = project.shards()
        after = set_weight(project.documents(), 1, "v_proj", replaced(MIDDLE, 0, 0.5))
        moved = shards_that_move(project, project.documents(), after)
        project.write_documents(after)
        project.build()
        now = project.shards()
        assert {name for name in now if now[name] != before[name]} == moved
        fresh = Project.create(tmp_path / "fresh")
        fresh.write_documents(after)
        fresh.build(*(f"results/{NAME}/model/{name}" for name in sorted(moved)))
        assert fresh.shards() == {name: now[name] for name in moved}


class TestPlannedIdentity:
    """The digest that a shard's job carries, for many edits, without Snakemake in between."""

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        derandomize=True,
    )
    @given(
        model=st.sampled_from([0, 1]),
        filter_=st.sampled_from([*FILTERS, None]),
        values=st.one_of(
            st.sampled_from([0.125, 0.5, 1, 2]),
            st.lists(st.sampled_from([0.25, 0.5, 1, 2]), min_size=2, max_size=LAYERS + 2),
        ),
    )
    def test_moves_with_the_coefficients_and_only_then(
        self,
        flagship: Project,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        model: int,
        filter_: str | None,
        values: object,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        edited = Project(flagship.folder)
        edited.recipe = tmp_path / "edited.yaml"
        shutil.copyfile(flagship.folder / "recipe.lock.json", tmp_path / "edited.lock.json")
        before = flagship.documents()
        edited.write_documents(before)
        old = self._digests(edited)
        after = set_weight(copy.deepcopy(before), model, filter_, values)
        edited.write_documents(after)
        new = self._digests(edited)
        moved = {name for name in old if old[name] != new[name]}
        assert moved == shards_that_move(flagship, before, after)

    @staticmethod
    def _digests(project: Project) -> dict[str, str]:
        config = {
            "recipes": [str(project.recipe)],
            "sources": {name: str(project.folder / "models" / name) for name in FILES},
        }
        plan = load_plan(load_settings(config), say=lambda line: None)
        return {Path(job.output).name: job.digest for job in plan.builds[NAME].shards}


class TestChangedSource:
    @pytest.mark.parametrize("model", [BASE, RECIPIENT, FINETUNED])
    def test_is_refused(self, project: Project, model: str) -> None:
        path = sorted((project.folder / "models" / model).glob("*.safetensors"))[0]
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        before = project.snapshot()
        done = project.run("--until", "merge_shard")
        assert done.returncode != 0
        assert "has another content than when it was locked" in done.stdout
        assert model in done.stdout and path.name in done.stdout
        assert "recipe.lock.json" in done.stdout
        assert "Traceback" not in done.stdout
        assert project.snapshot() == before

    def test_with_its_old_time_is_refused_once_the_cache_is_gone(self, project: Project) -> None:
        path = sorted((project.folder / "models" / RECIPIENT).glob("*.safetensors"))[0]
        stat = path.stat()
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        shutil.rmtree(project.folder / ".shardmerge")
        done = project.run("-n", "--until", "merge_shard")
        assert done.returncode != 0
        assert "has another content than when it was locked" in done.stdout

    def test_locked_anew_rebuilds_what_reads_it(self, project: Project) -> None:
        """The last file of the recipient holds the last shard; no other shard reads it."""
        path = sorted((project.folder / "models" / RECIPIENT).glob("*.safetensors"))[-1]
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        done = project.run("lock")
        assert done.returncode == 0, done.stdout
        assert f"{path.name} has another content" in done.stdout
        assert project.pending_shards() == {path.name}

    def test_missing_file_is_named(self, project: Project) -> None:
        path = sorted((project.folder / "models" / RECIPIENT).glob("*.safetensors"))[0]
        path.unlink()
        done = project.run("-n", "--until", "merge_shard")
        assert done.returncode != 0
        assert path.name in done.stdout and "is gone" in done.stdout


class TestConfiguration:
    def test_written_in_flow_style_is_the_same(self, project: Project) -> None:
        values = yaml.safe_load((project.folder / "cfg.yaml").read_text())
        (project.folder / "cfg.yaml").write_text(yaml.safe_dump(values, default_flow_style=True))
        assert project.pending() == []

    def test_numerics_rebuild_all_shards(self, project: Project) -> None:
        """Which numerics made a file is part of its identity."""
        project.configure(numerics="mergekit-0.1.5")
        assert project.pending_shards() == ALL


class TestOtherShards:
    @pytest.mark.slow
    def test_the_old_ones_stay_until_the_new_ones_are_verified(self, project: Project) -> None:
        project.configure(max_shard_size="20KB")
        project.build()  # merged only, like a run that was killed before the end
        new = set(project.shards()) - ALL
        assert len(new) > 1 and set(project.shards()) == new | ALL
        project.configure()
        assert project.pending() == []  # one can go back
        project.configure(max_shard_size="20KB")
        project.build("models")
        assert set(project.shards()) == new
        records = project.folder / "results" / NAME / "records"
        assert {path.stem for path in records.iterdir()} == {Path(name).stem for name in new}
        assert project.pending("models") == []
