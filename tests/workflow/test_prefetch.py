"""Data sets of the Hub: brought to the head node's cache, read from there without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.loopback_hub import LoopbackHub
from helpers.workflow import REPOSITORY, Project

MODEL = REPOSITORY / "resources" / "demo" / "midnight-tiny"
QUIZ = """\
task: quiz
dataset_path: lab/quiz
output_type: multiple_choice
test_split: test
doc_to_text: "{{x}}"
doc_to_target: label
doc_to_choice: [a, b]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "quiz.yaml").write_text(QUIZ)
    (folder / "same.yaml").write_text(QUIZ.replace("task: quiz", "task: same"))
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    folder = tmp_path / "hub" / "lab" / "quiz"
    folder.mkdir(parents=True)
    rows = [{"x": f"q{i}", "label": i % 2} for i in range(6)]
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


def environment(url: str, home: Path) -> dict[str, str]:
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return dict(os.environ) | own | {"HF_DATASETS_OFFLINE": "0", "no_proxy": "127.0.0.1"}


def script(name: str, *words: Any, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / name), *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


def measure(folder: Path, tasks: Path, env: Mapping[str, str]) -> Any:
    own = ("--include-path", tasks, "--task", "quiz", "--output", folder / "quiz.json")
    return script("benchmark.py", "--model", MODEL, "--name", "m", *own, env=env)


def test_a_prefetched_data_set_is_read_without_a_network(
    hub: LoopbackHub, tmp_path: Path, tasks: Path
) -> None:
    env, noted = environment(hub.url, tmp_path / "home"), tmp_path / "datasets.json"
    words = ("--include-path", tasks, "--task", "quiz", "same", "--output", noted)
    done = script("prefetch.py", *words, env=env)
    assert done.returncode == 0, done.stderr
    commit = hub.store.commit_of("lab/quiz", hub.store.root / "lab" / "quiz")
    assert done.stdout == f"lab/quiz at {commit}: quiz, same\n"
    made = json.loads(noted.read_text())
    assert made["datasets"] == [{"path": "lab/quiz", "revision": commit, "tasks": ["quiz", "same"]}]
    asked = len(hub.log)
    # a compute node: nobody answers at the Hub's address
    offline = environment("http://127.0.0.1:9", tmp_path / "home")
    done = measure(tmp_path / "results", tasks, offline)
    assert done.returncode == 0, done.stderr
    assert "the Hub cannot be reached from here; data sets come from the cache" in done.stderr
    result = json.loads((tmp_path / "results" / "quiz.json").read_text())
    assert result["dataset_revisions"] == {"lab/quiz": commit}
    assert result["n-samples"]["quiz"]["effective"] == 6
    assert len(hub.log) == asked


def test_without_it_an_offline_node_says_what_to_do_at_once(tmp_path: Path, tasks: Path) -> None:
    env = environment("http://127.0.0.1:9", tmp_path / "home")
    done = measure(tmp_path / "results", tasks, env)
    assert done.returncode == 1
    assert "quiz: its data set is not in the local cache, and the Hub cannot be" in done.stderr
    assert "run `snakemake prefetch` where there is a network" in done.stderr
    assert "Traceback" not in done.stderr
    assert "questions" not in done.stderr, "told before the model is loaded"


@pytest.mark.slow
def test_the_target_notes_what_it_brought(hub: LoopbackHub, tmp_path: Path, tasks: Path) -> None:
    project = Project(tmp_path / "own")
    project.folder.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "config" / "recipes" / "miquplus-midnight-tiny.yaml", project.recipe)
    project.configure(
        sources={
            f"resources/demo/{name}": str(REPOSITORY / "resources" / "demo" / name)
            for name in ("miqu-tiny", "midnight-tiny", "llama2-tiny")
        },
        benchmark={"tasks": [{"task": "quiz", "limit": 2}], "include_path": str(tasks)},
    )
    done = project.run("prefetch", cores=1, env=environment(hub.url, tmp_path / "home"))
    assert done.returncode == 0, done.stdout
    noted = json.loads((project.folder / "results/benchmarks/datasets.json").read_text())
    assert [row["path"] for row in noted["datasets"]] == ["lab/quiz"], done.stdout
    assert not (project.folder / "results" / "benchmarks" / "midnight-tiny").exists()
