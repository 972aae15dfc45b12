"""One run at a time on a results folder; jobs that are no longer needed end; names are checked.

Needs: nothing.
Makes: the claim on the results folder while a run lasts, and .shardmerge/run, which names the run.
"""

from types import SimpleNamespace

from shardmerge.base import claims
from shardmerge.base.pathnames import check_fetched_on_nodes, check_passed
from shardmerge.run import drive, runs


def asked_for():
    """Return names and wildcards of the jobs that this process was started for, on a cluster."""
    jobs = snakemake_internals.target_jobs()
    return [(rule, SimpleNamespace(**wildcards)) for rule, wildcards in jobs]


def is_made_meanwhile(name, w):
    """Return whether another job, of a run that was killed, has made what this one is to make."""
    getters = {"fetch_file": fetch_job, "merge_shard": shard_job, "store_delta": delta_job}
    getters["write_update"] = update_job
    jobs = {snakemake_internals.rule_name(workflow, rule): job for rule, job in getters.items()}
    return name in jobs and runs.made_meanwhile(jobs[name](w), tell)


def leave_if_replaced():
    if runs.is_replaced():
        tell("this job belongs to a run that was killed; a later run does its work")
        sys.exit(1)


def leave_if_not_needed():
    """End a cluster's job here, before Snakemake deletes what is there in its place."""
    leave_if_replaced()
    jobs = asked_for()
    if jobs and all(is_made_meanwhile(name, w) for name, w in jobs):
        tell("another job has made this meanwhile; nothing is left to do")
        sys.exit(0)
    leave_if_replaced()


def check_what_jobs_are_told():
    """Refuse names that a cluster's jobs would be told through a shell of the executor's."""
    files = {
        f"configuration file {path}": path for path in snakemake_internals.config_files(workflow)
    }
    check_passed(
        {
            "the workflow's folder": workflow.basedir,
            "shardmerge's folder": str(HOME),
            "the working folder": os.getcwd(),
            "the path of python": sys.executable,
            "configuration: results": SETTINGS["results"],
        }
        | files
    )
    if RESOURCES["fetch_on"] == "nodes":
        check_fetched_on_nodes({path: job.file for path, job in PLAN.fetches.items()})


if not HEAD:
    leave_if_not_needed()
elif other := claims.holder(runs.claim_path(SETTINGS["results"])):
    tell(f"{SETTINGS['results']} is in use: {other}")

if HEAD and not LOCAL:
    exit_on_user_error(check_what_jobs_are_told)()
    exit_on_user_error(SWEEPS.check_shared)()


def begin_run():
    exit_on_user_error(runs.begin)(SETTINGS["results"], tell)
    if SWEEPING:
        exit_on_user_error(SWEEPS.prepare)()
    if "sweep" in ASKED:
        SWEEPS.note_waits()


def end_run():
    if snakemake_internals.has_tried_all(workflow):
        drive.tell_failed()


def check_targets(files, making):
    """Refuse files as targets that no job of the plan makes."""
    from shardmerge.run.asked import TargetFiles  # seldom needed
    from shardmerge.run.wildcards import Wildcards

    asked = TargetFiles(Wildcards(TARGETS, SWEEPS, CONVERSIONS).meanings, making)
    for file in files:
        asked.check(file)


snakemake_internals.at_file_targets(workflow, exit_on_user_error(check_targets))
snakemake_internals.at_start(workflow, begin_run)
snakemake_internals.at_failure(workflow, end_run)
