"""Configuration and plan: what every rule asks for.

Needs: the configuration, recipes, their locks (made here where they are missing).
Makes: SETTINGS, PLAN and TARGETS, and the getters that the rules use.
"""

import json
import os
import re
import sys
from pathlib import Path

from shardmerge.base.files import sha256_of
from shardmerge.base.pathnames import check_path
from shardmerge.base.weightfolders import COMPONENT, STEMS
from shardmerge.benchmark.samples import samples_path
from shardmerge.benchmark.options import options_of
from shardmerge.benchmark.task_names import check_tasks
from shardmerge.plan.decide import MODELS, decide, lock_paths
from shardmerge.plan.making import MADE_KINDS
from shardmerge.plan.paths import record_path
from shardmerge.recipe.benchmark_entries import lm_eval_tasks
from shardmerge.recipe.settings import explain_options, load_settings, own_config, with_shipped
from shardmerge.run import snakemake_internals, worker
from shardmerge.run.built import Built
from shardmerge.run.cli import exit_on_user_error, tell
from shardmerge.run.failing import failures
from shardmerge.run.idle import MAY_BE_IDLE, idle
from shardmerge.run.inputlists import keep_lists, list_path
from shardmerge.run.needed import check_torch
from shardmerge.run.resources import megabytes, minutes
from shardmerge.run.shellwords import shell_prefix
from shardmerge.run.sweeping import SWEEP_FILES, SweepTargets
from shardmerge.run.targets import HASHES, TASKS, Targets, fetch_options
from shardmerge.run.unfinished import present, unfinished
from shardmerge.sources.pickles import RECORD
from shardmerge.sweep.sweep_files import keep_recipes
from shardmerge.sweep.configured import read_sweeps, with_tasks

snakemake_internals.rerun_by_identity(workflow)
snakemake_internals.ask_every_job(workflow)
snakemake_internals.take_ancient_inputs_of_any_time(workflow)
snakemake_internals.leave_in_place(workflow, MODELS)
snakemake_internals.look_for_tables_without_loading_pandas(workflow)
snakemake_internals.end_at_once()
SETTINGS = exit_on_user_error(load_settings)(
    own_config(
        config, snakemake_internals.command_line_config(workflow), Path("config/config.yaml")
    )
)
SETTINGS = with_shipped(SETTINGS, HOME)
exit_on_user_error(check_path)(str(SCRIPTS), "the workflow's folder")
DEPLOYED = snakemake_internals.is_deployed(workflow)
ON_GPU = SETTINGS["device"] != "cpu"
HEAD = snakemake_internals.is_main_process(workflow)
# Merges and checks on this machine share a process that has all modules loaded; it opens no card.
SHARED = HEAD and not DEPLOYED
LOCAL = not snakemake_internals.is_on_cluster(workflow)
DRY = snakemake_internals.is_dry_run(workflow)
REPORTS = snakemake_internals.is_report()
ASKED = {
    target
    for target in ("lock", "plan", "explain", "convert", "report", "search", "all", *MAY_BE_IDLE)
    if snakemake_internals.is_target(workflow, target)
}
SHOWN = ASKED & {"lock", "plan", "explain"}
# The report alone does not wait until transformers loads the models: the summary tells what is known.
REPORT_ALONE = "report" in ASKED and "all" not in ASKED
WORKER = worker.Worker(os.getpid() if SHARED else None, expects=LOCAL and not (DRY or REPORTS))
# A trial is a recipe that is written for all to see, and planned as any other.
# A search tells what was measured and asks for more, once in a run.
SEARCHED = {}
if HEAD and "search" in ASKED:
    from shardmerge.run.searching import step  # slow to load

    SEARCHED = exit_on_user_error(step)(SETTINGS, dry=DRY)
# A sweep leaves out what failed in the run before, if it is told that jobs failed.
FAILURES = exit_on_user_error(failures)(SETTINGS, sweeping=HEAD and "sweep" in ASKED, dry=DRY)
TRIED = exit_on_user_error(read_sweeps)(SETTINGS, SEARCHED, FAILURES)
SETTINGS = with_tasks(SETTINGS, TRIED)
if HEAD and not (DRY or REPORTS):
    exit_on_user_error(keep_recipes)(TRIED, SETTINGS["results"])
DECISION = exit_on_user_error(decide)(
    SETTINGS,
    [variant for sweep in TRIED for variant in sweep.variants(SETTINGS["results"])],
    head=HEAD,
    renew=HEAD and "lock" in ASKED,
    convert="convert" in ASKED,
    dry=DRY,
    # these targets tell the plan's warnings themselves
    warn=DRY or not ASKED & {"plan", "explain"},
    # their process loads its modules meanwhile
    planning=(lambda: None) if SHOWN else WORKER.foresee,
    say=tell,
)
PLAN, CONVERSIONS = DECISION.plan, DECISION.conversions
if HEAD and not (DEPLOYED or DRY or SHOWN or REPORTS):
    exit_on_user_error(check_torch)(PLAN.torch)
SWEEPING = bool(ASKED & {"sweep", "search"})
EXPECTED = [b for b in PLAN.builds.values() if SWEEPING or not b.trial]
WORKER.expect((job.output for build in EXPECTED for job in build.shards), PLAN.torch)
TARGETS = exit_on_user_error(Targets)(SETTINGS, PLAN, TRIED)
SWEEPS = SweepTargets(
    TRIED, TARGETS, dry=DRY, forced=lambda: snakemake_internals.is_forced(workflow)
)
if HEAD and "search" in ASKED:
    exit_on_user_error(SWEEPS.note_expected)(dry=DRY)
if HEAD and not REPORTS:
    for sentence in exit_on_user_error(TARGETS.exports.check_models)():
        tell(sentence)
    for sentence in idle(ASKED, TARGETS, sweeps=bool(TRIED)):
        tell(sentence)
RESOURCES = SETTINGS["resources"]
BENCHMARK = SETTINGS["benchmark"]
GGUF = SETTINGS["exports"]["gguf"]
if HEAD and (TARGETS.measured or SWEEPS.sweeps):
    exit_on_user_error(check_tasks)(
        lm_eval_tasks(BENCHMARK),
        filter(None, [BENCHMARK["include_path"]]),
        TASKS,
        allow_code=BENCHMARK["allow_code_execution"],
    )
COPIED_FILES = {file for made in PLAN.builds.values() for file in made.files}


def names_of(builds):
    """Return a pattern of the names of builds."""
    return "|".join(re.escape(made.name) for made in builds) or "(?!)"


# Checkpoints of any kind are no models that transformers loads.
CHECKPOINTS = names_of(made for made in PLAN.builds.values() if made.checkpoint)
MODELS_ALONE = names_of(made for made in PLAN.builds.values() if not made.checkpoint)
# A weight file, less the number of a shard.
STEM = rf"({COMPONENT}/)?({'|'.join(STEMS)})"
# Sources that were fetched and task vectors stored by `auto` go when nothing needs them any more.
# `update`: else Snakemake would delete a file that another workflow has brought meanwhile.
KEPT = update if SETTINGS["keep_sources"] else temp
DELTA = temp if SETTINGS["deltas"] == "auto" else (lambda path: path)
BUILT = Built(
    PLAN,
    keep_sources=SETTINGS["keep_sources"],
    keep_deltas=SETTINGS["deltas"] != "auto",
    # asked when the graph is made: a download can wait for checks that this process runs too
    gated=lambda: snakemake_internals.is_whole_run(workflow),
    forced=lambda: snakemake_internals.is_forced(workflow),
)


# These change no result: rules give them by a param that makes nothing run again (see `listed`).
MERGE_OPTIONS = [f"--device={SETTINGS['device']}", f"--link={SETTINGS['link']}"]
FACTOR_OPTIONS = [
    f"--device={SETTINGS['device']}",
    f"--threads={RESOURCES['merge_threads']}",
]
shell.prefix(
    # A deployed environment has its own python; else it is the one that runs Snakemake.
    shell_prefix(SCRIPTS, None if DEPLOYED else Path(sys.executable).parent, WORKER.prefix)
)


pathvars:
    results=SETTINGS["results"],


wildcard_constraints:
    name="|".join(map(re.escape, PLAN.builds)) or "(?!)",
    shard=rf"{STEM}(-\d{{5}}-of-\d{{5}})?",
    adapter="|".join(map(re.escape, PLAN.adapters)) or "(?!)",
    updates=r"update(-\d{5}-of-\d{5})?",
    factors=r"factors(-\d{5}-of-\d{5})?",
    delta=r"delta(-\d{5}-of-\d{5})?",
    pair="[^/]+",
    model="[^/]+",
    reference="[^/]+",
    task="[^/]+",
    sweep="[^/]+",
    trial="[^/]+",


def wanted(files):
    """Return what a target asks for: of a report, which makes nothing, what is there."""
    return present(files) if REPORTS else files


if REPORTS:
    from shardmerge.report.opening import opening

    # the report's first page tells it
    config["lacking"] = unfinished(TARGETS)
    config["verdicts"] = exit_on_user_error(opening)(PLAN, TARGETS.paths)
    for name, lacks in config["lacking"].items():
        tell(
            f"{name} is not whole, and its report is of what is there; it lacks: {'; '.join(lacks)}"
        )


def build(w):
    return PLAN.builds[w.name]


def shard_job(w):
    return TARGETS.shard(w.name, w.shard)


def made_job(w):
    return PLAN.made[w.digest]


def delta_job(w):
    return TARGETS.delta(w.pair, w.delta)


def adapter(w):
    return PLAN.adapters[w.adapter]


def update_job(w):
    return TARGETS.update(w.adapter, w.updates)


def factor_job(w):
    return TARGETS.adapters.factors(w.adapter, w.factors)


#: Who finds the job of a shard, by the wildcard that only shards of that kind have.
JOBS = {"pair": delta_job, "updates": update_job, "shard": shard_job}


def job_of(w):
    """Return the job of an output shard, a shard of task vectors or one of updates."""
    return next(find(w) for wildcard, find in JOBS.items() if hasattr(w, wildcard))


def measured(w):
    return TARGETS.references[w.reference] if hasattr(w, "reference") else TARGETS.model(w.model)


def room_for(w):
    """Return what must be done before a shard is made, so that weights of trials find room."""
    return SWEEPS.before(w.name) if hasattr(w, "name") else []


def tasks_of(w):
    """Return the tasks that a benchmark job runs: one, or all of them."""
    return [w.task] if hasattr(w, "task") else BENCHMARK["tasks"]


def samples_of(results):
    """Return where the answers to single questions lie, beside results."""
    return [str(samples_path(path)) for path in results]


def task_options():
    """Return the options of each task, whatever model it is asked of."""
    return [options_of(BENCHMARK, task=task).to_json() for task in lm_eval_tasks(BENCHMARK)]


def measuring(w):
    """Return how a benchmark job measures its model; its tasks load it in the same way."""
    return TARGETS.benchmark_job(w.model, tasks_of(w)[0])


def environment(w, usual, **own):
    """Return the environment file of a benchmark job's backend."""
    return own.get(measuring(w).backend, usual)


def fetch_job(w):
    return PLAN.fetches[f"{MODELS}/{w.repo}@{w.commit}/{w.fetched}"]


def records(w):
    return TARGETS.records(w.name)


def delta_records(job):
    return list(map(record_path, job.deltas))


def package_files(w):
    return TARGETS.package_files(w.name)


def listed(**lists):
    """Return the file that tells a job its lists of files, written unless this is a dry run.

    A param that is made of the job's input makes nothing run again.
    """
    lists = {k: [files] if isinstance(files, str) else files for k, files in lists.items()}
    return str(list_path(lists)) if DRY else keep_lists(lists)


def shard_minutes(job, attempt):
    return minutes(job.bytes_read + job.bytes_written, RESOURCES["disk_mb_per_second"], attempt)


def benchmark_megabytes(w):
    return RESOURCES["benchmark_mem_mb"] or megabytes(2 * measured(w).size, 2000)


# Where the tools lie changes nothing that they make: a param made of the input runs nothing again.
def llama_cpp(w, input):
    return [f"--llama-cpp={SETTINGS['llama_cpp']}"] if SETTINGS["llama_cpp"] else []


def importance(w):
    """Return the importance matrix of a type, none where nothing is rounded or none is measured."""
    used = GGUF["imatrix"] and w.gguf not in ("f32", "f16", "bf16")
    return [TARGETS.paths.export(w.name, "work", "imatrix.gguf")] if used else []


def exported_shard(w):
    return TARGETS.exports.shard(w.name, w.scheme, w.shard)


VISIBILITY = [] if SETTINGS["publish"]["private"] else ["--public"]
#: Where a commit goes and what it is called.
COMMIT_OPTIONS = [
    f"--{option}={value}"
    for option, value in (
        ("revision", SETTINGS["publish"]["branch"]),
        ("tag", SETTINGS["publish"]["tag"]),
    )
    if value
]


def publish_options(w, input):
    """Return the visibility and the signature of what is published."""
    signature = [f"--signature={path}" for path in input.signature]
    return signature + VISIBILITY
