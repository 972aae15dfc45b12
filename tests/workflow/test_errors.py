"""A user's mistakes, at the command line: one message, exit status 1, nothing written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.models import llama_shapes, random_tensors, save_model
from helpers.workflow import BASE, FINETUNED, LAYERS, NAME, RECIPIENT, Project, set_weight


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that nothing ran in yet."""
    return Project.create(tmp_path_factory.mktemp("errors") / "fresh")


@pytest.fixture
def project(fresh: Project, tmp_path: Path) -> Project:
    """A copy of it for one test to spoil."""
    return fresh.copy(tmp_path / "project")


def replace(project: Project, old: str, new: str) -> int:
    """Replace the first occurrence in the recipe; return the number of its line."""
    text = project.recipe.read_text(encoding="utf-8")
    assert old in text
    project.recipe.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def refused(project: Project, *needles: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow; it must fail with these words, and leave all as it was."""
    before = project.snapshot()
    done = project.run("--until", "merge_shard")
    assert done.returncode == 1, done.stdout
    for needle in needles:
        assert needle in done.stdout, done.stdout
    # The message stands alone: no trace, no class of an exception, no file of the workflow's own.
    for word in ("Traceback", "Error", ".smk", "Exception"):
        assert word not in done.stdout, done.stdout
    assert len(re.findall(r"^error: ", done.stdout, re.MULTILINE)) == 1, "one mistake, one message"
    # A lock of sound sources may have been made; nothing else is new, changed or gone.
    after = {k: v for k, v in project.snapshot().items() if k != "recipe.lock.json"}
    assert after == before
    return done


class TestConfiguration:
    def test_unknown_key_with_suggestion(self, project: Project) -> None:
        project.configure(deltaz="auto")
        refused(project, "configuration: unknown key 'deltaz'", "Did you mean 'deltas'?")

    def test_unknown_key_below_another(self, project: Project) -> None:
        project.configure(benchmark={"task": ["demo_B"]})
        refused(project, "configuration: benchmark: unknown key 'task'", "Did you mean 'tasks'?")

    def test_value_that_is_not_allowed(self, project: Project) -> None:
        project.configure(deltas="stored")
        refused(project, "configuration: deltas: 'stored' is not allowed", "Did you mean 'store'?")

    def test_recipes_that_are_no_list(self, project: Project) -> None:
        project.configure(recipes="recipe.yaml")
        refused(project, "recipes: 'recipe.yaml' is no list", "Write `[recipe.yaml]`.")

    def test_a_recipe_is_no_configuration(self, project: Project) -> None:
        document = project.documents()[0]
        (project.folder / "cfg.yaml").write_text(json.dumps(document))
        refused(project, "so this is a recipe", "--config recipes='[RECIPE.yaml]'")

    def test_misspelt_recipe(self, project: Project) -> None:
        project.configure(recipes=["recipee.yaml"])
        refused(project, "recipee.yaml: cannot be read", "Did you mean 'recipe.yaml'?")

    def test_missing_recipe(self, project: Project) -> None:
        project.configure(recipes=["recipes/nowhere.yaml"])
        refused(project, "recipes/nowhere.yaml: cannot be read (No such file or directory)")

    def test_unknown_model_to_benchmark(self, project: Project) -> None:
        project.configure(benchmark={"tasks": ["demo_B"], "models": ["mergd"]})
        refused(project, "configuration: benchmark.models", "Did you mean 'merged'?")

    def test_a_task_that_runs_code(self, project: Project) -> None:
        project.configure(benchmark={"tasks": ["humaneval"]})
        refused(project, "'humaneval' runs code that the model writes", "allow_code_execution")

    def test_nothing_to_publish_to(self, project: Project) -> None:
        """Told when the jobs are made, not when the Snakefile is read."""
        done = project.run("-n", "publish")
        assert done.returncode == 1
        assert "error: configuration: publish.repository: names no repository" in done.stdout
        assert "Exception" not in done.stdout and ".smk" not in done.stdout


class TestRecipe:
    def test_unknown_key(self, project: Project) -> None:
        line = replace(project, "base_model: meta", "base_modle: meta")
        refused(project, f"recipe.yaml:{line}: ", "'base_modle'", "Did you mean 'base_model'?")

    def test_unknown_method(self, project: Project) -> None:
        line = replace(project, "merge_method: linear", "merge_method: lineer")
        refused(project, f"recipe.yaml:{line}: unknown merge_method 'lineer'", "'linear'?")

    def test_filter_that_matches_nothing(self, project: Project) -> None:
        line = replace(project, "filter: v_proj", "filter: v_prj")
        refused(project, f"recipe.yaml:{line}: ", "'v_prj'", "Did you mean 'v_proj'?")

    def test_value_that_is_no_number(self, project: Project) -> None:
        documents = set_weight(project.documents(), 0, "v_proj", [1, "much"])
        project.write_documents(documents)
        refused(project, "recipe.yaml:", "'much'")

    def test_broken_yaml(self, project: Project) -> None:
        replace(project, "models:", "models: [")
        refused(project, "recipe.yaml:")

    def test_two_recipes_of_one_name(self, project: Project) -> None:
        """Told before anything is locked, which may take long."""
        (project.folder / "other").mkdir()
        text = project.recipe.read_text(encoding="utf-8").replace(f"name: {NAME}\n", "")
        for path in ("recipe.yaml", "other/recipe.yaml"):
            (project.folder / path).write_text(text, encoding="utf-8")
        project.configure(recipes=["recipe.yaml", "other/recipe.yaml"])
        refused(project, "a document named 'recipe' is also in recipe.yaml", "give it a `name`")
        assert not project.recipe.with_suffix(".lock.json").exists()

    def test_what_is_odd_is_told_before_a_mistake(self, project: Project) -> None:
        documents = project.documents()
        model = documents[1]["models"][0]
        model["weight"] = model.pop("parameters")["weight"]
        project.write_documents(documents)
        done = refused(project, "no `weight` of model")
        odd = done.stdout.index("'weight' in an entry of `models` is ignored")
        assert odd < done.stdout.index("error: ")

    def test_unknown_model(self, project: Project) -> None:
        line = replace(project, f"- model: {BASE}", "- model: Llama-2-70b")
        refused(project, f"recipe.yaml:{line}: model 'Llama-2-70b' is neither a folder")


class TestPublished:
    def test_a_downloaded_recipe_runs_as_it_is(self, project: Project) -> None:
        """With Windows line ends, a mark of its encoding, odd keys, and another folder's name."""
        text = project.recipe.read_text(encoding="utf-8").replace(f"name: {NAME}\n", "")
        text = "\ufeff" + text.rstrip() + "\nrandom_seed: 0\n"
        recipe = project.folder / "my downloads" / "merge config (1).yml"
        recipe.parent.mkdir()
        recipe.write_bytes(text.replace("\n", "\r\n").encode())
        project.configure(recipes=["my downloads/merge config (1).yml"])
        done = project.run("-n", "--until", "merge_shard")
        assert done.returncode == 0, done.stdout
        assert "results/merge-config-1/model/" in done.stdout
        assert "'random_seed' in a recipe document is ignored" in done.stdout
        assert "would lock" in done.stdout and "a dry run writes no lock" in done.stdout
        assert not recipe.with_suffix(".lock.json").exists()


class TestSources:
    def test_shapes_that_differ(self, project: Project) -> None:
        shapes = llama_shapes(LAYERS) | {"model.layers.4.mlp.up_proj.weight": (20, 16)}
        folder = project.folder / "models" / FINETUNED
        for path in folder.iterdir():
            path.unlink()
        save_model(folder, random_tensors(shapes, 1))
        refused(project, "model.layers.4.mlp.up_proj.weight", "20", "24", FINETUNED)

    def test_pickles_only(self, project: Project) -> None:
        folder = project.folder / "models" / FINETUNED
        for path in folder.glob("model*"):
            path.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"never opened")
        refused(project, "recipe.yaml:", FINETUNED, "only as pickles", "`snakemake convert`")

    def test_folder_that_is_not_there(self, project: Project) -> None:
        project.configure(sources={BASE: "models/nowhere"})
        refused(project, BASE, "there is no folder 'models/nowhere'")

    def test_folder_that_is_misspelt(self, project: Project) -> None:
        given = {name: f"models/{name}" for name in (BASE, FINETUNED, RECIPIENT)}
        project.configure(sources=given | {BASE: f"modles/{BASE}"})
        refused(project, f"there is no folder 'modles/{BASE}'", f"Did you mean 'models/{BASE}'?")

    def test_file_of_the_index_missing(self, project: Project) -> None:
        path = sorted((project.folder / "models" / RECIPIENT).glob("*.safetensors"))[1]
        path.unlink()
        refused(project, repr(path.name), "which is not there", "model.safetensors.index.json")

    def test_truncated_file(self, project: Project) -> None:
        path = sorted((project.folder / "models" / RECIPIENT).glob("*.safetensors"))[1]
        path.write_bytes(path.read_bytes()[:-3])
        refused(project, path.name)

    def test_lock_that_is_not_json(self, project: Project) -> None:
        (project.folder / "recipe.lock.json").write_text("{")
        done = project.run("--until", "merge_shard")
        assert done.returncode == 1
        assert "recipe.lock.json: is not JSON" in done.stdout
        assert "Traceback" not in done.stdout
        assert (project.folder / "recipe.lock.json").read_text() == "{"

    def test_two_recipes_that_build_one_name(self, project: Project) -> None:
        other = project.folder / "other.yaml"
        other.write_text(project.recipe.read_text())
        project.configure(recipes=["recipe.yaml", "other.yaml"])
        done = project.run("-n", "--until", "merge_shard")
        assert done.returncode == 1
        assert "miquplus-midnight-70b" in done.stdout
        assert "Traceback" not in done.stdout
        assert not (project.folder / "results").exists()


def test_the_project_is_sound_before_it_is_spoiled(fresh: Project, tmp_path: Path) -> None:
    """Else every refusal above might be for another reason."""
    project = fresh.copy(tmp_path / "project")
    before = project.snapshot()
    assert len(project.pending_shards()) == 5
    assert project.snapshot() == before, "a dry run writes no lock"
    assert project.run("plan").returncode == 0
    lock = project.folder / "recipe.lock.json"
    assert json.loads(lock.read_text())
    # A lock is renewed in memory alone where it is only asked what would be done.
    shutil.rmtree(project.folder / ".shardmerge")
    lock.write_text(lock.read_text() + "\n")
    before = project.snapshot()
    done = project.run("-n", "lock")
    assert done.returncode == 0, done.stdout
    assert "would lock" in done.stdout
    assert project.snapshot() == before
    assert not (project.folder / ".shardmerge").exists()
