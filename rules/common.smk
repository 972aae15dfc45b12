"""Configuration and plan: what every rule asks for.

Needs: the configuration, recipes, their locks (made here where they are missing).
Makes: SETTINGS, PLAN and TARGETS, and the getters that the rules use.
"""

import json
import os
import re
import sys
from functools import wraps
from pathlib import Path

SCRIPTS = Path(workflow.basedir) / "scripts"
sys.path.insert(0, str(SCRIPTS))

from shardmerge.built import Built
from shardmerge.describe import MODEL_FILES
from shardmerge.errors import UserError
from shardmerge.pickles import RECORD
from shardmerge.plan import NO_PLAN
from shardmerge.planning import MODELS, load_conversions, load_plan, lock_paths, plan_path
from shardmerge.settings import explain_options, load_settings, own_config
from shardmerge.targets import Targets
from shardmerge.tokenizer.packing import TOKENIZER_FILES


def say(line):
    """Print one line for the user (to stderr, so that listings stay clean)."""
    print(f"shardmerge: {line}", file=sys.stderr)


def plainly(function):
    """Return the function, made to end the run with a user's mistake and nothing around it.

    Snakemake would put its own words, a file of ours and a line of it before the message.
    """

    @wraps(function)
    def call(*args):
        try:
            return function(*args)
        except UserError as error:
            sys.exit(f"error: {error}")

    return call


@plainly
def decide():
    """Return settings, plan and targets."""
    given = workflow.config_settings.overwrite_config
    settings = load_settings(own_config(config, given, Path("config/config.yaml")))
    head = workflow.is_main_process
    renew = head and "lock" in sys.argv[1:]
    conversions = load_conversions(settings, alone=not head or "convert" in sys.argv[1:])
    if not all(conversion.done for conversion in conversions.values()):
        return settings, NO_PLAN, Targets(settings, NO_PLAN), conversions
    plan = load_plan(settings, head=head, renew=renew, say=say)
    targets = Targets(settings, plan)
    targets.measured  # tells a model that there is not
    return settings, plan, targets, conversions


SETTINGS, PLAN, TARGETS, CONVERSIONS = decide()
PLAN_FILE = plan_path(SETTINGS)
RESOURCES = SETTINGS["resources"]
BENCHMARK = SETTINGS["benchmark"]
DEPLOYED = workflow.deployment_settings.deployment_method
ON_GPU = SETTINGS["device"] != "cpu"
COPIED_FILES = (*MODEL_FILES, *TOKENIZER_FILES)
# Sources that were fetched and task vectors stored by `auto` go when nothing needs them any more.
# `update`: else Snakemake would delete a file that another workflow has brought meanwhile.
KEPT = update if SETTINGS["keep_sources"] else temp
DELTA = temp if SETTINGS["deltas"] == "auto" else (lambda path: path)
BUILT = Built(
    PLAN,
    keep_sources=SETTINGS["keep_sources"],
    keep_deltas=SETTINGS["deltas"] != "auto",
    gated=lambda: is_whole_run(),
    forced=lambda: is_forced(),
)


# Merges and checks on this machine share one process that has torch loaded (shardmerge/worker.py).
ALONE = DEPLOYED or ON_GPU or not workflow.is_main_process or workflow.non_local_exec
WORKER = "" if ALONE else f"export SHARDMERGE_WORKER={os.getpid()}; "


# What does not change a result is kept out of params: it goes to the jobs' shell.
shell.prefix(
    f"set -euo pipefail; export SCRIPTS='{SCRIPTS}'"
    f" MERGE_OPTIONS='--device {SETTINGS['device']} --link {SETTINGS['link']}'; {WORKER}"
    # A deployed environment has its own python; else it is the one that runs Snakemake.
    + ("" if DEPLOYED else f"export PATH='{Path(sys.executable).parent}':\"$PATH\"; ")
)


pathvars:
    results=SETTINGS["results"],


wildcard_constraints:
    name="|".join(map(re.escape, PLAN.builds)),
    shard=r"model(-\d{5}-of-\d{5})?",
    delta=r"delta(-\d{5}-of-\d{5})?",
    pair="[^/]+",
    model="[^/]+",
    task="[^/]+",


# Both are asked when the graph is made: what the user typed is not known while this is read.
def is_whole_run():
    """Return whether this process runs checks too, so that a download can wait for them."""
    asked = workflow.dag_settings
    return workflow.is_main_process and not (asked.until or asked.omit_from)


def is_forced():
    """Return whether jobs run that need not (a job of a cluster does, in its own process)."""
    asked = workflow.dag_settings
    return bool(asked.forceall or asked.forcetargets or asked.forcerun)


def build(w):
    return PLAN.builds[w.name]


def shard_job(w):
    return TARGETS.shard(w.name, w.shard)


def delta_job(w):
    return TARGETS.delta(w.pair, w.delta)


def measured(w):
    return TARGETS.measured[w.model]


def fetch_job(w):
    return PLAN.fetches[f"{MODELS}/{w.repo}@{w.commit}/{w.file}"]


def fetch_arguments(w):
    """Return what fetch.py is told of a file: where it is and what it must be."""
    job = fetch_job(w)
    content = f"--sha256 {job.sha256}" if job.sha256 else f"--git-oid {job.git_oid}"
    file = f"--repo {job.repo} --commit {job.commit} --file '{job.file}'"
    return f"{file} --size {job.size} {content}"


def records(w):
    return TARGETS.per_shard(w.name, "records")


def package_files(w):
    return TARGETS.package_files(w.name)


def megabytes(count, spare=0):
    """Return bytes as whole megabytes for a resource."""
    return max(1, -(-count // 1_000_000)) + spare


def minutes(count, megabytes_per_second, attempt):
    """Return the run time to ask for when so many bytes must move; more on every attempt."""
    return attempt * (5 + int(count / megabytes_per_second / 60e6))


def shard_minutes(job, attempt):
    return minutes(job.bytes_read + job.bytes_written, RESOURCES["disk_mb_per_second"], attempt)


def benchmark_megabytes(w):
    if RESOURCES["benchmark_mem_mb"]:
        return RESOURCES["benchmark_mem_mb"]
    return megabytes(2 * measured(w).size, 2000)
