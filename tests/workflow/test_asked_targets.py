"""Files as targets: what the plan has is made, what it does not have is told in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_cases import READER, environment
from helpers.loopback_hub import LoopbackHub
from helpers.models import llama
from helpers.pickle_cases import pickled_model
from helpers.tiny_tokenizers import WORDS, tokenized
from helpers.workflow import DEMO, DEMO_NAME, REPOSITORY, Once, Project, demo

RULES = sorted(
    name
    for path in (REPOSITORY / "rules").glob("*.smk")
    for name in re.findall(r"^(?:use rule \w+ as|rule) (\w+)", path.read_text(), re.MULTILINE)
)
#: Rules that no project here needs: only files of many megabytes are hashed by a job.
UNUSED = {"hash_source"}
#: Reads our rules and writes, of each file of each of them with wildcards, a path that the plan has
#: (null if it has none), and by wildcard what is said of a path with a strange value of it.
ASKING = """
include: {snakefile!r}

STRANGE = {{
    "shard": "model-00009-of-00009", "updates": "update-00009-of-00009",
    "factors": "factors-00009-of-00009", "delta": "delta-00009-of-00009",
    "index": "diffusion_pytorch_model", "commit": "0" * 40, "digest": "0" * 64, "hashed": "0" * 32,
}}

def write(files, making):
    from snakemake.io import strip_wildcard_constraints
    from shardmerge.base.errors import UserError
    from shardmerge.run.asked import TargetFiles, Makeable, RuleFile
    from shardmerge.run.wildcards import Wildcards
    meanings = Wildcards(TARGETS, SWEEPS, CONVERSIONS).meanings
    files = [RuleFile(file.pattern, own=True) for file in making.files]
    makers = lambda path: [(values, True) for values, _ in making.makers(path)]
    asked = TargetFiles(meanings, Makeable(makers, files, making.names))

    def told(path):
        try:
            asked.check(path)
        except UserError as error:
            return str(error)

    found = {{}}
    for rule in filter(lambda rule: rule.has_wildcards(), workflow.rules):
        made = found.setdefault(rule.name, [])
        for product in rule.products():
            file = RuleFile(strip_wildcard_constraints(str(product)), own=True)
            assert set(file.wildcards) <= set(meanings), file
            names = [name for name in meanings if name in file.wildcards]
            known, refused = {{}}, {{}}
            for place, name in enumerate(names):
                later = {{other: STRANGE.get(other, "stranger") for other in names[place:]}}
                refused[name] = told(file.path(known | later))
                values = [*meanings[name].known(known)]
                if not values:
                    break
                known[name] = values[0]
            path = next(asked._paths(file, {{}}, ""), None)
            made.append({{"path": path, "output": product in rule.output, "refused": refused}})
    Path("asked.json").write_text(json.dumps(found))

snakemake_internals.at_file_targets(workflow, write)
"""
OWN = f"""\
name: adapter
extract_lora: {{model: {DEMO}/miqu-tiny, base_model: {DEMO}/llama2-tiny, rank: 2}}
---
name: fetched
merge_method: linear
models: [{{model: org/one}}, {{model: org/two}}]
parameters: {{weight: 1}}
dtype: float16
---
name: union
merge_method: linear
models: [{{model: ./models/one}}, {{model: ./models/two}}]
parameters: {{weight: 1}}
tokenizer_source: union
dtype: float16
---
name: measured
merge_method: metagpt
base_model: {DEMO}/llama2-tiny
models: [{{model: {DEMO}/miqu-tiny}}, {{model: {DEMO}/midnight-tiny}}]
dtype: float16
---
name: by-names
merge_method: linear
models: [{{model: models/three/model.safetensors}}, {{model: models/four/model.safetensors}}]
parameters: {{weight: 1}}
dtype: float16
"""


def ask(project: Project, *targets: str, env: Any = None) -> Any:
    """Return what ASKING writes."""
    snakefile = project.folder / "Asking"
    snakefile.write_text(ASKING.format(snakefile=str(REPOSITORY / "Snakefile")))
    done = project.run("-n", "-s", str(snakefile), *targets, env=env)
    assert (project.folder / "asked.json").is_file(), done.stdout
    return json.loads((project.folder / "asked.json").read_text())


def make_everything(folder: Path) -> None:
    """Make a project of which nearly every rule has a job; write what is asked of it."""
    probes = {"text": "config/tasks/demo/text.txt", "measure": ["kl"], "characters": 1024}
    project = demo(
        folder,
        deltas="store",
        recipes=[f"config/recipes/{DEMO_NAME}.yaml", "own.yaml"],
        silence=["rope-blend", "norms-summed"],
        exports={
            "gguf": {"types": ["q8_0"], "imatrix": probes["text"]},
            "compressed": {"schemes": ["fp8-dynamic"]},
        },
        publish={"repository": "me/{name}", "sign": {"sigstore": True}, "collection": "all"},
        sweep={
            "recipe": "config/recipes/tiny-sweep.yaml",
            "space": {"weight": {"grid": [0.1, 0.2]}},
            "objectives": {"demo_B/acc": "maximize"},
        },
        benchmark={
            "tasks": ["demo_B"], "include_path": "config/tasks/demo", "models": ["merged"],
            "probes": probes,
        },
    )  # fmt: skip
    shutil.copy(REPOSITORY / "config/recipes/tiny-sweep.yaml", folder / "config/recipes")
    (folder / "own.yaml").write_text(OWN)
    for seed, name in enumerate(("one", "two")):
        llama(folder / "hub" / "org" / name, seed, layers=2)
        tokenized(folder / "models" / name, seed, WORDS, {f"<{name}>": True})
    for seed, name in enumerate(("three", "four")):
        llama(folder / "models" / name, seed, layers=2)
    with LoopbackHub(folder / "hub") as hub:
        env = environment(hub, folder / "home", READER)
        found = ask(project, "asked", env=env)
        files = [file for files in found.values() for file in files]
        # of rules that make the same only one can be asked for its log
        paths = [file["path"] for file in files if file["path"] and file["output"]]
        done = project.run("-n", *paths, env=env)
    (folder / "planned.txt").write_text(f"{done.returncode} {done.stdout}")


def make_pickled(folder: Path) -> None:
    """Make a project with pickled weights that are not converted; write what is asked of it."""
    pickled_model(folder / "models" / "old")
    recipe = "name: m\nmerge_method: linear\nmodels: [{model: ./models/old}]\ndtype: float32\n"
    project = Project(folder)
    project.recipe.write_text(recipe)
    project.configure(sources={}, allow_pickle=True)
    ask(project, "convert", "asked")


@pytest.fixture(scope="module")
def everything(once: Once) -> Project:
    return Project(once("asked-everything", make_everything))


@pytest.fixture(scope="module")
def answers(once: Once, everything: Project) -> list[dict[str, Any]]:
    folders = (everything.folder, once("asked-pickled", make_pickled))
    return [json.loads((folder / "asked.json").read_text()) for folder in folders]


@pytest.mark.parametrize("rule", RULES)
def test_strange_values_of_every_wildcard_are_told(
    rule: str, answers: list[dict[str, Any]]
) -> None:
    for files in (found.get(rule, []) for found in answers):
        for file in files:
            for name, told in file["refused"].items():
                assert told, (rule, name)
                first, *rest = told.split("\n  ")
                assert len(rest) <= 1 and "no rule" not in first, told
    used = any(file["path"] for found in answers for file in found.get(rule, ()))
    assert used or rule not in answers[0] or rule in UNUSED, "no file of it is tried"


def test_every_kind_of_file_that_the_plan_has_can_be_asked_for(everything: Project) -> None:
    status, _, said = (everything.folder / "planned.txt").read_text().partition(" ")
    assert status == "0", said[-3000:]


@pytest.mark.parametrize(
    ("target", "told", "meant"),
    [
        (
            f"results/{DEMO_NAME}/model/model-00009-of-00009.safetensors",
            "has no weight file 'model-00009-of-00009'",
            f"results/{DEMO_NAME}/model/model-00006-of-00006.safetensors",
        ),
        (
            "results/miquplus-tiny/checks/model-00001-of-00006.json",
            "there is no model 'miquplus-tiny'",
            None,
        ),
        (
            f"./results/{DEMO_NAME}/report/sumary.html",
            "no rule makes such a file",
            f"results/{DEMO_NAME}/report/summary.html",
        ),
        (
            f"results/benchmarks/{DEMO_NAME}/demo_b.json",
            "there is no task 'demo_b'",
            f"results/benchmarks/{DEMO_NAME}/demo_B.json",
        ),
        (f"results/{DEMO_NAME}/model", "is a folder", None),
        (f"results/{DEMO_NAME}/exports/work/imatrix.gguf", "not made under this config", None),
        ("modles", "there is no target 'modles'", "models"),
        (f"results/{DEMO_NAME}/exports/gguf/q8_0", "is not exported", None),
        ("results/sweeps/tried/table.json", "there is no sweep 'tried'", None),
    ],
)
def test_a_mistake_is_one_message(
    target: str, told: str, meant: str | None, once: Once, tmp_path: Path
) -> None:
    project = Project(once("asked-demo", demo)).copy(tmp_path / "demo")
    done = project.run("-n", target)
    assert done.returncode == 1
    assert done.stdout.count("error: ") == 1 and told in done.stdout, done.stdout
    for word in ("Traceback", "Exception", ".smk"):
        assert word not in done.stdout, done.stdout
    if meant:
        assert f"Did you mean {meant!r}?" in done.stdout
        assert project.run("-n", meant).returncode == 0


def test_other_spellings_of_a_path(once: Once, tmp_path: Path) -> None:
    project = Project(once("asked-demo", demo)).copy(tmp_path / "demo")
    path = f"results/{DEMO_NAME}/model/config.json"
    assert (
        project.run("-n", f"./results/../{path}", f"logs/write_config/{DEMO_NAME}.log").returncode
        == 0
    )
    done = project.run("-n", str(project.folder / path))
    assert done.returncode == 1 and f"Write {path!r}." in done.stdout, done.stdout
