"""Names of tasks are known before anything runs, without lm-eval being imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.benchmark import task_names
from shardmerge.benchmark.task_names import check_tasks, names_in

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
            "print(json.dumps(TaskManager().all_tasks))"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        names = set(json.loads(told.stdout.splitlines()[-1]))
        found = task_names._lm_eval_names([], cache=tmp_path)
        assert found is not None
        assert names - found == set()
        assert len(found - names) < 10


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

    def test_a_cache_that_lacks_a_name_is_made_anew(self, tmp_path: Path) -> None:
        check_tasks(["hellaswag"], [], tmp_path)
        (kept,) = tmp_path.iterdir()
        for damaged in ('{"names": []}', '{"names": 1}', "x"):
            kept.write_text(damaged)
            check_tasks(["hellaswag"], [], tmp_path)
            assert "hellaswag" in json.loads(kept.read_text())["names"]

    def test_nothing_is_said_without_lm_eval(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(task_names, "lm_eval_version", lambda: None)
        check_tasks(["hellaswagg"], [], tmp_path)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="not a folder of tasks"):
            check_tasks(["x"], [str(tmp_path / "none")], tmp_path)
