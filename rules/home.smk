"""Where this workflow's own files lie, also when another workflow imports it.

Needs: nothing.
Makes: HOME, the folder above this one, and SCRIPTS, which Python then imports from. Imported from a
Git host, or from a commit of a clone, it has no folder: a copy is made beside Snakemake's own
cache of sources, once a commit.
"""

import atexit
import gc
import io
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

# What is loaded stays until the end. Looking for garbage in it took a tenth of a second here, and
# a quarter at the end.
gc.freeze()
atexit.register(gc.freeze)


def own_folder(rules):
    """Return the folder above the one of the rules, which is a source file of Snakemake's."""
    if hasattr(rules, "hosted_repo"):
        return folder_of_commit(rules.hosted_repo.repo, rules.ref)
    if hasattr(rules, "repo_path"):
        from git import Repo

        return folder_of_commit(Repo(rules.repo_path), rules.ref)
    return Path(rules.get_path_or_uri(secret_free=True)).parent


def folder_of_commit(repository, reference):
    """Return a folder with the files of a commit, made whole or not at all."""
    commit = repository.commit(reference).hexsha
    folder = workflow.source_cache_path / "shardmerge" / commit
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = tempfile.mkdtemp(dir=folder.parent)
        packed = io.BytesIO()
        repository.archive(packed, treeish=commit)
        packed.seek(0)
        with tarfile.open(fileobj=packed) as files:
            files.extractall(part, filter="data")
        try:
            os.rename(part, folder)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return folder


HOME = own_folder(workflow.current_basedir)
SCRIPTS = HOME / "scripts"
sys.path.insert(0, str(SCRIPTS))
