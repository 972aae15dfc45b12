"""What a plan costs on a cluster: its jobs laid on nodes, by their bytes and the queue's overhead.

List scheduling in the order of the plan, as a queue that is first come, first served: a submission
whose inputs are there takes the first free place. Submissions that run on a node share its rate,
and all together share the file system's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shardmerge.plan.plan import Plan


@dataclass(frozen=True)
class Site:
    """A cluster.

    Args:
        nodes: How many.
        places: Submissions that run on a node at the same time.
        node_rate: Bytes a second that a node moves to and from the file system.
        shared_rate: Bytes a second that all nodes together move at most.
        start: Seconds from a free place to the first byte: the batch system's and Snakemake's.
        short: Seconds of a short job's own work (checks, index, card).
        queue: Seconds that a submission waits although places are free.
        poll, poll_step, poll_most: Seconds between two questions for the jobs' states: at first,
            added each time no job had ended, and at most.
    """

    nodes: int
    places: int = 1
    node_rate: float = 500e6
    shared_rate: float = float("inf")
    start: float = 10
    short: float = 5
    queue: float = 0
    poll: float = 60
    poll_step: float = 10
    poll_most: float = 180


@dataclass(frozen=True)
class Grouping:
    """How many jobs of a kind share a submission.

    Args:
        merges: Merges, task vectors too.
        checks: Checks of shards.
        rest: Whether package, summary and report are one submission each, or one for each job.
    """

    merges: int = 1
    checks: int = 1
    rest: bool = False


@dataclass
class Submission:
    """What is submitted at once: a job or a group of jobs that run side by side.

    Args:
        kind: The rule, or the group.
        jobs: Jobs in it.
        moved: Bytes that it reads and writes.
        steps: Short jobs that run in it one after another.
        needs: Indices of the submissions that must have ended.
    """

    kind: str
    jobs: int
    moved: int
    steps: int
    needs: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a simulation found.

    Args:
        seconds: From the first submission until the head knows that the last job ended.
        merged: Seconds until the last shard was there.
        submissions: How many there were.
        most_moved: Bytes that the busiest node moved.
        idle: Share of the nodes' time until ``merged`` in which they moved nothing.
    """

    seconds: float
    merged: float
    submissions: int
    most_moved: int
    idle: float


#: Jobs of a model's package and summary, without its copied files, and of its report; verify.
_PACKAGE, _SUMMARY, _REPORT = 2, 3, 4


def submissions(plan: Plan, grouping: Grouping) -> list[Submission]:
    """Return what a plan's jobs are submitted as, sources being there already.

    Args:
        plan: The plan.
        grouping: Which jobs share a submission.
    """
    made: list[Submission] = []
    where: dict[str, int] = {}

    def add(kind: str, jobs: int, moved: int, steps: int, needs: Sequence[int] = ()) -> int:
        made.append(Submission(kind, jobs, moved, steps, sorted(set(needs))))
        return len(made) - 1

    def spread(kind: str, count: int, needs: Sequence[int], steps: int = 1) -> list[int]:
        if grouping.rest:
            return [add(kind, count, 0, steps, needs)]
        return [add(kind, 1, 0, 1, needs) for _ in range(count)]

    for kind, jobs in [
        ("delta", plan.deltas),
        *(("merge", b.shards) for b in plan.builds.values()),
    ]:
        for group in _cut(jobs, grouping.merges):
            moved = sum(job.bytes_read + job.bytes_written for job in group)
            needs = [where[delta] for job in group for delta in job.deltas]
            number = add(kind, len(group), moved, 0, needs)
            where |= {job.output: number for job in group}
    for build in plan.builds.values():
        shards = [where[job.output] for job in build.shards]
        package = spread("package", _PACKAGE + len(build.files) - 1, [])
        checks = [
            add("check", len(group), 0, 1, [where[job.output] for job in group])
            for group in _cut(build.shards, grouping.checks)
        ]
        verify = add("verify", 1, 0, 1, [*shards, *package, *checks])
        add("load", 1, 0, 1, [verify])
        if grouping.rest:
            add("summary", _SUMMARY, 0, _SUMMARY, [verify])
        else:  # card, then provenance, then checksums
            last = add("summary", 1, 0, 1)
            for _ in range(_SUMMARY - 1):
                last = add("summary", 1, 0, 1, [verify, last])
        spread("report", _REPORT, shards)
    return made


def simulate(work: Sequence[Submission], site: Site) -> Outcome:
    """Return what it takes to carry submissions out at a site.

    Args:
        work: From ``submissions``; an earlier one has the right of way.
        site: The cluster.
    """
    waiting = dict(enumerate(work))
    known: set[int] = set()  # the head knows that these have ended
    ended: set[int] = set()
    queued: dict[int, float] = {}  # from when each may start
    running: dict[int, _Running] = {}
    free = [site.places] * site.nodes
    moved = [0] * site.nodes
    now = merged = busy = 0.0
    interval, next_poll = site.poll, site.poll

    def submit() -> None:
        for number, item in list(waiting.items()):
            if known.issuperset(item.needs):
                queued[number] = now + site.queue
                del waiting[number]

    submit()
    while len(known) < len(work):
        for number in [n for n, ready in queued.items() if ready <= now]:
            node = max(range(site.nodes), key=lambda n: (free[n], -moved[n], -n))
            if not free[node]:
                break
            del queued[number]
            free[node] -= 1
            moved[node] += work[number].moved
            item = work[number]
            running[number] = _Running(node, site.start + item.steps * site.short, item.moved)
        rates = _rates(running, site)
        step = min(
            next_poll - now,
            *(job.left_of_step(rates[number]) for number, job in running.items()),
            *(ready - now for ready in queued.values() if ready > now),
            float("inf"),
        )
        now += step
        busy += step * len({job.node for job in running.values() if not job.fixed and job.bytes})
        for number, job in list(running.items()):
            job.go_on(step, rates[number])
            if job.is_over:
                del running[number]
                free[job.node] += 1
                ended.add(number)
                if work[number].kind in ("merge", "delta"):
                    merged = now
        if now >= next_poll - 1e-9:
            news = ended - known
            interval = site.poll if news else min(interval + site.poll_step, site.poll_most)
            next_poll = now + interval
            known |= ended
            submit()
    idle = 1 - busy / (site.nodes * merged) if merged else 0.0
    return Outcome(now, merged, len(work), max(moved), idle)


@dataclass
class _Running:
    node: int
    fixed: float
    bytes: float

    @property
    def is_over(self) -> bool:
        return self.fixed <= 1e-9 and self.bytes <= 1e-3

    def left_of_step(self, rate: float) -> float:
        return self.fixed if self.fixed > 1e-9 else self.bytes / rate

    def go_on(self, seconds: float, rate: float) -> None:
        if self.fixed > 1e-9:
            self.fixed -= seconds
        else:
            self.bytes -= seconds * rate


def _rates(running: dict[int, _Running], site: Site) -> dict[int, float]:
    """Return the bytes a second of each running submission; those that move none get any rate."""
    movers = [job for job in running.values() if job.fixed <= 1e-9 and job.bytes > 0]
    each = site.shared_rate / max(1, len({job.node for job in movers}))
    node_rate = min(site.node_rate, each)
    on_node = {job.node: 0 for job in movers}
    for job in movers:
        on_node[job.node] += 1
    return {n: node_rate / max(1, on_node.get(job.node, 1)) for n, job in running.items()}


def _cut(jobs: Sequence, size: int) -> list[Sequence]:
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]
