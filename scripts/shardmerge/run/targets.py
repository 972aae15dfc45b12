"""What the workflow makes: paths of all results, and what each job needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from shardmerge.algebra.interference import KEPT, PAIRS
from shardmerge.base.digest import canonical_json, digest
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import sha256_of
from shardmerge.base.identities import stamp_of
from shardmerge.benchmark.options import EvalOptions, options_of
from shardmerge.benchmark.probe_options import ProbeOptions, probe_options
from shardmerge.benchmark.task_names import lm_eval_version
from shardmerge.plan.files import CACHE
from shardmerge.plan.paths import CHECKSUMS, PICTURE, RECIPE, Paths, check_record_path, record_path
from shardmerge.plan.plan import Build, FetchJob, Plan, ShardJob
from shardmerge.recipe.benchmark_entries import laid_over, lm_eval_tasks, named_references
from shardmerge.recipe.naming import folder_names
from shardmerge.recipe.settings import Settings
from shardmerge.run.adapters import ADAPTER_PAGES, Adapters
from shardmerge.run.exports import Exports
from shardmerge.run.measured import Measured, folder_digest
from shardmerge.run.publishing import Publishing
from shardmerge.sweep.sweeps import REPORTED, Sweep

#: Folder of what jobs found of large local files.
HASHES = CACHE / "sources"
#: Folder of benchmark results by their identities.
RESULTS = CACHE / "benchmarks"
#: Folder of the names of lm-eval's tasks.
TASKS = CACHE / "tasks"


#: Words that stand for many models in the configuration.
_GROUPS = ("merged", "sources", "exports", "adapters")


class Targets:
    """Paths and jobs of a plan under a configuration.

    Args:
        settings: The configuration.
        plan: Its plan.
        sweeps: The sweeps that it has, whose trials are in the plan.

    Raises:
        UserError: If the configuration names a model to benchmark that is none of the plan's, or
            a reference that is not measured.
    """

    def __init__(self, settings: Settings, plan: Plan, sweeps: Sequence[Sweep] = ()) -> None:
        self.settings = settings
        self.plan = plan
        self.paths = Paths(settings["results"])
        self._shards = {j.output: j for j in plan.shards}
        self._deltas = {j.output: j for j in plan.deltas}
        self.exports = Exports(settings, plan, self.paths)
        self.exports.check()
        self.adapters = Adapters(plan, self.paths, self._whole)
        self.publishing = Publishing(settings, plan, self.paths, self.exports)
        self.publishing.check()
        self.measured = self._measured()
        self.trials = self._trials(sweeps)
        self.references = self._references()
        self.reference = self._reference()
        self._cards = self._own_cards()

    def shard(self, name: str, shard: str) -> ShardJob:
        """Return the job of an output shard by build and file stem."""
        return self._shards[self.paths.model_file(name, f"{shard}.safetensors")]

    def delta(self, pair: str, shard: str) -> ShardJob:
        """Return the job of a stored task-vector shard by folder and file stem."""
        return self._deltas[self.paths.delta(pair, f"{shard}.safetensors")]

    def update(self, name: str, update: str) -> ShardJob:
        """Return the job of a shard of updates by adapter and file stem."""
        return self._shards[self.paths.update(name, f"{update}.safetensors")]

    def adapter_card(self) -> str:
        """Return the settings of an adapter's card as JSON."""
        return canonical_json({k: v for k, v in self.settings["card"].items() if k != "models"})

    def shards(self, name: str) -> list[str]:
        """Return the paths of a build's shards."""
        return [job.output for job in self.plan.builds[name].shards]

    def records(self, name: str) -> list[str]:
        """Return the paths of what the jobs of a build's shards recorded."""
        return list(map(record_path, self.shards(name)))

    def checks(self, name: str) -> list[str]:
        """Return the paths of what the checks of a build's shards found."""
        return list(map(check_record_path, self.shards(name)))

    def deltas(self, name: str) -> list[str]:
        """Return the paths of the stored task vectors that a build reads."""
        return list(dict.fromkeys(d for job in self.plan.builds[name].shards for d in job.deltas))

    def delta_records(self, name: str) -> list[str]:
        """Return the paths of what the jobs of these task vectors recorded."""
        return list(map(record_path, self.deltas(name)))

    def delta_checks(self, name: str) -> list[str]:
        """Return the paths of what the checks of these task vectors found."""
        return list(map(check_record_path, self.deltas(name)))

    def hashes(self, name: str) -> list[str]:
        """Return what jobs find of a build's large local files, if these are to be hashed."""
        return [f"{HASHES}/{key}.json" for key in self._hashed(name)]

    def stamps(self, name: str) -> list[list[int] | None]:
        """Return the stamps of the same files."""
        return [self.stamp(key) for key in self._hashed(name)]

    def _hashed(self, name: str) -> list[str]:
        if self.settings["sources_check"] != "full":
            return []
        jobs = self.plan.builds[name].shards
        jobs += tuple(j for j in self.plan.deltas if any(j.output in job.deltas for job in jobs))
        read = {path for job in jobs for path in job.sources}
        return [key for key, (path, _) in self.large.items() if path in read]

    @cached_property
    def large(self) -> Mapping[str, tuple[str, str]]:
        """The large local files that jobs read: path and identity, by a key for file names."""
        return {digest([*pair])[:32]: pair for pair in self.plan.hashes.items()}

    def stamp(self, source: str) -> list[int] | None:
        """Return what tells that a large local file may have changed; None if it is not there."""
        try:
            return list(stamp_of(self.large[source][0]))[:-1]
        except UserError:
            return None

    def package_files(self, name: str) -> list[str]:
        """Return the model's files that are neither weights nor made from the whole model."""
        build = self.plan.builds[name]
        names = dict.fromkeys([*([] if build.checkpoint else ["config.json"]), RECIPE])
        names |= dict.fromkeys([*build.files, *build.indexes])
        return [self.paths.model_file(name, file) for file in names]

    def picture(self, name: str) -> list[str]:
        """Return the picture that a build's card shows, none if it has none."""
        shown = self.plan.builds[name].varied and self._cards[name].get("picture", True)
        return [self.paths.model_file(name, PICTURE)] if shown else []

    def models(self) -> list[str]:
        """Return what shows that every model is built, verified and summed up.

        What that follows from is among it, since Snakemake makes nothing anew that was deleted
        below what is up to date.
        """
        return [
            file for name in self.plan.models for file in self._model(name)
        ] + self.adapters.made()

    def _model(self, name: str) -> list[str]:
        made = [*self.shards(name), *self.records(name)]
        checked = [*self.checks(name), *self.delta_checks(name)]
        last = [self.paths.model_file(name, CHECKSUMS), self.paths.build(name, "verify.json")]
        return list(dict.fromkeys([*made, *checked, *self.hashes(name), *last]))

    def cards(self) -> list[str]:
        """Return what shows that every card has its benchmarks, none if nothing is measured."""
        return [path for name in self.plan.models for path in self.card_scores(name)]

    def card_scores(self, name: str) -> list[str]:
        """Return what shows that a build's card has its benchmarks, none if it gets none."""
        return [self.scored(name)] if self.measured and name in self.plan.loadable else []

    def scored(self, name: str) -> str:
        """Return what tells which benchmark results a build's card has."""
        return self.paths.benchmark_file(name, "card.json")

    def card(self, name: str) -> str:
        """Return the settings of a build's card as JSON."""
        forms, adapters = self.exports.repositories(name), self.publishing.adapters_of(name)
        beside = {"exports": forms} if forms else {}
        beside |= {"adapters": adapters} if adapters else {}
        return canonical_json(self._cards[name] | beside)

    def _own_cards(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the settings of every build's card: those of all cards under its own."""
        shared = dict(self.settings["card"])
        own, builds = shared.pop("models", {}), self.plan.models
        for name in own if builds else ():
            if name not in builds:
                raise UserError(
                    f"there is no model {name!r} that is built",
                    "configuration: card.models",
                    did_you_mean(name, builds),
                )
        return {name: shared | own.get(name, {}) for name in builds}

    def loaded(self) -> list[str]:
        """Return what shows that transformers loads every model, and peft every adapter."""
        adapters = [path for name in self.plan.adapters for path in self.adapters.loaded(name)]
        return [self._loaded(name) for name in self.plan.loadable] + adapters

    def loading(self, name: str, *, waits: bool) -> list[str]:
        """Return what tells how transformers loads a build, none if it is not there and none waits.

        Args:
            name: Of the build.
            waits: Whether it is to be made where it is not there.
        """
        if self.plan.builds[name].checkpoint:
            return []
        path = self._loaded(name)
        return [path] if waits or os.path.lexists(path) else []

    def _loaded(self, name: str) -> str:
        return self.paths.build(name, "loaded.json")

    def _measured(self) -> Mapping[str, Measured]:
        """Return the models to benchmark by label, in the order of the configuration."""
        wanted = self.settings["benchmark"]["models"]
        found: dict[str, Measured] = {}
        # without builds there is no plan yet, and nothing to compare names with
        made = self.plan.builds or self.plan.adapters
        for name in wanted if self.settings["benchmark"]["tasks"] and made else ():
            chosen = self._named(name, "models")
            options = self.settings["benchmark"]["model_options"][name]
            for model in chosen:
                one, other = options, found[model.name].options if model.name in found else {}
                # what is said of one model goes before what is said of many
                if name in _GROUPS:
                    one, other = other, one
                found[model.name] = replace(model, options=laid_over(other, one))
        # sources are measured beside what is made of them
        alone = not self.plan.builds and all(model.parent is None for model in found.values())
        return {} if alone else found

    def _named(self, name: str, key: str) -> list[Measured]:
        """Return the models that a name of the configuration stands for."""
        builds, sources = self.plan.loadable, self.plan.sources
        if name == "merged":
            return [self._merged(build) for build in builds.values()]
        if name == "sources":
            return [self._source(key) for key in sources]
        if name in builds:
            return [self._merged(builds[name])]
        if name in sources:
            return [self._source(name)]
        if name in self.plan.adapters or name == "adapters":
            adapters = {model.name: model for model in self.adapters.measured()}
            return [adapters[name]] if name in adapters else list(adapters.values())
        exports = {m.name: m for b in builds.values() for m in self.exports.measured(b)}
        if name == "exports":
            return list(exports.values())
        if name in exports:
            return [exports[name]]
        raise UserError(
            f"there is no model {name!r} to benchmark",
            f"configuration: benchmark.{key}",
            did_you_mean(name, [*_GROUPS, *builds, *sources, *exports, *self.plan.adapters]),
        )

    def _references(self) -> Mapping[str, Measured]:
        """Return the models that others' predictions are compared with, by label."""
        wanted = named_references(self.settings["benchmark"]) if self.plan.builds else ()
        models = [model for name in wanted for model in self._named(name, "probes.against")]
        return {model.name: self.measured.get(model.name, model) for model in models}

    def tables(self) -> list[str]:
        """Return the benchmark tables of all builds, none if nothing is measured."""
        return [table for name in self.plan.models for table in self.table(name)]

    def table(self, name: str) -> list[str]:
        """Return the benchmark table of a build, none if nothing is measured."""
        is_measured = self.measured and not self.plan.builds[name].checkpoint
        return [self.paths.benchmark_file(name, "table.json")] if is_measured else []

    def measurements(self, name: str) -> list[str]:
        """Return the benchmark results of a build's table: its own, sources', named builds'."""
        own = {name, *self.settings["benchmark"]["models"]}
        chosen = [
            label
            for label, model in self.measured.items()
            if label in own or (label not in self.plan.models and model.build in (None, name))
        ]
        tasks = self.settings["benchmark"]["tasks"]
        return [self.paths.benchmark_file(name, f"{m}/{t}.json") for m in chosen for t in tasks]

    def all_measurements(self) -> list[str]:
        """Return the benchmark results of all models, which those of builds are copies of."""
        tasks = self.settings["benchmark"]["tasks"]
        return [self.paths.measurement(f"{m}/{t}.json") for m in self.measured for t in tasks]

    def comparison(self) -> list[str]:
        """Return the table that compares all models, none if nothing is measured."""
        return [self.paths.measurement("table.json")] if self.measured else []

    def _reference(self) -> str | None:
        """Return the label of the model that all others are compared with, None if none is set."""
        name = self.settings["benchmark"]["reference"]
        if name is None or not self.measured:
            return None
        label = self.label(name) if name in self.plan.sources else name
        if label not in self.measured:
            raise UserError(
                f"{name!r} is no model that is measured",
                "configuration: benchmark.reference",
                did_you_mean(name, self.measured),
            )
        return label

    def reports(self) -> list[str]:
        """Return the plots and tables of every result, and the page that compares models."""
        made = [file for name in self.plan.models for file in self.report_of(name)]
        made += [file for name in self.plan.adapters for file in self.report_of_adapter(name)]
        return made + ([self.paths.measurement("compare.html")] if self.measured else [])

    def report_of_adapter(self, name: str) -> list[str]:
        """Return the plots and tables of an adapter."""
        return [self.paths.report_file(name, file) for file in ADAPTER_PAGES]

    def report_of(self, name: str) -> list[str]:
        """Return the plots and tables of a build."""
        names = ["summary.html", "plan.html", "coefficients.svg", "norms.svg", "distances.svg"]
        statistics = self.plan.builds[name].statistics
        names += ["directions.svg", "signs.svg"] if PAIRS in statistics else []
        names += ["kept.svg"] if KEPT in statistics else []
        names += ["timings.svg"]
        if not self.plan.builds[name].checkpoint:
            names += [*(["benchmarks.svg"] if self.measured else []), *self._probe_plots()]
        return [self.paths.report_file(name, file) for file in names]

    def _probe_plots(self) -> list[str]:
        """Return the plots of probes that are asked for."""
        drawn = {"kl": "divergence.svg", "needle": "needles.svg"} if self.measured else {}
        return [file for probe, file in drawn.items() if self._is_asked_probe(probe)]

    def probe_results(self, name: str, probe: str) -> list[str]:
        """Return a probe's results in the table of a build."""
        return [path for path in self.measurements(name) if path.endswith(f"/{probe}.json")]

    def benchmark_job(self, model: str, task: str) -> EvalOptions:
        """Return how a model is measured in a task."""
        measured = self.model(model)
        if self._is_probe(task):
            return self._probed_as(measured)
        options = options_of(self.settings["benchmark"], measured.options, task)
        return measured.narrowed(options)

    def model(self, label: str) -> Measured:
        """Return a model to benchmark, or a trial of a sweep, by its label."""
        return self.measured.get(label) or self.trials[label]

    def benchmark_identity(self, model: str, task: str) -> str:
        """Return the digest of all that determines a benchmark's result."""
        measured = self.model(model)
        if self._is_probe(task):
            asked = self._probed_as(measured)
            return digest([self._probed(measured, task, asked), self._compared(model, task)])
        options = self.benchmark_job(model, task).identity()
        parts = [measured.identity, task, options, self._tasks, lm_eval_version()]
        return digest(parts)

    def benchmark_beside(self, model: str) -> list[str]:
        """Return the options that name folders of a tokenizer or an adapter beside a model's."""
        measured = self.model(model)
        folders = {"tokenizer": measured.tokenizer, "adapter": measured.adapter}
        if laid_over(self.settings["benchmark"], measured.options)["backend"] == "llama_cpp":
            folders["llama-cpp"] = self.settings["llama_cpp"]
        return [f"--{option}={folder}" for option, folder in folders.items() if folder]

    def derived(self) -> dict[str, str]:
        """Return the model that each export and adapter is made of, of those that are measured."""
        pairs = {label: model.parent for label, model in self.measured.items()}
        return {label: parent for label, parent in pairs.items() if parent in self.measured}

    @cached_property
    def probes(self) -> ProbeOptions | None:
        """How models are probed, None if they are not."""
        benchmark = self.settings["benchmark"]
        return probe_options(benchmark) if benchmark["probes"]["text"] else None

    def probe_lists(self, model: str, tasks: Sequence[str]) -> dict[str, list[str]]:
        """Return what a benchmark job is told of probes, by option; nothing if it has none."""
        if self.probes is None or not any(map(self._is_probe, tasks)):
            return {}
        logits = {"logits": self.logits(model, tasks)}
        return {"probes": [self.probes.to_json()]} | {k: v for k, v in logits.items() if v}

    def logits(self, model: str, tasks: Sequence[str]) -> list[str]:
        """Return the files that a benchmark job of a model compares its predictions with.

        A result that is stored needs none, so that they are not made again for one more model.
        """
        todo = [t for t in tasks if not self._stored(model, t)]
        others = [other for task in todo for other in self._compared(model, task)]
        return [self.paths.measurement(f"{other}/logits.safetensors") for other in others]

    def _stored(self, model: str, task: str) -> bool:
        return (RESULTS / f"{self.benchmark_identity(model, task)}.json").exists()

    def logits_job(self, model: str) -> EvalOptions:
        """Return how a model is loaded that others are compared with."""
        return self._loaded_as(self.references[model])

    def logits_identity(self, model: str) -> str:
        """Return the digest of all that determines what such a model predicts."""
        own = self.references[model]
        return self._probed(own, "kl", self._loaded_as(own))

    def _is_probe(self, task: str) -> bool:
        return task not in lm_eval_tasks(self.settings["benchmark"])

    def _is_asked_probe(self, probe: str) -> bool:
        return probe in self.settings["benchmark"]["tasks"] and self._is_probe(probe)

    def _compared(self, model: str, task: str) -> dict[str, str]:
        """Return the others that a model is compared with, with their identities."""
        if not self._is_probe(task) or task != "kl":
            return {}
        return {name: self.logits_identity(name) for name in self.references if name != model}

    def _loaded_as(self, model: Measured) -> EvalOptions:
        options = options_of(self.settings["benchmark"], model.options)
        return EvalOptions(**options.model_options)

    def _probed_as(self, model: Measured) -> EvalOptions:
        """Return how a model is probed: `limit` counts questions of tasks, so that it has none."""
        half = options_of(self.settings["benchmark"], model.options).half
        return model.narrowed(replace(self._loaded_as(model), half=half))

    def _probed(self, model: Measured, probe: str, options: EvalOptions) -> str:
        asked = self.probes.identity(probe) if self.probes else None
        return digest([model.identity, probe, asked, self._text, options.identity()])

    @cached_property
    def _text(self) -> str | None:
        """Hash of the text that models are probed with."""
        return sha256_of(self.probes.text) if self.probes else None

    @cached_property
    def _tasks(self) -> str | None:
        """Digest of the user's task files, so that an edited one runs again."""
        return folder_digest(self.settings["benchmark"]["include_path"])

    def benchmark_options(self) -> list[str]:
        """Return the command-line options that all benchmark jobs share."""
        folder = self.settings["benchmark"]["include_path"]
        return [f"--include-path={folder}"] if folder else []

    def label(self, key: str) -> str:
        """Return the name of the folder of a source's results."""
        return folder_names(self.plan.sources, self.plan.models)[key]

    def _trials(self, sweeps: Sequence[Sweep]) -> Mapping[str, Measured]:
        """Return the trials of sweeps to benchmark by label."""
        builds = self.plan.builds
        # a trial is measured as what is built from recipes
        options = self.settings["benchmark"]["model_options"].get("merged", {})
        found = {}
        for sweep in sweeps if builds else ():
            for one in sweep.built:
                build = builds[sweep.build(one.name)]
                if build.checkpoint:
                    raise UserError(
                        "merges checkpoints by the names of their tensors, and lm-eval measures "
                        "none of these",
                        sweep.recipe,
                        "Sweep over models, each a folder or repository with a config.json.",
                    )
                label, other = sweep.label(one.name), sweep.report_label(one.name)
                made = replace(self._merged(build, label), options=options, half=sweep.half)
                found[label] = replace(made, questions=one.questions)
                if one.reported:
                    found[other] = replace(made, name=other, half=REPORTED)
        return found

    def _merged(self, build: Build, label: str | None = None) -> Measured:
        return Measured(
            name=label or build.name,
            folder=self.paths.model(build.name),
            files=(*self.shards(build.name), *self.package_files(build.name)),
            identity=digest([build.digest, [job.digest for job in build.shards]]),
            size=build.bytes_written,
        )

    def _whole(self, name: str) -> Measured | None:
        """Return the whole model that a reference or a document's name stands for, or None."""
        if name in self.plan.models:
            return self._merged(self.plan.models[name])
        return self._source(name) if name in self.plan.sources else None

    def _source(self, key: str) -> Measured:
        model = self.plan.sources[key]
        return Measured(self.label(key), model.folder, model.files, model.identity, model.size)


def fetch_options(job: FetchJob) -> list[str]:
    """Return what fetch.py is told of a file: where it is and what it must be."""
    content = f"--sha256={job.sha256}" if job.sha256 else f"--git-oid={job.git_oid}"
    file = [f"--repo={job.repo}", f"--commit={job.commit}", f"--name={job.file}"]
    return [*file, f"--size={job.size}", content]
