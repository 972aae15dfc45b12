"""Names of tasks are known before anything runs, without lm-eval being imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.benchmark import task_names
from shardmerge.benchmark.task_names import check_tasks, names_in, needs_hub

FILES = {
    "a.yaml": "task: plain\ntag: one_tag  # why\n",
    "b.yaml": '"task": "quoted"\n"tag":\n  - first\n  - "second"\n',
    "c.yaml": "include: [shared]\ntask: including\ndoc_to_text: 'task: in a text'\n",
    "sub/d.yaml": "group: several\ntask:\n  - plain\n  - quoted\n",
    "e.yaml": "task: !function x.y\ntag: [flow, 'list']\n",
    "shared": "include: ../deeper_yaml\ntag: shared_tag\n",
    "../deeper_yaml": "tag: deep_tag\n",
    "unused": "tag: nobody\n",
    "f.txt": "task: no_task_file\n",
}
NAMES = {"plain", "one_tag", "quoted", "first", "second", "including", "several", "flow", "list"}
NAMES |= {"shared_tag", "deep_tag"}


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    for name, text in FILES.items():
        path = tmp_path / "tasks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "tasks"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps lm-eval's names: reading its thousands of files takes a second."""
    cache = tmp_path_factory.mktemp("known")
    check_tasks(["hellaswag"], [], cache)
    return cache


class TestNames:
    def test_of_every_way_to_write_them(self, folder: Path) -> None:
        assert names_in(folder) == NAMES

    def test_what_is_no_text_is_passed_over(self, folder: Path) -> None:
        (folder / "x.yaml").write_bytes(b"\xff\xfetask: \x00\n")
        (folder / "y.yaml").symlink_to("nowhere")
        (folder / "shared").write_text("include: c.yaml\n")
        assert names_in(folder) >= {"plain", "including"}

    @pytest.mark.slow
    def test_none_of_lm_evals_is_missed(self, tmp_path: Path) -> None:
        code = (
            "import json; from lm_eval.tasks import TaskManager; "
            "manager = TaskManager(); "
            "tasks = [e for e in manager.task_index.values() if e.cfg and 'task' in e.cfg]; "
            "print(json.dumps([e.name for e in tasks if e.cfg.get('unsafe_code')])); "
            "print(json.dumps(manager.all_tasks))"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        lines = told.stdout.splitlines()
        names = set(json.loads(lines[-1]))
        found = task_names._lm_eval_names([], cache=tmp_path)
        assert found is not None
        assert names - found.names == set()
        assert len(found.names - names) < 10
        assert found.unsafe & names >= set(told_unsafe := json.loads(lines[-2]))
        assert "mbpp" in told_unsafe and "hellaswag" not in found.unsafe


class TestCheck:
    def test_known_names_pass(self, folder: Path, tmp_path: Path) -> None:
        check_tasks(["plain", "shared_tag", "hellaswag"], [str(folder)], tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_a_misspelt_name_is_told_with_the_nearest(self, folder: Path, tmp_path: Path) -> None:
        for name, near in {"hellaswagg": "hellaswag", "severall": "several"}.items():
            with pytest.raises(UserError, match=f"no task '{name}'") as caught:
                check_tasks(["plain", name], [str(folder)], tmp_path / "cache")
            assert repr(near) in str(caught.value)

    def test_own_tasks_need_no_others(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(task_names, "_lm_eval_names", lambda *_: pytest.fail("was looked for"))
        check_tasks(["plain"], [str(folder)], tmp_path)

    def test_a_cache_that_lacks_a_name_is_made_anew(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = SimpleNamespace(submodule_search_locations=[str(folder.parent)])
        monkeypatch.setattr(task_names.importlib.util, "find_spec", lambda name: package)
        cache = tmp_path / "cache"
        check_tasks(["plain"], [], cache)
        (kept,) = cache.iterdir()
        for damaged in ('{"names": []}', '{"names": 1}', "x"):
            kept.write_text(damaged)
            check_tasks(["plain"], [], cache)
            assert "plain" in json.loads(kept.read_text())["names"]

    def test_nothing_is_said_without_lm_eval(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(task_names, "lm_eval_version", lambda: None)
        check_tasks(["hellaswagg"], [], tmp_path)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="not a folder of tasks"):
            check_tasks(["x"], [str(tmp_path / "none")], tmp_path)


UNSAFE = {
    "runs.yaml": "task: runs\nunsafe_code: true\n",
    "shared_part": "unsafe_code: yes\ntag: coding\n",
    "through.yaml": "include: shared_part\ntask: through\n",
    "tamed.yaml": "include: shared_part\ntask: tamed\nunsafe_code: false\ntag: []\n",
    "inner.yaml": "group: inner\ntask:\n  - plain\n  - task: runs\n    num_fewshot: 2\n",
    "outer.yaml": "group: outer\ntask: [inner]\n",
    "lends.yaml": "group: lends\ntask:\n- humaneval\n",
    "says.yaml": "task: says\ndoc_to_text: 'unsafe_code: true'\n# unsafe_code: true\n",
}


class TestCode:
    """What runs a model's code is known from the files, before anything runs."""

    @pytest.fixture
    def tasks(self, folder: Path) -> str:
        for name, text in UNSAFE.items():
            (folder / name).write_text(text)
        return str(folder)

    @pytest.mark.parametrize(
        "name", ["runs", "through", "coding", "inner", "outer", "lends", "mbpp", "humaneval_plus"]
    )
    def test_is_refused_in_a_sentence_unless_it_may(
        self, tasks: str, known: Path, name: str
    ) -> None:
        with pytest.raises(UserError, match=f"'{name}' runs code that the model writes") as caught:
            check_tasks(["plain", name], [tasks], known)
        assert "allow_code_execution: true" in str(caught.value)
        check_tasks(["plain", name], [tasks], known, allow_code=True)

    @pytest.mark.parametrize("name", ["plain", "several", "tamed", "says", "hellaswag"])
    def test_others_pass(self, tasks: str, known: Path, name: str) -> None:
        check_tasks([name], [tasks], known)


class TestHub:
    @pytest.mark.parametrize(
        ("text", "needed"),
        [
            ("task: t\ndataset_path: lab/quiz\n", True),
            ("task: t\ndataset_path: json\n", False),
            ("task: t\ncustom_dataset: !function x.load\n", False),
            ("task: t\ninclude: remote\n", True),
            ("group: t\ntask: [plain]\n", False),
            ("group: t\ntask:\n  - plain\n  - hellaswag\n", True),
        ],
    )
    def test_is_needed_where_a_data_set_is_there(
        self, folder: Path, text: str, needed: bool
    ) -> None:
        (folder / "remote").write_text("dataset_path: lab/quiz\n")
        (folder / "t.yaml").write_text(text)
        assert needs_hub(["plain", "t"], [str(folder)]) is needed

    def test_is_needed_by_lm_evals_own(self) -> None:
        assert needs_hub(["hellaswag"], [])
