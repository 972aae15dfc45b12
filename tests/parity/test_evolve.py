"""Documents of mergekit-evolve: the space that they mean, and the recipes that numbers make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardmerge.base.errors import UserError
from shardmerge.benchmark.options import options_of
from shardmerge.command.evolving import configuration_of
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.recipe.settings import Settings, load_settings
from shardmerge.run.searching import step
from shardmerge.sweep.configured import read_sweeps
from shardmerge.sweep.dimensions import parameters_of
from shardmerge.sweep.genome import Genome
from shardmerge.sweep.opened import open_recipe
from shardmerge.sweep.space import read_space

LAYERS = 4
TIES = {"models": ["one", "two"], "merge_method": "ties", "base_model": "base"}
SLERP = {"models": ["one", "two", "three"], "merge_method": "slerp"}
GENOMES: Mapping[str, Mapping[str, Any]] = {
    "whole": TIES,
    "groups": TIES | {"layer_granularity": 2, "merge_method": "dare_ties"},
    "filters": TIES | {"filters": ["self_attn", "mlp"], "layer_granularity": 1},
    "smooth": TIES | {"smooth": True, "layer_granularity": 2, "normalize": False},
    "smooth-filters": TIES | {"smooth": True, "layer_granularity": 1, "filters": ["mlp"]},
    "smooth-whole": TIES | {"smooth": True},
    "negative": TIES | {"allow_negative_weights": True, "merge_method": "task_arithmetic"},
    "base-among-models": TIES | {"base_model": "one"},
    "linear": {"models": ["one", "two", "three"], "merge_method": "linear"},
    "slerp": SLERP | {"layer_granularity": 2},
    "slerp-tokens": SLERP | {"tokenizer_source": "union", "base_model": "two"},
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three", "base"):
        Path(name).mkdir()
        config = {"model_type": "llama", "num_hidden_layers": LAYERS}
        Path(name, "config.json").write_text(json.dumps(config))


def write(genome: Mapping[str, Any], **more: Any) -> Settings:
    document = {"genome": dict(genome), "tasks": ["t"]} | more
    Path("evolve.yaml").write_text(yaml.safe_dump(document))
    return load_settings(configuration_of("evolve.yaml"))


def opened(genome: Mapping[str, Any], **more: Any) -> tuple[Genome, Mapping[str, Any]]:
    found, config = open_recipe(write(genome, **more).sweeps[0], {})
    assert isinstance(found, Genome)
    return found, config


def drawn(genome: Genome) -> dict[str, list[float]]:
    """Return numbers that mergekit-evolve may come upon, those beyond all bounds too."""
    steps = iter(range(1000))
    return {
        name: [((37 * next(steps)) % 23 - 9) / 8 for _ in range(genome.groups)]
        for name in genome.names
    }


@pytest.mark.parametrize("name", GENOMES)
def test_a_recipe_is_that_of_mergekit_evolve(name: str) -> None:
    """The same numbers in mergekit's order: groups, models, filters, parameters."""
    evolve = pytest.importorskip("mergekit.evo.genome")
    numpy = pytest.importorskip("numpy")
    config = pytest.importorskip("mergekit.config")
    genome, _ = opened(GENOMES[name])
    values = drawn(genome)
    vector = [values[key][group] for group in range(genome.groups) for key in genome.names]

    class Theirs(evolve.ModelGenome):
        def __init__(self) -> None:
            self.definition = evolve.ModelGenomeDefinition.model_validate(GENOMES[name])
            self.num_layers = LAYERS

    theirs = Theirs().genotype_merge_config(numpy.array(vector))
    rendered = yaml.safe_load(genome.render(values))
    assert rendered.pop("name") == "evolve"
    own = config.MergeConfiguration.model_validate(rendered)
    assert _rounded(own.model_dump(mode="json")) == _rounded(theirs.model_dump(mode="json"))
    assert Theirs().initial_genotype().shape[0] == genome.groups
    if genome.method != "slerp":
        first = [n[g] for g in range(genome.groups) for n in genome.first().values()]
        assert first == pytest.approx(Theirs().initial_genotype().view(-1).tolist(), abs=1e-5)


def _rounded(value: Any) -> Any:
    """Return data with numbers to ten digits: a softmax may differ in the last one."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


@pytest.mark.parametrize("name", GENOMES)
def test_its_space_has_its_beginning_and_its_recipes_are_recipes(name: str) -> None:
    genome, config = opened(GENOMES[name])
    variables = read_space(config["space"], "space")
    assert [v.name for v in variables] == genome.names
    assert config["start"] == [genome.first()]
    assert parameters_of(variables, genome.first(), "start")
    parse_recipe(genome.render(genome.first()), "trial.yaml")


def test_a_search_asks_for_its_trials() -> None:
    pytest.importorskip("optuna")
    own = write(TIES | {"layer_granularity": 2})
    found = step(own, dry=False)["evolve"]
    assert len(found.trials) == own.sweeps[0]["parallel"]
    assert found.trials[0].values["one_weight"] == [0.5, 0.5]
    (sweep,) = read_sweeps(own)
    assert len(sweep.built) == len(found.trials)
    assert {len(yaml.safe_load(c.text)["slices"]) for c in sweep.candidates} == {2}


class TestConfiguration:
    def test_what_the_tool_does_where_nothing_is_said(self) -> None:
        own = write(TIES)
        sweep, options = own.sweeps[0], options_of(own["benchmark"])
        assert (sweep["sampler"], sweep["trials"]) == ("cmaes", 100)
        assert sweep["objectives"] == {"t/acc": "maximize"}
        told = [options.apply_chat_template, options.fewshot_as_multiturn, options.dtype]
        assert told == [True, True, "bfloat16"]

    def test_a_further_configuration_turns_the_template_off(self) -> None:
        write(TIES)
        values = configuration_of("evolve.yaml")
        values["benchmark"]["apply_chat_template"] = False
        options = options_of(load_settings(values)["benchmark"])
        assert not options.apply_chat_template and not options.fewshot_as_multiturn

    def test_tasks_with_weights_are_a_sum(self) -> None:
        tasks = [
            "a",
            {"name": "b", "weight": 0.5, "metric": "exact_match,flexible"},
            {"name": "c", "weight": -1, "metric": "word_perplexity,none"},
        ]
        own = write(TIES, tasks=tasks, limit=20, num_fewshot=2, apply_chat_template=False)
        assert own.sweeps[0]["objectives"] == {
            "a/acc": 1, "b/exact_match,flexible": 0.5, "c/word_perplexity": -1
        }  # fmt: skip
        assert [own["benchmark"][k] for k in ("limit", "num_fewshot")] == [20, 2]
        assert not options_of(own["benchmark"]).fewshot_as_multiturn
        turns = write(TIES, fewshot_as_multiturn=False)["benchmark"]
        assert options_of(turns).apply_chat_template
        assert not options_of(turns).fewshot_as_multiturn

    def test_a_space_may_be_narrowed(self) -> None:
        config = write(TIES).sweeps[0]
        narrow = {"one_weight": {"low": 0.2, "high": 0.4, "points": 1}}
        _, found = open_recipe(dict(config) | {"space": narrow}, {})
        assert found["space"]["one_weight"] == narrow["one_weight"]
        assert "two_density" in found["space"]

    def test_a_random_beginning(self) -> None:
        assert opened(TIES, random_init=True)[1]["start"] == []

    @pytest.mark.parametrize(
        ("genome", "more", "message"),
        [
            (TIES | {"merge_method": "della"}, {}, "varies no 'della'"),
            (TIES | {"base_model": None}, {}, "needs a base_model"),
            (TIES | {"layer_granularity": 3}, {}, "no multiple of layer_granularity 3"),
            (TIES | {"models": ["one", "one"]}, {}, "each is named once"),
            (SLERP | {"base_model": "base"}, {}, "no base besides"),
            (SLERP | {"smooth": True}, {}, "neither `smooth` nor `filters`"),
            (TIES | {"smoth": True}, {}, "unknown key 'smoth'"),
            (TIES | {"smooth": 1}, {}, "true or false"),
            (TIES, {"tasks": []}, "has no task"),
            (TIES, {"tasks": [{"name": "a", "weight": "much"}]}, "weight is a number"),
        ],
    )
    def test_mistakes_are_told_with_their_line(
        self, genome: Mapping[str, Any], more: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UserError, match=message) as told:
            opened(genome, **more)
        assert told.value.where and told.value.where.startswith("evolve.yaml:")
