"""What the rules' wildcards stand for, and the values that a plan has for each.

A wildcard means the same in all rules, so that one table tells of every file whether the plan has
it. Rules with a new wildcard need a line here; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

from shardmerge.base.weightfolders import COMPONENT_INDEX, shard_name
from shardmerge.plan.decide import MODELS
from shardmerge.plan.plan import Build
from shardmerge.run.idle import GIVE_SWEEP, NAME_FORMS, NAME_TASKS
from shardmerge.run.sweeping import SweepTargets
from shardmerge.run.targets import Targets
from shardmerge.sources.pickles import Conversion

#: Values of the wildcards in a path.
PathValues = Mapping[str, str]
_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Meaning:
    """What a wildcard stands for.

    Args:
        known: Gives the values that the plan has, of those of the wildcards before it.
        unknown: Says that a value is none of them; a pattern of wildcards.
        lacking: What to do where the plan has none at all.
    """

    known: Callable[[PathValues], Collection[str]]
    unknown: str
    lacking: str | None = None


class Wildcards:
    """The wildcards of all rules.

    Args:
        targets: What the workflow makes.
        sweeps: Its sweeps.
        conversions: Of pickled weights, by folder name.
    """

    def __init__(
        self, targets: Targets, sweeps: SweepTargets, conversions: Mapping[str, Conversion]
    ) -> None:
        self._targets, self._sweeps, self._conversions = targets, sweeps, conversions

    @cached_property
    def meanings(self) -> Mapping[str, Meaning]:
        """Each wildcard, after those that its values depend on."""
        plan, targets, exports = self._targets.plan, self._targets, self._targets.exports
        return {
            "name": Meaning(lambda w: plan.builds, "there is no model {name!r} that is built"),
            "adapter": Meaning(
                lambda w: plan.adapters,
                "there is no adapter {adapter!r} that is extracted",
                "Set one up in a recipe (docs/howto/lora-out.md).",
            ),
            "form": Meaning(
                lambda w: [form.name for form in exports.forms()] if self._exported(w) else [],
                "model {name!r} is not exported to {form!r}",
                NAME_FORMS,
            ),
            "gguf": Meaning(
                lambda w: exports.variants("gguf") if self._exported(w) else [],
                "model {name!r} is not exported to the GGUF type {gguf!r}",
                NAME_FORMS,
            ),
            "scheme": Meaning(
                lambda w: exports.mirrors() if self._exported(w) else [],
                "model {name!r} is not exported to the scheme {scheme!r}",
                NAME_FORMS,
            ),
            "shard": Meaning(
                self._shards,
                "model {name!r} has no weight file {shard!r}",
            ),
            "index": Meaning(
                lambda w: [index.removesuffix(COMPONENT_INDEX) for index in self._build(w).indexes],
                "model {name!r} has no weight files that an index {index!r} would list",
            ),
            "file": Meaning(lambda w: self._build(w).files, "model {name!r} has no file {file!r}"),
            "tokenizer": Meaning(
                self._tokenizer, "no file {tokenizer!r} is written for the tokenizer of {name!r}"
            ),
            "updates": Meaning(
                lambda w: _stems(job.output for job in plan.adapters[w["adapter"]].updates),
                "adapter {adapter!r} has no file of updates {updates!r}",
            ),
            "factors": Meaning(
                lambda w: _stems(job.output for job in plan.adapters[w["adapter"]].factors),
                "adapter {adapter!r} has no file of factors {factors!r}",
            ),
            "pair": Meaning(
                lambda w: self._deltas,
                "there are no stored task vectors {pair!r}",
                "`deltas: store` stores all of them.",
            ),
            "delta": Meaning(
                lambda w: self._deltas[w["pair"]],
                "the task vectors {pair!r} have no file {delta!r}",
            ),
            "model": Meaning(
                lambda w: [*targets.measured, *targets.trials],
                "there is no model {model!r} that is measured",
                NAME_TASKS,
            ),
            "task": Meaning(
                lambda w: targets.settings["benchmark"]["tasks"],
                "there is no task {task!r} that models are measured in",
                NAME_TASKS,
            ),
            "reference": Meaning(
                lambda w: targets.references,
                "there is no model {reference!r} that others are compared with",
                "Name one: `benchmark: {probes: {against: [...]}}`.",
            ),
            "sweep": Meaning(
                lambda w: self._sweeps.sweeps, "there is no sweep {sweep!r}", GIVE_SWEEP
            ),
            "trial": Meaning(
                lambda w: [one.name for one in self._sweeps.sweeps[w["sweep"]].built],
                "sweep {sweep!r} has no trial {trial!r} that is built",
            ),
            "made": Meaning(lambda w: self._made, "no sources are made in a folder {made!r}"),
            "digest": Meaning(
                lambda w: self._made[w["made"]], "no recipe needs a source of the digest {digest!r}"
            ),
            "hashed": Meaning(
                lambda w: targets.large, "no large file of a local model has the key {hashed!r}"
            ),
            "source": Meaning(
                lambda w: self._conversions,
                "there are no pickled weights {source!r} to be converted",
            ),
            "pickle": Meaning(
                lambda w: [
                    file.removesuffix(_WEIGHTS) for file in self._conversions[w["source"]].weights
                ],
                "the pickled weights {source!r} have no file {pickle!r}",
            ),
            "repo": Meaning(lambda w: self._fetched, "no lock has a repository {repo!r}"),
            "commit": Meaning(
                lambda w: self._fetched[w["repo"]], "no lock has a commit {commit!r} of {repo!r}"
            ),
            "fetched": Meaning(
                lambda w: self._fetched[w["repo"]][w["commit"]],
                "no job needs a file {fetched!r} of {repo!r} at that commit",
            ),
        }

    def _build(self, w: PathValues) -> Build:
        return self._targets.plan.builds[w["name"]]

    def _exported(self, w: PathValues) -> bool:
        return w["name"] in self._targets.plan.loadable

    def _shards(self, w: PathValues) -> list[str]:
        jobs = self._build(w).shards
        return [shard_name(job.output).removesuffix(_WEIGHTS) for job in jobs]

    def _tokenizer(self, w: PathValues) -> list[str]:
        folder = self._targets.paths.tokenizer_file(w["name"], "")
        paths = self._build(w).files.values()
        return [path.removeprefix(folder) for path in paths if path.startswith(folder)]

    @cached_property
    def _deltas(self) -> Mapping[str, list[str]]:
        """Stems of the files of stored task vectors, by folder."""
        found: dict[str, list[str]] = {}
        for path in (PurePath(job.output) for job in self._targets.plan.deltas):
            found.setdefault(path.parent.name, []).append(path.stem)
        return found

    @cached_property
    def _made(self) -> Mapping[str, list[str]]:
        """Digests of the sources that jobs make, by folder."""
        found: dict[str, list[str]] = {}
        for digest, job in self._targets.plan.made.items():
            found.setdefault(PurePath(job.output).parent.name, []).append(digest)
        return found

    @cached_property
    def _fetched(self) -> Mapping[str, Mapping[str, list[str]]]:
        """Files that are fetched, by the folder names of repositories and by commits."""
        found: dict[str, dict[str, list[str]]] = {}
        for path in self._targets.plan.fetches:
            folder, _, file = path.removeprefix(f"{MODELS}/").partition("/")
            repo, _, commit = folder.rpartition("@")
            found.setdefault(repo, {}).setdefault(commit, []).append(file)
        return found


def _stems(paths: Iterable[str]) -> list[str]:
    return [PurePath(path).stem for path in paths]
