"""What the workflow asks of Snakemake beyond what its documentation promises: all of it is here.

The version in requirements.txt is tested; with another, look here first. ``workflow`` is the object
of that name that Snakemake gives to rule files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from snakemake.target_jobs import parse_target_jobs_cli_args


def is_head(workflow: Any) -> bool:
    """Return whether this is the process that the user started, and not a job's."""
    return workflow.is_main_process


def is_deployed(workflow: Any) -> bool:
    """Return whether jobs run in environments or containers that Snakemake makes."""
    return bool(workflow.deployment_settings.deployment_method)


def is_on_cluster(workflow: Any) -> bool:
    """Return whether jobs run elsewhere: only such runs have a number of nodes, ``--jobs``."""
    return workflow.resource_settings.nodes is not None


def is_dry_run(workflow: Any) -> bool:
    """Return whether nothing is to be made, by the command line or a profile."""
    return workflow.output_settings.dryrun


def is_whole_run(workflow: Any) -> bool:
    """Return whether this process runs all jobs that the targets need.

    Known when the graph is made: what the user typed is not while rule files are read.
    """
    asked = workflow.dag_settings
    return is_head(workflow) and not (asked.until or asked.omit_from)


def is_forced(workflow: Any) -> bool:
    """Return whether jobs run that need not, known as for ``is_whole_run``.

    A job of a cluster does, in its own process.
    """
    asked = workflow.dag_settings
    return bool(asked.forceall or asked.forcetargets or asked.forcerun)


def is_target(name: str) -> bool:
    """Return whether the command line names a target."""
    return name in sys.argv[1:]


def command_line_config(workflow: Any) -> Mapping[str, Any]:
    """Return the configuration of the command line: ``--config`` and ``--configfile``."""
    return workflow.config_settings.overwrite_config


def config_files(workflow: Any) -> list[str]:
    """Return the configuration files that the command line names."""
    return [str(path) for path in workflow.overwrite_configfiles]


def target_jobs(words: Sequence[str] = ()) -> list[tuple[str, Mapping[str, str]]]:
    """Return the jobs that this process was started for, on a cluster.

    Args:
        words: Of the command line; this process's own by default.

    Returns:
        Of each the rule's name and the wildcards; nothing in the head process.
    """
    words = words or sys.argv
    if "--target-jobs" not in words:
        return []
    after = words[words.index("--target-jobs") + 1 :]
    told = parse_target_jobs_cli_args(takewhile(lambda word: not word.startswith("-"), after))
    return [(target.rulename, target.wildcards_dict) for target in told]
