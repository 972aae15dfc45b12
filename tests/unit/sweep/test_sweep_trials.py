"""Trials are planned as other models are; their weights come, go and come again the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.models import llama
from shardmerge.base import claims
from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from shardmerge.benchmark.trials import Measurement, Trial, TrialSet
from shardmerge.plan import files
from shardmerge.plan.decide import Decision, decide
from shardmerge.plan.paths import record_path
from shardmerge.recipe.settings import Settings, load_settings
from shardmerge.run.drive import JOBS_FAILED
from shardmerge.run.failing import failures
from shardmerge.run.sweeping import SweepTargets
from shardmerge.run.targets import Targets
from shardmerge.sweep import scratch, weights
from shardmerge.sweep.configured import read_sweeps, with_tasks
from shardmerge.sweep.failures import drop_weights
from shardmerge.sweep.forecast import Speeds, forecast
from shardmerge.sweep.locks import write_lock
from shardmerge.sweep.settled import identity_in, settled_data
from shardmerge.sweep.settling import Settled
from shardmerge.sweep.sweep_files import keep_sweep, load_sweep
from shardmerge.sweep.sweeps import Sweep

RECIPE = """\
merge_method: task_arithmetic
base_model: base
models:
  - model: tuned
    parameters: {weight: ${w}}
dtype: float16
"""
SWEEP: dict[str, Any] = {
    "recipe": "own.yaml",
    "space": {"w": {"grid": [0.1, 0.2, 0.3, 0.4, 0.5]}},
    "objectives": {"b/acc": "maximize"},
    "parallel": 2,
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(files.PLAN_VARIABLE, "")
    for seed, name in enumerate(("base", "tuned")):
        llama(Path(name), seed, layers=2, files=2)
    Path("own.yaml").write_text(RECIPE)
    yield tmp_path


def settings(sweep: Mapping[str, Any] = {}, **config: Any) -> Settings:
    found = load_settings({"sweep": SWEEP | sweep, **config})
    return with_tasks(found, read_sweeps(found))


def planned(own: Settings, **options: Any) -> tuple[Sweep, Decision, list[str]]:
    (sweep,) = read_sweeps(own)
    said: list[str] = []
    made = decide(own, sweep.variants(own["results"]), say=said.append, **options)
    return sweep, made, said


def built(sweep: Sweep, made: Decision, number: int) -> Path:
    """Build the weights of a trial, and return the first of its shards."""
    build = made.plan.builds[sweep.build(sweep.candidates[number].name)]
    weights.restore(build, made.plan, lambda line: None)
    return Path(build.shards[0].output)


def points(sweep: Sweep, *scores: float) -> TrialSet:
    trials = tuple(
        Trial(name=c.name, variables={}, metrics={"b/acc": Measurement(value=v)}, status="done")
        for c, v in zip(sweep.candidates, scores, strict=False)
    )
    return TrialSet(name=sweep.name, objectives={"b/acc": True}, trials=trials)


class TestPlan:
    def test_trials_are_no_models(self) -> None:
        _, made, _ = planned(settings())
        assert not made.plan.models
        assert len(made.plan.trials) == 5
        assert all(name.startswith("sweeps/own/trials/") for name in made.plan.trials)

    def test_sources_are_locked_once_beside_the_template(self) -> None:
        sweep, _, said = planned(settings())
        assert [line for line in said if line.startswith("locked")] == [
            "locked base, tuned in own.lock.json"
        ]
        write_lock(sweep, sweep.candidates[0].name, Path("trial.lock.json"))
        assert Path("trial.lock.json").read_text() == Path("own.lock.json").read_text()

    def test_warnings_of_all_are_said_once(self) -> None:
        Path("own.yaml").write_text(RECIPE.replace("weight:", "density: 0.5, weight:"))
        _, _, said = planned(settings())
        told = [line for line in said if "ignored-parameter" in line]
        assert len(told) == 1
        assert "and 4 more places" in told[0]

    def test_a_dry_run_writes_nothing(self, work: Path) -> None:
        planned(settings(), dry=True)
        assert not Path("own.lock.json").exists()
        assert not Path("results").exists()

    def test_the_winner_built_by_itself_has_the_same_jobs(self) -> None:
        sweep, made, _ = planned(settings())
        one = sweep.candidates[2]
        Path("best.yaml").write_text("# evidence\n" + one.text)
        alone = decide(load_settings({"recipes": ["best.yaml"]}), say=lambda line: None).plan
        trial = made.plan.builds[sweep.build(one.name)]
        assert [j.digest for j in alone.builds["own"].shards] == [j.digest for j in trial.shards]

    def test_names_follow_the_recipe_alone(self) -> None:
        (before,) = read_sweeps(settings())
        Path("own.yaml").write_text("# a comment\n" + RECIPE)
        space = {"space": {"w": {"choice": [0.5, 0.7, 0.1]}}}
        (after,) = read_sweeps(settings(space))
        names = {c.values["w"]: c.name for c in before.candidates}
        assert after.candidates[0].name == names[0.5]
        assert after.candidates[2].name == names[0.1]

    def test_random_numbers_are_those_of_the_other_trials(self) -> None:
        """A method's random numbers follow the document's name, which trials share."""
        (sweep,) = read_sweeps(settings())
        recipes = [variant.parse() for variant in sweep.variants("results")]
        assert {recipe.final for recipe in recipes} == {("own",)}

    def test_two_models_are_refused(self) -> None:
        Path("own.yaml").write_text(f"name: a\n{RECIPE}---\nname: b\n{RECIPE}")
        with pytest.raises(UserError, match=r"own\.yaml: makes 2 models"):
            planned(settings())

    def test_method_and_block_vary(self) -> None:
        Path("own.yaml").write_text(
            "merge_method: ${m}\nbase_model: base\nmodels:\n  - model: tuned\n"
            "    parameters: ${p}\ndtype: float16\n"
        )
        space = {
            "m": {"choice": ["task_arithmetic", "ties"]},
            "p": {"choice": [{"weight": 0.5}, {"weight": 0.3, "density": 0.5}]},
        }
        sweep, made, _ = planned(settings({"space": space}))
        assert len({tuple(j.digest for j in b.shards) for b in made.plan.trials.values()}) == 4
        assert len(sweep.candidates) == 4


class TestSweeps:
    def test_list_of_points_from_a_file(self) -> None:
        Path("points.json").write_text(json.dumps([{"w": 0.25}, {"w": 0.75}]))
        (sweep,) = read_sweeps(settings({"sampler": "list", "trials": "points.json", "space": {}}))
        assert [c.values["w"] for c in sweep.candidates] == [0.25, 0.75]

    def test_several_have_names(self) -> None:
        both = [SWEEP, SWEEP | {"name": "two"}]
        assert [s.name for s in read_sweeps(load_settings({"sweep": both}))] == ["own", "two"]
        with pytest.raises(UserError, match="two sweeps are called 'own'"):
            read_sweeps(load_settings({"sweep": [SWEEP, SWEEP]}))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"objectives": {"b": "maximize"}}, "no metric of a task"),
            ({"trials": 3}, "means nothing for a grid"),
            ({"sampler": "sobol"}, "needs a number of trials"),
            ({"sampler": "list"}, "no list of maps"),
            ({"sampler": "list", "trials": [{"v": 1}]}, "no value of 'w'"),
            ({"space": {}}, "no variable"),
            ({"space": {"w": {"grid": [1]}, "v": {"grid": [1]}}}, "not in own.yaml"),
        ],
    )
    def test_mistakes_are_told(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            read_sweeps(load_settings({"sweep": SWEEP | change}))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"objectives": {"b/acc": "max"}}, "maximize, minimize"),
            ({"spcae": {}}, "Did you mean 'space'"),
            ({"constraints": {"b/acc": "0.9"}}, "sweep.constraints"),
            ({"recipe": "-x"}, "looks like an option"),
            ({"name": "a/b"}, "no name of a file"),
            ({"name": "../x"}, "no name of a file"),
        ],
    )
    def test_schema_mistakes_are_told(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_settings({"sweep": SWEEP | change})

    def test_file_for_jobs_keeps_the_order(self) -> None:
        aims = {"z/acc": "maximize", "a/acc": "minimize"}
        (sweep,) = read_sweeps(settings({"objectives": aims}))
        path = keep_sweep(sweep)
        assert load_sweep(path) == sweep
        assert list(load_sweep(path).objectives) == ["z/acc", "a/acc"]
        Path(path).write_text(Path(path).read_text().replace("maximize", "minimize"))
        with pytest.raises(UserError, match="damaged"):
            load_sweep(path)

    def test_tasks_of_objectives_are_measured(self) -> None:
        assert settings(benchmark={"tasks": ["a"]})["benchmark"]["tasks"] == ["a", "b"]


class TestWeights:
    def test_beaten_trials_go_and_come_again_the_same(self) -> None:
        sweep, made, _ = planned(settings())
        shards = [built(sweep, made, number) for number in range(3)]
        before = shards[0].read_bytes()
        first, second, third = (c.name for c in sweep.candidates[:3])
        weights.settle(sweep, made.plan, points(sweep, 0.5), first, lambda line: None)
        assert shards[0].exists()
        weights.settle(sweep, made.plan, points(sweep, 0.5, 0.7), second, lambda line: None)
        assert not shards[0].exists()
        weights.settle(sweep, made.plan, points(sweep, 0.5, 0.7, 0.6), third, lambda line: None)
        assert [s.exists() for s in shards] == [False, True, False]
        assert built(sweep, made, 0).read_bytes() == before

    def test_what_is_not_as_we_wrote_it_stays(self) -> None:
        sweep, made, _ = planned(settings())
        shard = built(sweep, made, 0)
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        said: list[str] = []
        build = made.plan.builds[sweep.build(sweep.candidates[0].name)]
        weights.drop(build, said.append)
        assert shard.exists()
        assert "stays" in said[0]
        with pytest.raises(UserError, match="not as the job"):
            weights.restore(build, made.plan, said.append)

    def test_other_bytes_are_an_error(self) -> None:
        sweep, made, _ = planned(settings())
        shard = built(sweep, made, 0)
        shard.unlink()
        record = Path(record_path(shard))
        told = json.loads(record.read_text()) | {"sha256": hashlib.sha256().hexdigest()}
        record.write_text(json.dumps(told))
        with pytest.raises(UserError, match="otherwise than before"):
            built(sweep, made, 0)
        assert not shard.exists()

    @pytest.mark.parametrize(("keep", "kept"), [("all", 5), ("none", 0), ("best", 1)])
    def test_kept(self, keep: str, kept: int) -> None:
        sweep, made, _ = planned(settings({"keep": keep}))
        assert len(weights.kept_trials(sweep, made.plan, points(sweep, 1, 2, 3, 4, 5))) == kept

    def test_no_more_is_kept_than_there_is_room_for(self) -> None:
        own = settings({"objectives": {"b/acc": "maximize", "c/acc": "maximize"}})
        sweep, made, _ = planned(own)
        found = points(sweep, 1, 2)
        found = TrialSet(
            name="own",
            objectives={"b/acc": True, "c/acc": True},
            trials=tuple(
                Trial(
                    name=t.name, variables={}, status="done",
                    metrics=t.metrics | {"c/acc": Measurement(value=-i)},
                )
                for i, t in enumerate(found.trials)
            ),
        )  # fmt: skip
        assert len(weights.kept_trials(sweep, made.plan, found)) == 2
        size = next(iter(made.plan.trials.values())).bytes_written
        small = settings({"objectives": own.sweeps[0]["objectives"]}, disk_budget=3 * size + 1000)
        _, tight, _ = planned(small)
        assert len(weights.kept_trials(sweep, tight.plan, found)) == 1

    def test_scratch_holds_weights_until_they_are_measured(self, work: Path) -> None:
        sweep, made, _ = planned(settings({"scratch": str(work / "fast")}))
        name = sweep.candidates[0].name
        scratch.use_scratch(sweep, [name], "results")
        build = made.plan.builds[sweep.build(name)]
        model = Path(build.shards[0].output).parent
        assert model.is_symlink()
        model.parent.mkdir(exist_ok=True)
        for job in build.shards:  # as the merge job and the package's jobs do
            Path(job.output).write_bytes(b"weights")
            record = Path(record_path(job.output))
            record.parent.mkdir(exist_ok=True)
            sha256 = hashlib.sha256(b"weights").hexdigest()
            record.write_text(json.dumps({"spec": "0" * 64, "sha256": sha256, "size": 7}))
        (model / "config.json").write_text("{}")
        weights.settle(sweep, made.plan, points(sweep, 1.0), name, lambda line: None)
        assert not model.is_symlink()
        assert sorted(p.name for p in model.iterdir()) == ["config.json"]
        assert list((work / "fast").iterdir()) == []
        weights.restore(build, made.plan, lambda line: None)
        assert all(Path(job.output).is_file() for job in build.shards)


def result(model: str, score: float) -> dict[str, Any]:
    """Return what lm-eval measures of a model by one task."""
    return {
        "model_name": model,
        "requested_task": "b",
        "results": {"b": {"alias": "b", "acc,none": score, "acc_stderr,none": 0.01}},
        "configs": {"b": {"task": "b"}},
        "versions": {"b": 1.0},
        "n-shot": {"b": 0},
        "n-samples": {"b": {"original": 9, "effective": 9}},
        "higher_is_better": {"b": {"acc": True}},
        "config": {},
    }


class TestSettling:
    def settled(self, sweep: Sweep, made: Decision) -> Settled:
        """Two trials that are built and measured, the second one better."""
        known = {c.name: f"of {c.name}" for c in sweep.candidates}
        for number, score in enumerate((0.5, 0.7)):
            built(sweep, made, number)
            name = sweep.candidates[number].name
            for path in sweep.result_files("results", name, ["b"]):
                write_json(Path(path), result(name, score))
        return Settled(sweep, made.plan, "results", ["b"], known)

    def settle(self, settled: Settled, *numbers: int) -> list[bool]:
        """Settle trials; return whose weights are there."""
        names = [c.name for c in settled.sweep.candidates]
        builds = [settled.plan.builds[settled.sweep.build(name)] for name in names[:2]]
        for number in numbers:
            output = Path(settled.sweep.settled("results", names[number]))
            settled.settle(names[number], output, lambda line: None)
        return [Path(build.shards[0].output).exists() for build in builds]

    def test_a_beaten_one_goes_whichever_is_settled_first(self) -> None:
        sweep, made, _ = planned(settings())
        assert self.settle(self.settled(sweep, made), 0, 1) == [False, True]
        assert self.settle(self.settled(sweep, made), 1, 0) == [False, True]

    def test_one_that_is_to_be_reported_stays_until_it_is(self) -> None:
        sweep, made, _ = planned(settings())
        first = replace(sweep.candidates[0], reported=True)
        sweep = replace(sweep, candidates=(first, *sweep.candidates[1:]))
        settled = self.settled(sweep, made)
        assert self.settle(settled, 0, 1) == [True, True]
        for path in sweep.report_files("results", first.name, ["b"]):
            write_json(Path(path), {})
        assert self.settle(settled, 1) == [False, True]

    def test_one_that_was_built_again_stays_until_it_is_measured(self) -> None:
        """As in a run with `--forceall`: what was measured before is still there."""
        sweep, made, _ = planned(settings())
        settled = self.settled(sweep, made)
        assert self.settle(settled, 0, 1) == [False, True]
        shard = built(sweep, made, 0)
        after = Path(sweep.settled("results", sweep.candidates[0].name)).stat().st_mtime_ns + 1
        os.utime(shard, ns=(after, after))
        assert self.settle(settled, 1) == [True, True]
        assert self.settle(settled, 0) == [False, True]

    def test_scores_are_there_before_the_next_one_is_settled(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sweep, made, _ = planned(settings())
        output, seen = Path(sweep.settled("results", sweep.candidates[0].name)), []
        claimed = claims.claimed

        @contextlib.contextmanager
        def watched(path: Path, *args: Any, **options: Any) -> Iterator[None]:
            with claimed(path, *args, **options):
                yield
                if path.name == "weights":
                    seen.append(output.exists())

        settled = self.settled(sweep, made)
        monkeypatch.setattr(claims, "claimed", watched)
        self.settle(settled, 0)
        assert seen == [True]


class TestRoom:
    def test_few_at_a_time(self) -> None:
        own = settings()
        _, made, _ = planned(own)
        size = next(iter(made.plan.trials.values())).bytes_written
        assert (made.plan.room.window, made.plan.room.bytes) == (2, 3 * size)

    def test_a_budget_makes_it_fewer(self) -> None:
        _, made, _ = planned(settings())
        size = next(iter(made.plan.trials.values())).bytes_written
        _, tight, _ = planned(settings(disk_budget=2 * size + 1))
        assert tight.plan.room.window == 1
        with pytest.raises(UserError, match="too little"):
            planned(settings(disk_budget=size // 2))

    def test_forecast(self) -> None:
        sweep, made, _ = planned(settings())
        found = forecast(sweep, made.plan, "results", Speeds(merge=1e6, measure=2.0))
        assert (found.trials, found.measured) == (5, 0)
        assert found.seconds is not None
        assert found.seconds > 10


class TestTargets:
    def test_a_trial_waits_for_an_earlier_one(self) -> None:
        own = settings()
        sweep, made, _ = planned(own)
        targets = SweepTargets([sweep], Targets(own, made.plan, [sweep]), dry=False, forced=bool)
        builds = [sweep.build(c.name) for c in sweep.candidates]
        assert targets.before(builds[1]) == []
        assert targets.before(builds[2]) == [sweep.settled("results", sweep.candidates[0].name)]
        assert targets.before("a-model") == []

    def test_what_waits_for_a_failed_trial_goes_on_without_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = settings({"parallel": 2})

        def run(told: str | None) -> tuple[Sweep, SweepTargets]:
            monkeypatch.setenv(JOBS_FAILED, told or "")
            failed = failures(own, sweeping=True, dry=False)
            (sweep,) = read_sweeps(own, {}, failed)
            made = decide(own, sweep.variants(own["results"]), say=lambda line: None)
            found = SweepTargets([sweep], Targets(own, made.plan, [sweep]), dry=False, forced=bool)
            found.note_waits()
            return sweep, found

        def measure(sweep: Sweep, found: SweepTargets, number: int) -> None:
            name = sweep.candidates[number].name
            for path in (*found.results("own", name), sweep.settled("results", name)):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text(json.dumps({"identity": found.identity("own", name)}))

        def states(sweep: Sweep) -> list[str]:
            return [c.status for c in sweep.candidates]

        sweep, found = run(None)
        measure(sweep, found, 0)  # the third waited for it, and fails as the second does
        sweep, found = run("1")
        assert states(sweep) == ["done", "failed", "failed", "done", "done"]
        measure(sweep, found, 3)
        measure(sweep, found, 4)
        sweep, found = run("1")
        assert states(sweep) == ["done", "failed", "failed", "done", "done"]
        assert found.all_results("own") == [
            path for i in (0, 3, 4) for path in found.results("own", sweep.candidates[i].name)
        ]
        sweep, _ = run(None)
        assert states(sweep) == ["done"] * 5, "another run tries all again"

    def test_weights_of_a_failed_trial_go(self) -> None:
        sweep, made, _ = planned(settings())
        shard = built(sweep, made, 0)
        stranger = shard.with_name("other.safetensors")
        stranger.write_text("not ours")
        drop_weights(shard.parent, lambda line: None)
        assert (shard.exists(), stranger.exists()) == (False, True)

    def test_all_failed(self) -> None:
        own = settings()
        names = [c.name for c in read_sweeps(own)[0].candidates]
        with pytest.raises(UserError, match="no trial could be built"):
            read_sweeps(own, {}, {"own": names})

    def test_a_measured_trial_needs_no_weights(self) -> None:
        own = settings()
        sweep, made, _ = planned(own)

        def targets(forced: bool = False) -> SweepTargets:
            all_targets = Targets(own, made.plan, [sweep])
            return SweepTargets([sweep], all_targets, dry=False, forced=lambda: forced)

        name = sweep.candidates[3].name
        label = sweep.label(name)
        assert targets().measured_files(label)
        for path in targets().results("own", name):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("{}")
        told = Path(sweep.settled("results", name))
        told.parent.mkdir(parents=True, exist_ok=True)
        identity = targets().identity("own", name)
        told.write_text(json.dumps(settled_data(sweep, points(sweep, 1, 2, 3, 4), name, identity)))
        assert identity_in(told) == identity
        assert not targets().measured_files(label)
        assert targets().before(sweep.build(name)) == []
        assert targets(forced=True).measured_files(label)
        told.write_text(json.dumps({"identity": "another"}))
        assert targets().measured_files(label)

    def test_a_place_of_one_machine_is_no_scratch_disk_of_a_cluster(self) -> None:
        own = settings({"scratch": "/dev/shm/x"})
        sweep, made, _ = planned(own)
        targets = SweepTargets([sweep], Targets(own, made.plan, [sweep]), dry=True, forced=bool)
        with pytest.raises(UserError, match="jobs of a trial run on several"):
            targets.check_shared()
        for scratch_of_node in ("$TMPDIR", "/tmp", "/var/tmp/x"):
            with pytest.raises(UserError, match="place of one machine"):
                scratch.check_shared(scratch_of_node, "/shared/results")
        scratch.check_shared("/shared/fast", "/shared/results")
        scratch.check_shared("/tmp/a/x", "/tmp/a/y")  # no-machine-path: a cluster on one machine

    def test_a_scratch_disk_may_be_named_by_a_variable(
        self, work: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAST", str(work / "fast"))
        sweep, _, _ = planned(settings({"scratch": "$FAST/x"}))
        assert scratch.scratch_folder(sweep, "a", "results").parent == work / "fast" / "x"
        monkeypatch.delenv("FAST")
        with pytest.raises(UserError, match="a variable that is not set"):
            scratch.scratch_folder(sweep, "a", "results")

    def test_probes_of_a_trial_ask_its_half_and_no_more_than_its_rung(self) -> None:
        Path("text.txt").write_text("a text")
        own = settings(benchmark={"probes": {"text": "text.txt"}, "limit": 7, "models": []})
        sweep, made, _ = planned(own)
        first, *others = sweep.candidates
        narrow = replace(sweep, split=True, candidates=(replace(first, questions=9), *others))
        for probe in ("perplexity", "needle"):
            both = []
            for one in (sweep, narrow):
                targets, label = Targets(own, made.plan, [one]), one.label(first.name)
                options = targets.benchmark_job(label, probe)
                both.append((options.half, options.limit))
                both.append(targets.benchmark_identity(label, probe))
            assert both[0::2] == [(None, None), ("even", 9)]
            assert both[1] != both[3]

    def test_trials_are_not_among_models(self) -> None:
        own = settings(benchmark={"models": ["merged", "sources"]})
        sweep, made, _ = planned(own)
        targets = Targets(own, made.plan, [sweep])
        assert targets.models() == targets.tables() == targets.reports()[:0] == []
        assert sorted(targets.measured) == ["base", "tuned"]
        assert len(targets.trials) == 5


def test_no_link_is_followed_to_delete(work: Path) -> None:
    """A shard that somebody put a link in the place of is not ours."""
    sweep, made, _ = planned(settings())
    shard = built(sweep, made, 0)
    other = work / "other.safetensors"
    os.rename(shard, other)
    shard.symlink_to(other)
    weights.drop(made.plan.builds[sweep.build(sweep.candidates[0].name)], lambda line: None)
    assert other.exists()
    assert shard.is_symlink()
