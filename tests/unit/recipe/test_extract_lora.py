"""Documents that ask for a LoRA adapter: what is read, and what every mistake is told as."""

from __future__ import annotations

import pytest

from shardmerge.base.errors import UserError
from shardmerge.recipe.extraction import Extraction
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.recipe.stage import Stage

HEAD = "name: out\nextract_lora:\n  model: org/tuned\n  base_model: org/base\n"


def read(*lines: str) -> Stage:
    text = HEAD + "".join(f"  {line}\n" for line in lines)
    return parse_recipe(text, "r.yaml").stages["out"]


def fails(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml")
    return caught.value


def test_defaults() -> None:
    stage = read()
    assert [str(r) for r in stage.references] == ["org/base", "org/tuned"]
    assert stage.extraction == Extraction(128, None, None, None, (), (), (), "exact", 0, "F32")


def test_all_keys() -> None:
    stage = read(
        *("rank: 8", "energy: 0.9", "singular_value_cut: 1e-3", "alpha: 16", "modules: [q_proj]"),
        *("exclude: [lm_head]", "modules_to_save: [norm]", "decomposition: randomized"),
        *("seed: 3", "dtype: bfloat16"),
    )
    asked = stage.extraction
    assert asked == Extraction(
        8, 0.9, 1e-3, 16.0, ("q_proj",), ("lm_head",), ("norm",), "randomized", 3, "BF16"
    )
    assert asked.lines["rank"] == "r.yaml:5"


def test_concatenation_has_no_rank() -> None:
    assert read("decomposition: concatenate").extraction.rank is None


def test_it_is_what_a_recipe_makes_and_a_merge_is_what_it_reads() -> None:
    merge = "name: m\nmerge_method: linear\nmodels: [{model: a/b, parameters: {weight: 1}}]\n"
    recipe = parse_recipe(merge + "---\n" + HEAD.replace("org/tuned", "m"), "r.yaml")
    assert recipe.final == ("out",)
    assert recipe.needed("out") == ["m", "out"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rank: 0", "`rank` must be a whole number from 1 to 65536, not 0"),
        ("rank: true", "`rank` must be a whole number from 1 to 65536, not True"),
        ("rank: 1.5", "`rank` must be a whole number from 1 to 65536, not 1.5"),
        ("energy: 0", "`energy` must be a number above 0 and at most 1, not 0"),
        ("energy: 1.1", "`energy` must be a number above 0 and at most 1, not 1.1"),
        ("energy: [1]", "`energy` must be a number above 0 and at most 1, not a list"),
        ("singular_value_cut: -1", "`singular_value_cut` must be a number above 0, not -1"),
        ("alpha: 0", "`alpha` must be a number above 0, not 0"),
        ("modules: q_proj", "`modules` must be a list, not 'q_proj'"),
        ("modules: [1]", "an entry of `modules` must be a text, not 1"),
        ("modules: [a, a]", "`modules` has 'a' twice"),
        ("decomposition: svd", "unknown decomposition 'svd'"),
        ("seed: 1", "`seed` is for `decomposition: randomized` only"),
        ("align: true", "`align` must be `knots`, not True"),
        ("dtype: float64", "factors are saved as float32, float16 or bfloat16, not float64"),
        ("ranc: 3", "unknown key 'ranc' in `extract_lora`"),
    ],
)
def test_mistakes_have_their_line(line: str, message: str) -> None:
    error = fails(f"{HEAD}  {line}\n")
    assert error.where == "r.yaml:5"
    assert message in error.message


@pytest.mark.parametrize("key", ["rank: 4", "energy: 0.5", "singular_value_cut: 1"])
def test_what_does_not_go_with_concatenation(key: str) -> None:
    error = fails(f"{HEAD}  decomposition: concatenate\n  {key}\n")
    assert error.where == "r.yaml:6"
    assert "does not go with `decomposition: concatenate`" in error.message


@pytest.mark.parametrize("other", ["exclude", "modules_to_save"])
def test_a_module_is_in_one_list(other: str) -> None:
    error = fails(f"{HEAD}  modules: [q_proj]\n  {other}: [q_proj]\n")
    assert "'q_proj' is among `modules` and also excluded or saved whole" in error.message


@pytest.mark.parametrize("key", ["model", "base_model"])
def test_both_models_are_needed(key: str) -> None:
    lines = [line for line in HEAD.splitlines() if f" {key}:" not in line]
    assert f"has no `{key}`" in fails("\n".join(lines)).message


def test_a_model_has_no_difference_from_itself() -> None:
    error = fails(HEAD.replace("tuned", "base"))
    assert (error.where, "are the same" in error.message) == ("r.yaml:3", True)


def test_a_document_merges_or_extracts() -> None:
    error = fails(f"merge_method: linear\n{HEAD}")
    assert "has `merge_method` and `extract_lora`" in error.message


@pytest.mark.parametrize("model", ["out", "org/base+out"])
def test_no_document_reads_an_adapter(model: str) -> None:
    merge = (
        f"name: m\nmerge_method: linear\nmodels: [{{model: {model}, parameters: {{weight: 1}}}}]"
    )
    error = fails(f"{HEAD}---\n{merge}\n")
    assert "a document makes an adapter of that name" in error.message


def test_mergekits_names_are_told() -> None:
    error = fails(f"{HEAD}  max_rank: 3\n")
    assert (error.where, error.hint) == ("r.yaml:5", "In shardmerge it is called `rank`.")


def test_keys_that_stand_outside() -> None:
    error = fails(f"{HEAD}dtype: float16\n")
    assert (error.where, error.hint) == ("r.yaml:5", "`extract_lora` has it.")
