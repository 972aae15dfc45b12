"""What the workflow needs of Snakemake also where another workflow imports it as a module.

An importer gets neither our profile nor our handlers, and may give our rules other names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

#: A shard's identity is the digest in its params. Where its inputs lie, and when they or the code
#: were touched, does not change it; as inputs that are there already are not asked for, Snakemake's
#: trigger `input` would even make all shards anew.
_TRIGGERS = ("mtime", "params")


def rerun_by_identity(workflow: Any) -> None:
    """Let changes of code, environment and sets of inputs make no job of this run again.

    Snakemake reads its command line's settings after our files, so that what it asks is changed and
    not what was set.

    Args:
        workflow: Snakemake's. Jobs on a cluster inherit what is asked here.
    """
    kind = type(workflow)
    asked = kind.rerun_triggers

    def triggers(self: Any) -> frozenset[Any]:
        return frozenset(t for t in asked.fget(self) if str(t) in _TRIGGERS)

    workflow.__class__ = type(kind.__name__, (kind,), {"rerun_triggers": property(triggers)})


def rule_name(workflow: Any, rule: str) -> str:
    """Return a rule's name in the workflow that runs: `use rule ... as` may have changed it.

    Args:
        workflow: Snakemake's, while our files are read.
        rule: The name in our files.
    """
    return workflow.modifier.modify_rulename(rule)


def is_asked_for(workflow: Any, rule: str) -> bool:
    """Return whether a rule is a target of the command line.

    Args:
        workflow: As for `rule_name`.
        rule: The name in our files.
    """
    return rule_name(workflow, rule) in sys.argv[1:]


def at_start(workflow: Any, begin: Callable[[], object]) -> None:
    """Call a function when jobs begin to run, before the importer's own `onstart`.

    Snakemake takes no such handler from a module, and only the last of several.

    Args:
        workflow: Snakemake's.
        begin: The function.
    """
    register, own = workflow.onstart, workflow._onstart

    def both(func: Callable[[Any], object]) -> Callable[[Any], None]:
        def start(log: Any) -> None:
            begin()
            func(log)

        return start

    def register_both(func: Callable[[Any], object]) -> None:
        register(func)
        if workflow.modifier.is_main_snakefile():
            workflow._onstart = both(func)

    workflow.onstart, workflow._onstart = register_both, both(own)
