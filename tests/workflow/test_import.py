"""Another workflow imports this one, from a folder of its own and without our profile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import workflow
from helpers.workflow import DEMO_NAME, REPOSITORY, environment

IMPORT = """
module shardmerge:
    snakefile: {snakefile}
    config: {{"recipes": ["config/recipes/miquplus-midnight-tiny.yaml"]}}

use rule * from shardmerge as merging_*

rule mine:
    default_target: True
    input: rules.merging_models.input
    output: "mine.txt"
    shell: "cp results/{name}/model/SHA256SUMS {{output}}"

onstart:
    print("the importer's own start")
"""

#: What `snakedeploy deploy-workflow` 0.17.1 writes as workflow/Snakefile, beside copies of the
#: folders config and profiles; only the repository's address is another.
DEPLOYED = """
from snakemake.utils import min_version


min_version("6.10.0")


configfile: "config/config.yaml"


# declare https://github.com/o/shardmerge as a module
module shardmerge:
    snakefile: 
        {snakefile}
    config:
        config


# use all rules from https://github.com/o/shardmerge
use rule * from shardmerge
"""  # noqa: W291
HOSTED = 'github("o/shardmerge", path="workflow/Snakefile", tag="v0.1.0")'


def run(folder: Path, *arguments: str, **variables: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    done = workflow.run(command, folder, environment(variables))
    assert done.returncode == 0, done.stdout
    return done.stdout


def importer(folder: Path, snakefile: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "Snakefile").write_text(IMPORT.format(snakefile=snakefile, name=DEMO_NAME))
    return folder


def deployed(folder: Path, snakefile: str) -> Path:
    """Return a folder as snakedeploy leaves it."""
    for name in ("config", "profiles"):
        shutil.copytree(REPOSITORY / name, folder / name)
    (folder / "workflow").mkdir()
    (folder / "workflow" / "Snakefile").write_text(DEPLOYED.format(snakefile=snakefile))
    return folder


class TestDeployed:
    def test_no_target_means_all(self, tmp_path: Path) -> None:
        folder = deployed(tmp_path / "mine", repr(str(REPOSITORY / "workflow" / "Snakefile")))
        jobs = run(folder, "-n")
        assert all(f"rule {job}:" in jobs for job in ("merge_shard", "load_model", "run_tasks"))

    @pytest.mark.slow
    def test_builds_from_a_git_host(self, tmp_path: Path) -> None:
        """The host's clone is in Snakemake's cache already."""
        cache = tmp_path / "cache" / "snakemake" / "snakemake" / "source-cache"
        publish(tmp_path / "checkout", cache / "snakemake-git-cache/github.com/o/shardmerge")
        folder = deployed(tmp_path / "mine", HOSTED)
        run(folder, "models", XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert (folder / "results" / DEMO_NAME / "model" / "SHA256SUMS").is_file()
        assert not (folder / "resources").exists()


class TestModule:
    def test_builds_the_demo_and_nothing_again(self, tmp_path: Path) -> None:
        folder = importer(tmp_path / "mine", repr(str(REPOSITORY / "workflow" / "Snakefile")))
        told = run(folder)
        assert "the importer's own start" in told
        # the run began as ours do: it holds the results folder, and jobs know whose they are
        assert (folder / ".shardmerge" / "run").is_file()
        assert "model-00001-of-00006.safetensors" in (folder / "mine.txt").read_text()
        assert not (folder / "resources").exists()
        assert "Nothing to be done" in run(folder, "-n")
        # what is read of a shard that is there is not among its job's inputs
        assert "Nothing to be done" in run(folder, "-n", "--rerun-triggers", "input", "params")

    def test_files_of_its_own_rules_are_left_to_it(self, tmp_path: Path) -> None:
        folder = importer(tmp_path / "mine", repr(str(REPOSITORY / "Snakefile")))
        rule = '\nrule own:\n    output: "own/{name}/{shard}.txt"\n    shell: "touch {output}"\n'
        (folder / "Snakefile").write_text((folder / "Snakefile").read_text() + rule)
        assert "own/any/model-2.txt" in run(folder, "own/any/model-2.txt", "-n")
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "-n"]
        strange = f"results/{DEMO_NAME}/model/model-00009-of-00009.safetensors"
        done = workflow.run([*command, strange], folder, environment())
        assert done.returncode == 1 and "has no weight file" in done.stdout, done.stdout

    def test_targets_with_another_name(self, tmp_path: Path) -> None:
        folder = importer(tmp_path / "mine", repr(str(REPOSITORY / "Snakefile")))
        told = run(folder, "merging_lock", "-n")
        assert "would lock" in told
        told = run(folder, "merging_all", "--report", "report.html")
        assert "is not whole" in told and (folder / "report.html").is_file()


def publish(checkout: Path, clone: Path) -> None:
    """Make a clone of what is, or is about to be, in the repository, with a tag."""

    def git(*arguments: str, where: Path = checkout) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
        return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout

    listed = git("ls-files", "-co", "--exclude-standard", where=REPOSITORY).splitlines()
    for name in listed:
        if (source := REPOSITORY / name).is_file() and not name.startswith("tests/"):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes(source.read_bytes())
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "All")
    git("tag", "v0.1.0")
    clone.parent.mkdir(parents=True)
    git("clone", "--quiet", "--bare", str(checkout), str(clone))
