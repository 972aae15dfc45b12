"""Another workflow imports this one, from a folder of its own and without our profile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


def run(folder: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
        cwd=folder,
        env=environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def importer(folder: Path, snakefile: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "Snakefile").write_text(IMPORT.format(snakefile=snakefile, name=DEMO_NAME))
    return folder


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

    def test_targets_with_another_name(self, tmp_path: Path) -> None:
        folder = importer(tmp_path / "mine", repr(str(REPOSITORY / "Snakefile")))
        told = run(folder, "merging_lock", "-n")
        assert "would lock" in told

    @pytest.mark.slow
    def test_from_a_git_host(self, tmp_path: Path) -> None:
        """As snakedeploy writes it; the host's clone is in Snakemake's cache already."""
        cache = tmp_path / "cache" / "snakemake" / "snakemake" / "source-cache"
        publish(tmp_path / "checkout", cache / "snakemake-git-cache/github.com/o/shardmerge")
        hosted = 'github("o/shardmerge", path="workflow/Snakefile", tag="v0.1.0")'
        folder = importer(tmp_path / "mine", hosted)
        run(folder, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert "model-00001-of-00006.safetensors" in (folder / "mine.txt").read_text()


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
