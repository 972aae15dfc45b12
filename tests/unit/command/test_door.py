"""The command's words become one run of Snakemake, or an answer without it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.models import llama
from shardmerge.base.errors import UserError
from shardmerge.command import door, workflow

REPO = Path(__file__).parents[3]
RECIPE = """\
merge_method: linear
parameters: {weight: 0.5}
models: [{model: o/a}, {model: o/b}]
dtype: float16
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "own.yaml").write_text("deltas: fuse\nrecipes: [recipe.yaml]\n")
    return tmp_path


def command(*words: str) -> list[str]:
    """Return Snakemake's words for the command's, without those on the screen and the workflow."""
    own, further = door._split(words)
    found = workflow.command(door.make_parser().parse_args(own), further)
    at = found.index("--snakefile")
    assert found[at + 1] == str(REPO / "Snakefile")
    del found[at : at + 2]
    for option in {"--logger", "--quiet"} & set(found):
        at = found.index(option)
        end = next((i for i in range(at + 1, len(found)) if found[i].startswith("--")), len(found))
        del found[at:end]
    return found


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shardmerge", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPO / "scripts"), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


class TestCommand:
    def test_recipe_is_a_key_of_the_configuration(self) -> None:
        found = command("merge", "recipe.yaml", "--out", "the results", "--cores", "3")
        keys = ["--config", 'recipes=["recipe.yaml"]', 'results="the results"']
        assert found == ["models", "--cores", "3", *keys]

    def test_configuration_is_told_from_recipes(self) -> None:
        found = command("bench", "own.yaml", "--config", "device=cuda")
        end = ["--configfile", "own.yaml", "--config", "device=cuda"]
        assert found == ["benchmarks", "--cores", "all", *end]

    def test_the_folders_own_configuration(self, folder: Path) -> None:
        with pytest.raises(UserError, match="names no recipe"):
            command("plan")
        (folder / "config").mkdir()
        (folder / "config" / "config.yaml").write_text("recipes: [recipe.yaml]")
        assert command("plan") == ["plan", "--cores", "all"]
        (folder / "config.yaml").write_text("recipes: [recipe.yaml]")
        assert command("plan") == ["plan", "--cores", "all", "--configfile", "config.yaml"]

    def test_further_words_and_targets_go_to_snakemake(self) -> None:
        found = command("merge", "own.yaml", "--", "all", "--forceall")
        assert found[:3] == ["models", "all", "--forceall"]
        with pytest.raises(UserError, match="would put aside"):
            command("merge", "own.yaml", "--", "--config", "a=1")

    def test_names_are_quoted_for_yaml_and_shells(self, folder: Path) -> None:
        name = 'it\'s [a] "recipe".yaml'
        (folder / name).write_text(RECIPE)
        found = command("merge", name)
        assert found[-1] == 'recipes=["it\'s [a] \\"recipe\\".yaml"]'
        assert shlex.split(shlex.join(found)) == found

    def test_jobs_are_shown_and_answers_are_not_disturbed(self) -> None:
        def words(*given: str) -> str:
            own, further = door._split(given)
            return " ".join(workflow.command(door.make_parser().parse_args(own), further))

        for name in ("merge", "bench", "report"):
            assert " --logger shardmerge --quiet host" in words(name, "own.yaml")
            assert "--logger" not in words(name, "own.yaml", "-n")
        assert words("plan", "own.yaml").count("--logger") == 0
        assert "--logger shardmerge" not in words("merge", "own.yaml", "--", "--logger", "rich")

    def test_the_display_is_found_from_anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = {}
        monkeypatch.setattr(os, "execve", lambda *call: seen.update(call=call))
        monkeypatch.setenv("PYTHONPATH", "theirs")
        workflow.start(door.make_parser().parse_args(["merge", "own.yaml"]), ())
        _, words, variables = seen["call"]
        assert "--logger" in words
        assert variables["PYTHONPATH"] == os.pathsep.join([str(REPO / "plugins"), "theirs"])
        assert (REPO / "plugins" / "snakemake_logger_plugin_shardmerge").is_dir()

    def test_every_target_is_a_rule(self) -> None:
        rules = "".join(p.read_text() for p in [REPO / "Snakefile", *REPO.glob("rules/*.smk")])
        for target in workflow.TARGETS.values():
            assert f"\nrule {target.name}:\n" in rules


class TestScreens:
    def test_unknown_command(self, folder: Path) -> None:
        done = run("merg", cwd=folder)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "error: unknown command 'merg'\n  Did you mean 'merge'?\n"

    def test_no_words_print_the_help(self, folder: Path) -> None:
        done = run(cwd=folder)
        assert done.returncode == 0 and done.stdout.startswith("usage: shardmerge")
        assert "init" in done.stdout

    def test_a_plan_says_each_warning_once(self, folder: Path) -> None:
        models = "[{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]"
        for seed, name in enumerate("ab"):
            llama(folder / name, seed)
        text = f"merge_method: linear\nparameters: {{normalize: false}}\nmodels: {models}\n"
        (folder / "warned.yaml").write_text(text)
        done = run("plan", "warned.yaml", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert (done.stderr + done.stdout).count("[weights-sum]") == 1

    def test_explanation_is_all_that_is_printed(self, folder: Path) -> None:
        done = run("explain", "recipe.yaml", cwd=folder)
        assert done.returncode == 0 and done.stderr == ""
        assert "0.5 * a + 0.5 * b" in done.stdout
        plain = subprocess.run(
            [sys.executable, str(REPO / "scripts" / "explain.py"), "recipe.yaml"],
            cwd=folder,
            env=os.environ | {"NO_COLOR": "1"},
            capture_output=True,
            text=True,
        )
        assert plain.stdout.split() == done.stdout.split()

    def test_words_for_snakemake_where_none_runs(self, folder: Path) -> None:
        assert "runs no Snakemake" in run("explain", "recipe.yaml", "--", "-n", cwd=folder).stderr

    def test_command_that_runs_is_told(self, folder: Path) -> None:
        """What is printed can be pasted into a shell, and the plan of the demo comes of it."""
        done = run("plan", "config/recipes/miquplus-midnight-tiny.yaml", cwd=REPO)
        first = done.stderr.splitlines()[0]
        assert shlex.split(first)[:2] == ["snakemake", "plan"]
        assert done.returncode == 0 and done.stdout.startswith("miquplus-midnight-tiny\n")

    def test_starting_is_quick(self) -> None:
        """Nothing of Snakemake or of tensors loads to print help or the explanation's options."""
        code = (
            "import sys; from shardmerge.command import door; door.make_parser()\n"
            "heavy = ('snakemake', 'torch', 'numpy', 'yaml', 'jsonschema', 'huggingface_hub')\n"
            "print([name for name in heavy if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPO / "scripts", capture_output=True, text=True
        )
        assert done.stdout.strip() == "[]", done.stderr

    def test_completion(self, folder: Path) -> None:
        pytest.importorskip("shtab")
        for shell in ("bash", "zsh"):
            text = run("completion", shell, cwd=folder).stdout
            assert all(word in text for word in ("publish", "--dry-run", "verify"))
