"""The demo as it is shipped: models, questions, recipes."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardmerge.base.safetensors import read_header
from shardmerge.compose.architecture.norms import is_scale
from shardmerge.recipe.settings import load_settings
from tools.demo import skills

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "resources" / "demo"
TASKS = ROOT / "config" / "tasks" / "demo"
RECIPES = ROOT / "config" / "recipes"
FILES = {
    "llama2-tiny": 8,
    "midnight-tiny": 5,
    "miqu-tiny": 6,
    "stranger-tiny": 4,
    "midnight-norms-tiny": 5,
    "miqu-smooth-tiny": 7,
}
FLAGSHIP = {
    "meta-llama/Llama-2-70b-hf": "resources/demo/llama2-tiny",
    "152334H/miqu-1-70b-sf": "resources/demo/miqu-tiny",
    "sophosympatheia/Midnight-Rose-70B-v2.0.3": "resources/demo/midnight-tiny",
    "miquplus-midnight-70b": "miquplus-midnight-tiny",
}


def config(name: Any) -> Any:
    return json.loads((MODELS / name / "config.json").read_text())


def weight_map(name: Any) -> Any:
    return json.loads((MODELS / name / "model.safetensors.index.json").read_text())["weight_map"]


def headers(name: Any) -> dict[Any, Any]:
    files = sorted((MODELS / name).glob("*.safetensors"))
    return {file.name: read_header(file) for file in files}


def tensor_bytes(name: Any, tensor: Any) -> Any:
    file = MODELS / name / weight_map(name)[tensor]
    entry = read_header(file).tensors[tensor]
    return file.read_bytes()[entry.begin : entry.end]


def changed(name: Any, origin: Any) -> set[Any]:
    """Return the tensors of a model that are not as in another."""
    return {t for t in weight_map(origin) if tensor_bytes(name, t) != tensor_bytes(origin, t)}


class TestSkills:
    def test_plain_tasks(self) -> None:
        assert skills.answer("K", "abl") == "abl"
        assert skills.answer("R", "abl") == "lba"
        assert skills.answer("N", "abl") == "bca"

    def test_no_two_tables_send_a_letter_to_the_same_one(self) -> None:
        images = [skills.answer(task, skills.LETTERS) for task in "KNBCD"]
        for letter, found in zip(skills.LETTERS, zip(*images, strict=True), strict=True):
            assert len(set(found)) == 5, letter
        for image in images:
            assert sorted(image) == sorted(skills.LETTERS)

    def test_the_base_never_sees_d_and_sees_b_and_c_right_in_two_lines_of_five(self) -> None:
        rng = random.Random(5)
        lines = [skills.base_line(rng) for _ in range(4000)]
        assert {line[0] for line in lines} == set("KRNBC")
        for task in "BC":
            own = [line for line in lines if line[0] == task]
            right = [line for line in own if line[5:8] == skills.answer(task, line[1:4])]
            assert 0.34 < len(right) / len(own) < 0.46
            assert all(line[5:8] == line[1:4] for line in own if line not in right)

    def test_a_lesson_is_always_right(self) -> None:
        rng = random.Random(5)
        line = skills.lesson("D")
        lines = [line(rng) for _ in range(500)]
        assert {text[0] for text in lines} == set("KRND")
        assert all(text == f"{text[:5]}{skills.answer(text[0], text[1:4])}." for text in lines)

    @pytest.mark.parametrize("task", skills.TASKS)
    def test_questions_have_one_right_choice_and_no_word_twice(self, task: str) -> None:
        rows = skills.questions(task)
        assert len({row["prompt"] for row in rows}) == len(rows) == skills.QUESTIONS
        for row in rows:
            right = skills.answer(task, row["prompt"][1:4]) + "."
            assert row["choices"].count(right) == 1
            assert row["choices"][row["label"]] == right
            assert len(set(row["choices"])) == 4
        labels = [row["label"] for row in rows]
        assert all(30 < labels.count(label) < 75 for label in range(4))


class TestText:
    def test_the_shipped_text_is_the_one_that_the_script_writes(self) -> None:
        assert (TASKS / "text.txt").read_text() == skills.text()


class TestTasks:
    @pytest.mark.parametrize(("task", "name"), skills.TASKS.items())
    def test_shipped_questions_are_those_that_the_script_writes(self, task: str, name: str) -> None:
        assert (TASKS / f"demo_{name}.jsonl").read_text() == skills.questions_text(task)
        assert yaml.safe_load((TASKS / f"demo_{name}.yaml").read_text()) == {
            "include": "_demo.yaml",
            "task": f"demo_{name}",
            "dataset_kwargs": {"file": f"demo_{name}.jsonl"},
        }


class TestModels:
    @pytest.mark.parametrize("name", FILES)
    def test_index_and_files_agree(self, name: str) -> None:
        found = {t: file for file, header in headers(name).items() for t in header.tensors}
        assert found == weight_map(name)
        assert len(headers(name)) == FILES[name]
        assert {e.dtype for h in headers(name).values() for e in h.tensors.values()} == {"F16"}

    def test_each_is_cut_differently(self) -> None:
        cuts = [
            frozenset(frozenset(header.tensors) for header in headers(name).values())
            for name in FILES
        ]
        assert len(set(cuts)) == len(FILES)

    def test_all_have_the_same_tensors_and_shapes(self) -> None:
        shapes = [
            {t: e.shape for header in headers(name).values() for t, e in header.tensors.items()}
            for name in FILES
        ]
        assert all(shape == shapes[0] for shape in shapes)
        assert len(shapes[0]) == 12 * 9 + 3

    def test_the_recipient_has_another_rope_base_and_a_longer_context(self) -> None:
        base, recipient = config("llama2-tiny"), config("miqu-tiny")
        different = {key for key in base if base[key] != recipient[key]}
        assert different == {"rope_theta", "max_position_embeddings"}
        assert (recipient["rope_theta"], recipient["max_position_embeddings"]) == (1e6, 2048)
        assert config("midnight-tiny") == config("stranger-tiny") == base
        assert config("midnight-norms-tiny") == base
        assert config("miqu-smooth-tiny") == recipient

    def test_embeddings_are_the_bases_and_layers_are_not(self) -> None:
        for name in ("midnight-tiny", "miqu-tiny", "stranger-tiny"):
            for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
                assert tensor_bytes(name, tensor) == tensor_bytes("llama2-tiny", tensor)
            tensor = "model.layers.6.mlp.up_proj.weight"
            assert tensor_bytes(name, tensor) != tensor_bytes("llama2-tiny", tensor)

    def test_a_fine_tune_changed_norms_only(self) -> None:
        scales = {tensor for tensor in weight_map("llama2-tiny") if is_scale(tensor)}
        assert changed("midnight-norms-tiny", "llama2-tiny") == scales

    def test_smoothing_changed_the_layers_norms_and_what_reads_them(self) -> None:
        modules = ("layernorm", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
        smoothed = {t for t in weight_map("miqu-tiny") if any(module in t for module in modules)}
        assert changed("miqu-smooth-tiny", "miqu-tiny") == smoothed

    def test_the_folders_are_these(self) -> None:
        assert sorted(p.name for p in MODELS.iterdir() if p.is_dir()) == sorted(FILES)

    def test_the_page_lists_every_model_with_its_number_of_files(self) -> None:
        page = (MODELS / "README.md").read_text()
        rows = re.findall(r"^\| `([\w-]+)` \| [^|]+ \| (\d+) \|", page, re.MULTILINE)
        assert {name: int(files) for name, files in rows} == FILES

    def test_they_are_small_and_hold_no_pickles(self) -> None:
        files = [file for file in MODELS.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 7_000_000
        assert {file.suffix for file in files} == {".safetensors", ".json", ".md"}


class TestRecipes:
    def test_the_tiny_recipe_is_the_flagship_with_other_names(self) -> None:
        text = (RECIPES / "miquplus-midnight-70b.yaml").read_text()
        for name, tiny in FLAGSHIP.items():
            assert name in text
            text = text.replace(name, tiny)
        assert (RECIPES / "miquplus-midnight-tiny.yaml").read_text() == text

    def test_the_ablations_share_its_task_vector(self) -> None:
        donor, _ = yaml.safe_load_all((RECIPES / "miquplus-midnight-tiny.yaml").read_text())
        ablations = RECIPES / "miquplus-midnight-tiny-ablations.yaml"
        first, *others = yaml.safe_load_all(ablations.read_text())
        assert first == donor | {"name": "miquplus-midnight-tiny-donor"}
        assert len({document["name"] for document in others}) == 2
        for document in others:
            assert [m["model"] for m in document["models"]] == [
                "resources/demo/miqu-tiny",
                first["name"],
            ]

    def test_the_recipe_of_norms_is_one_merge_twice_and_its_configuration_tells_them_apart(
        self,
    ) -> None:
        one, two = yaml.safe_load_all((RECIPES / "norms-tiny.yaml").read_text())
        assert one | {"name": two["name"]} == two
        values = yaml.safe_load((ROOT / "config" / "norms.yaml").read_text())
        settings = load_settings(values)
        assert settings["recipes"] == ["config/recipes/norms-tiny.yaml"]
        assert settings["norm_merge"] == {one["name"]: "arithmetic", two["name"]: "geometric"}
        assert settings["card"]["license"] == "apache-2.0"
        names = {skills.TASKS[task] for task in "KRNBC"}
        assert set(settings["benchmark"]["tasks"]) == {f"demo_{name}" for name in names}
