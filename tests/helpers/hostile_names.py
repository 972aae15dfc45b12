"""Names that a shell would read: in a checkout's folder, in models, in settings."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from helpers.workflow import REPOSITORY, Project

#: Would make a file PWNED if a shell read it.
ATTACK = "$(touch PWNED)"
#: What a name may have, as a user's folder or as a stranger's file.
NAME = f"it's {ATTACK};touch PWNED;`touch PWNED`&|*~# \"模é"


def checkout(parent: Path) -> Path:
    """Return a copy of what runs of the repository, in a folder of such a name."""
    folder = parent / NAME
    folder.mkdir(parents=True)
    shutil.copyfile(REPOSITORY / "Snakefile", folder / "Snakefile")
    for name in ("rules", "scripts"):
        shutil.copytree(
            REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("config", "envs", "report"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


class HostileProject(Project):
    """A project that is run from a checkout of its own."""

    snakefile: Path

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake", "-s", str(self.snakefile)),
            *("--directory", str(self.folder), "--configfile", str(self.folder / "cfg.yaml")),
            *("--cores", str(cores), *arguments),
        ]


def pwned(*folders: Path) -> list[str]:
    """Return the files that an attack made, anywhere in folders and in this process's own."""
    found = [p for folder in (*folders, Path.cwd()) for p in folder.glob("PWNED*")]
    inside = [p for folder in folders for p in folder.rglob("PWNED*")]
    return sorted({os.fspath(p) for p in (*found, *inside)})


def attacked(folder: Path) -> bool:
    """Return whether an attack made files in a folder. They go, since other tests look for them."""
    made = pwned(folder)
    for path in made:
        Path(path).unlink()
    return bool(made)
