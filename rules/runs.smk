"""One run at a time on a results folder, and jobs that leave when they are not needed.

Needs: nothing.
Makes: the claim on the results folder while a run lasts, and .shardmerge/run, which says which one.
"""

from itertools import takewhile
from types import SimpleNamespace

from snakemake.target_jobs import parse_target_jobs_cli_args

from shardmerge import claims, runs
from shardmerge.built import record_path


def asked_for():
    """Return names and wildcards of the jobs that this process was started for, on a cluster."""
    if "--target-jobs" not in sys.argv:
        return []
    arguments = sys.argv[sys.argv.index("--target-jobs") + 1 :]
    targets = parse_target_jobs_cli_args(takewhile(lambda a: not a.startswith("-"), arguments))
    return [(target.rulename, SimpleNamespace(**target.wildcards_dict)) for target in targets]


def is_made_meanwhile(name, w):
    """Return whether another job, of a run that was killed, has made what this one is to make."""
    if name == "fetch_file":
        job = fetch_job(w)
        return runs.made_meanwhile(
            job.output, lambda: Path(job.output).stat().st_size == job.size, say
        )
    if name in ("merge_shard", "store_delta"):
        job = shard_job(w) if name == "merge_shard" else delta_job(w)
        record = record_path(job)
        return runs.made_meanwhile(
            job.output, lambda: runs.is_made(job.output, record, job.digest), say
        )
    return False


def leave_if_replaced():
    if runs.is_replaced():
        say("this job belongs to a run that was killed; a later run does its work")
        sys.exit(1)


def leave_if_not_needed():
    """End a cluster's job here, before Snakemake deletes what is there in its place."""
    leave_if_replaced()
    jobs = asked_for()
    if jobs and all(is_made_meanwhile(name, w) for name, w in jobs):
        say("another job has made this meanwhile; nothing is left to do")
        sys.exit(0)
    leave_if_replaced()


def begin_run():
    try:
        runs.begin(SETTINGS["results"])
    except UserError as error:
        raise WorkflowError(str(error)) from None


if not workflow.is_main_process:
    leave_if_not_needed()
elif other := claims.holder(runs.claim_path(SETTINGS["results"])):
    say(f"{SETTINGS['results']} is in use: {other}")


onstart:
    begin_run()
