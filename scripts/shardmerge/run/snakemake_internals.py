"""What the workflow asks of Snakemake beyond what its documentation promises: all of it is here.

The version in requirements-merge.txt is tested; with another, look here first. ``workflow`` is the
object of that name that Snakemake gives to rule files. A workflow that imports this one as a module
gets neither our profile nor our handlers, and may give our rules other names.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from snakemake.io import strip_wildcard_constraints
from snakemake.target_jobs import parse_target_jobs_cli_args

if TYPE_CHECKING:
    from shardmerge.run.asked import Makeable

#: A shard's identity is the digest in its params. Where its inputs lie, and when they or the code
#: were touched, does not change it; as inputs that are there already are not asked for, Snakemake's
#: trigger `input` would even make all shards anew.
_TRIGGERS = ("mtime", "params")
#: The module whose timers nobody stops.
_SCHEDULER = "snakemake.scheduling.job_scheduler"


def is_main_process(workflow: Any) -> bool:
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
    return is_main_process(workflow) and not (asked.until or asked.omit_from)


def is_forced(workflow: Any) -> bool:
    """Return whether jobs run that need not, known as for ``is_whole_run``.

    A job of a cluster does, in its own process.
    """
    asked = workflow.dag_settings
    return bool(asked.forceall or asked.forcetargets or asked.forcerun)


def is_target(workflow: Any, rule: str) -> bool:
    """Return whether the command line names a rule of these files as a target."""
    return rule_name(workflow, rule) in sys.argv[1:]


def is_report(words: Sequence[str] = ()) -> bool:
    """Return whether nothing is run, and a report is written of what there is.

    Args:
        words: Of the command line; this process's own by default.
    """
    options = {word.partition("=")[0] for word in words or sys.argv[1:]}
    return bool(options & {"--report", "--reporter"}) and "--report-after-run" not in options


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


def ask_every_job(workflow: Any) -> None:
    """Let Snakemake ask every job whether it has a reason of its own to run.

    It does not ask those below a job that runs, as if all of them ran because of it. They do not
    where its output is there and ``ancient`` to them: then missing results stay missing, and old
    ones are kept under changed params.

    Args:
        workflow: Snakemake's, before it has a graph.
    """

    def ask(own: Any) -> None:
        own.dag.__class__ = _asking(type(own.dag))

    _once_there_is_a_graph(workflow, ask)


def take_ancient_inputs_of_any_time(workflow: Any) -> None:
    """Let a job with an ``ancient`` input end well that is newer than its output.

    Snakemake fails it and removes its output, for it takes that for a wrong clock. Another workflow
    that shares the folder of models may have touched the input meanwhile: Snakemake touches each
    output of a job that found it there.

    Args:
        workflow: Snakemake's, before it has a graph.
    """

    def take(own: Any) -> None:
        kind = type(own.dag)

        async def check_output_mtime(self: Any, job: Any, outputs: Any) -> None:
            inputs = [file for file in job.input if not file.is_ancient]
            judged = SimpleNamespace(input=inputs, rule=job.rule)
            await kind.check_output_mtime(self, judged, outputs)

        own.dag.__class__ = type(kind.__name__, (kind,), {"check_output_mtime": check_output_mtime})

    _once_there_is_a_graph(workflow, take)


def leave_in_place(workflow: Any, folder: Path) -> None:
    """Let Snakemake change nothing of files that jobs make below a folder, or find there.

    The folder may be that of other workflows too, which read those files. Of an output that is
    marked as updated Snakemake makes a copy when it is there before its job, writes that over it
    when the job fails, and makes it look newer when the job ends well. Jobs below this folder write
    whole files or none.

    Args:
        workflow: Snakemake's, before it has a graph.
        folder: As outputs name it.
    """

    def leave(own: Any) -> None:
        own.dag.__class__ = _touching_nothing(type(own.dag), folder)
        own.persistence.__class__ = _copying_nothing(type(own.persistence), folder)

    _once_there_is_a_graph(workflow, leave)


def look_for_tables_without_loading_pandas(workflow: Any) -> None:
    """Let Snakemake take no param for a table of pandas while nothing has loaded pandas.

    Where pandas is installed, Snakemake loads it to see whether a param is a table, which takes a
    third of a second.

    Args:
        workflow: Snakemake's, before it has a graph.
    """

    def look(own: Any) -> None:
        kind = type(own.persistence)
        serialize = {"_serialize_param": property(_serializer)}
        own.persistence.__class__ = type(kind.__name__, (kind,), serialize)

    _once_there_is_a_graph(workflow, look)


def at_file_targets(workflow: Any, look: Callable[[Sequence[str], Makeable], object]) -> None:
    """Call a function with the files that are targets, if there are any, before a graph is made.

    A job on a cluster has none: it is started for a rule and its wildcards.

    Args:
        workflow: Snakemake's, while one of our rule files is read: rules of that folder are ours.
        look: The function; it gets what all rules can make, too.
    """
    ours = _folder(workflow.current_basedir)

    def prepare(own: Any) -> None:
        kind = type(own.dag)

        async def init(self: Any, *args: Any, **options: Any) -> None:
            if self.targetfiles:
                look(sorted(self.targetfiles), _makeable(self, ours))
            await kind.init(self, *args, **options)

        own.dag.__class__ = type(kind.__name__, (kind,), {"init": init})

    _once_there_is_a_graph(workflow, prepare)


def _makeable(dag: Any, ours: str) -> Makeable:
    """Return what the rules of a graph can make."""
    from shardmerge.run.asked import Makeable, RuleFile  # seldom needed

    def makers(path: str) -> list[tuple[Mapping[str, str], bool]]:
        rules = dag.output_index.match_producers(path)
        return [(rule.get_wildcards(path), _folder(rule.basedir) == ours) for rule in rules]

    files = [
        RuleFile(strip_wildcard_constraints(str(file)), _folder(rule.basedir) == ours)
        for rule in dag.rules
        for file in rule.products()
    ]
    files.sort(key=lambda file: file.pattern)  # rules are a set
    return Makeable(makers, files, [rule.name for rule in dag.rules if not rule.has_wildcards()])


def _folder(place: Any) -> str:
    return place.get_path_or_uri(secret_free=True)


def _once_there_is_a_graph(workflow: Any, change: Callable[[Any], None]) -> None:
    """Change something of Snakemake's workflow as soon as it has a graph."""
    kind = type(workflow)

    def prepare(self: Any, *args: Any, **options: Any) -> None:
        kind._prepare_dag(self, *args, **options)
        change(self)

    workflow.__class__ = type(kind.__name__, (kind,), {"_prepare_dag": prepare})


def _serializer(persistence: Any) -> Callable[[Any], Any]:
    if "pandas" in sys.modules:
        return persistence._serialize_param_pandas
    return persistence._serialize_param_builtin


def _asking(kind: type[Any]) -> type[Any]:
    """Return a kind of graph that follows only what makes a job run, where it asks which do."""

    async def update_needrun(self: Any, *args: Any, **options: Any) -> None:
        self.is_asking = True
        try:
            await kind.update_needrun(self, *args, **options)
        finally:
            self.is_asking = False

    def bfs(self: Any, direction: Any, *jobs: Any, **options: Any) -> Iterator[Any]:
        if self.is_asking and direction is self.depending:
            direction = _Triggered(direction)
        return kind.bfs(self, direction, *jobs, **options)

    own = {"update_needrun": update_needrun, "bfs": bfs, "is_asking": False}
    return type(kind.__name__, (kind,), own)


def _touching_nothing(kind: type[Any], folder: Path) -> type[Any]:
    """Return a kind of graph that makes no output below a folder look newer."""

    async def check_and_touch_output(self: Any, job: Any, *args: Any, **options: Any) -> None:
        if any(Path(output).is_relative_to(folder) for output in job.output):
            options["no_touch"] = True
        await kind.check_and_touch_output(self, job, *args, **options)

    return type(kind.__name__, (kind,), {"check_and_touch_output": check_and_touch_output})


def _copying_nothing(kind: type[Any], folder: Path) -> type[Any]:
    """Return a kind of persistence that neither copies nor writes files below a folder."""

    def backup_output(self: Any, path: Path) -> None:
        if not path.is_relative_to(folder):
            kind.backup_output(self, path)

    def restore_output(self: Any, path: Path) -> bool:
        if path.is_relative_to(folder):
            return path.exists()  # what is there is whole
        return kind.restore_output(self, path)

    own = {"backup_output": backup_output, "restore_output": restore_output}
    return type(kind.__name__, (kind,), own)


class _Triggered:
    """Of the jobs that depend on a job, those that run whenever it does."""

    def __init__(self, depending: Mapping[Any, Mapping[Any, Any]]) -> None:
        self._depending = depending

    def __getitem__(self, job: Any) -> Mapping[Any, Any]:
        below = self._depending[job].items()
        return {one: files for one, files in below if not all(f.is_ancient for f in files)}


def end_at_once() -> None:
    """Let this process end when its work is done.

    The scheduler starts a timer of a second in each of its rounds, to look again whether more jobs
    may start. Nobody stops those of the last rounds, and Python waits for them.
    """
    if register := getattr(threading, "_register_atexit", None):  # before threads are waited for
        register(_stop_timers)


def _stop_timers() -> None:
    for thread in threading.enumerate():
        function = thread.function if isinstance(thread, threading.Timer) else None
        if getattr(function, "__module__", None) == _SCHEDULER:
            thread.cancel()


def rule_name(workflow: Any, rule: str) -> str:
    """Return a rule's name in the workflow that runs: `use rule ... as` may have changed it.

    Args:
        workflow: Snakemake's, while our files are read.
        rule: The name in our files.
    """
    return workflow.modifier.modify_rulename(rule)


def at_start(workflow: Any, begin: Callable[[], object]) -> None:
    """Call a function when jobs begin to run, before the importer's own `onstart`.

    Args:
        workflow: Snakemake's.
        begin: The function.
    """
    _before_handler(workflow, "onstart", begin)


def at_failure(workflow: Any, end: Callable[[], object]) -> None:
    """Call a function when jobs have run and not all ended well, before the importer's `onerror`.

    Args:
        workflow: Snakemake's.
        end: The function.
    """
    _before_handler(workflow, "onerror", end)


def has_tried_all(workflow: Any) -> bool:
    """Return whether a run with failed jobs ran all jobs that it could: nobody ended it early."""
    scheduler = workflow.scheduler
    left = scheduler.running or scheduler.open_jobs or scheduler._user_kill
    return bool(scheduler.failed) and not left


def _before_handler(workflow: Any, name: str, first: Callable[[], object]) -> None:
    """Call a function before a handler of the workflow.

    Snakemake takes no handler from a module, and only the last of several. So does this.
    """
    register, own = getattr(workflow, name), getattr(workflow, f"_{name}")

    def both(func: Callable[[Any], object]) -> Callable[[Any], None]:
        def handle(log: Any) -> None:
            first()
            func(log)

        return handle

    def register_both(func: Callable[[Any], object]) -> None:
        register(func)
        if workflow.modifier.is_main_snakefile():
            setattr(workflow, f"_{name}", both(func))

    setattr(workflow, name, register_both)
    setattr(workflow, f"_{name}", both(own))
