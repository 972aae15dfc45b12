"""Snakemake with its questions for jobs' states a second apart: for tests, not for a real cluster.

The executor adds 10 s to its interval after every question on which no job had ended.
"""

import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, _: None)
sys.argv[0] = "snakemake"
main()
