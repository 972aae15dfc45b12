"""Jobs do without what only Linux has, and sums without torch: each is taken away in turn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import built_model
from shardmerge.base import owner
from shardmerge.run import worker

REPO = Path(__file__).parents[3]
MASKED = REPO / "tests" / "helpers" / "masked"
MASKS = re.findall(r'^    "([\w-]+)": ', (MASKED / "sitecustomize.py").read_text(), re.MULTILINE)
#: What sharing a process takes.
SHARED = ("pidfd", "pidfd-signal", "peer", "packets")


def python(mask: str, *words: str, cwd: Path, **variables: str) -> str:
    """Run Python with features masked; stdout and stderr come back."""
    paths = os.pathsep.join(map(str, (MASKED, REPO / "scripts")))
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": paths, "MASKED": mask} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model whose first shard is merged and whose sources, plan and folder are known."""
    folder = tmp_path_factory.mktemp("built")
    before = Path.cwd()
    os.chdir(folder)
    try:
        model = built_model.build_model()
        job, _ = model.shard_with(built_model.MERGED)
        copied = next((j for j in model.build.shards if j.output != job.output), job)
    finally:
        os.chdir(before)
    return SimpleNamespace(folder=folder, jobs=(job, copied))


def test_all_features_are_masked() -> None:
    assert len(MASKS) == 16


#: What only Linux has, as code names it, and the mask that takes it away: else it is not used.
LINUX_ALONE = {
    "pidfd_open": "pidfd",
    "pidfd_send_signal": "pidfd-signal",
    "SO_PEERCRED": "peer",
    "SOCK_SEQPACKET": "packets",  # macOS has the name, and no such sockets of files
    "O_DIRECT": "direct",
    "_FICLONE": "clone",
    "fallocate": "fallocate",
    "posix_fadvise": "advice",
    "preadv": "preadv",
    "RWF_NOWAIT": "nowait",
    "mallopt": "mallopt",
    "sched_getaffinity": "affinity",
    "CLOCK_BOOTTIME": "boottime",
    "MADV_HUGEPAGE": "hugepages",
} | dict.fromkeys(
    """sched_setaffinity posix_fallocate fdatasync copy_file_range sync_file_range memfd_create
    splice sendfile eventfd signalfd inotify_init prctl prlimit setns unshare O_TMPFILE O_NOATIME
    O_PATH preadv2 pwritev2 getxattr setxattr listxattr waitid epoll P_PIDFD RLIMIT_AS
    PR_SET_PDEATHSIG MAP_POPULATE MAP_LOCKED MADV_DONTFORK""".split()
)
#: Folders that only Linux has, in texts.
LINUX_FOLDERS = {"/proc/": "proc", "/sys/": None, "/dev/shm": None, "/run/": None}


def test_what_only_linux_has_is_masked() -> None:
    """Whoever uses another such thing gives it a substitute, and a mask that shows it."""
    assert {mask for mask in LINUX_ALONE.values() if mask} <= {*MASKS}
    used = set()
    for folder in ("scripts", "tools", "plugins"):
        for path in sorted((REPO / folder).rglob("*.py")):
            with tokenize.open(path) as file:
                for token in tokenize.generate_tokens(file.readline):
                    word = token.string.strip("\"'")
                    if word in LINUX_ALONE and token.type in (tokenize.NAME, tokenize.STRING):
                        used.add((word, LINUX_ALONE[word], path.name))
                    if token.type == tokenize.STRING and not word.startswith('"'):
                        found = (f for f in LINUX_FOLDERS if word.lstrip("f\"'").startswith(f))
                        used |= {(f, LINUX_FOLDERS[f], path.name) for f in found}
    assert {word for word, _, _ in used} >= {"pidfd_open", "_FICLONE", "/proc/"}
    assert [one for one in sorted(used, key=str) if one[1] is None] == []


@pytest.mark.parametrize("mask", MASKS)
def test_a_shard_is_merged_and_checked(built: Any, mask: str, tmp_path: Path) -> None:
    for job in built.jobs:
        shard, record, check = (str(tmp_path / f"{Path(job.output).stem}.{e}") for e in "srk")
        inputs = ["--sources", *job.sources, *(["--deltas", *job.deltas] if job.deltas else [])]
        common = [f"--spec={job.digest}", f"--record={record}", *inputs]
        # told of a shared process, which it cannot have
        shared = {worker.WORKER_VARIABLE: f"{os.getpid()}-{mask}"} if mask in SHARED else {}
        script = REPO / "scripts" / "merge.py"
        python(mask, str(script), *common, f"--output={shard}", cwd=built.folder, **shared)
        script = REPO / "scripts" / "check_shard.py"
        python(mask, str(script), *common, f"--shard={shard}", f"--output={check}",
               cwd=built.folder)  # fmt: skip
        assert Path(shard).read_bytes() == (built.folder / job.output).read_bytes()


class TestProcesses:
    """Who owns a claim is told apart also without /proc."""

    CODE = (
        "import os, time\nfrom shardmerge.base import owner\n"
        "mine, first = owner.started(os.getpid()), owner.started(1)\n"
        "assert mine.isdigit() and first.isdigit() and owner.started(2**22 + 1) == ''\n"
        "assert owner.start_ticks(os.getpid()) == '' and int(mine) > 1e9\n"
        "assert abs(int(mine) - time.time()) < 60\n"
    )

    def test_started_without_proc(self, tmp_path: Path) -> None:
        python("proc", "-c", self.CODE, cwd=tmp_path)

    def test_hidden_process_of_another_is_no_dead_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With hidepid a process of another user is there, but tells nothing."""
        mine = owner.this_process("t")
        monkeypatch.setattr(owner, "started", lambda pid: "")
        monkeypatch.setattr(owner, "start_ticks", lambda pid: "")
        times = SimpleNamespace(late=10, stale=100)

        def refuse(pid: int, number: int) -> None:
            raise PermissionError

        assert owner.is_dead(mine, 0, times)
        monkeypatch.setattr(owner.os, "kill", refuse)
        assert not owner.is_dead(mine, 0, times)
