"""Tokens that a model lacks: what recipes say of them, which are the same, and what is planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from helpers.planned import described, locked
from helpers.tiny_tokenizers import tokenized
from shardmerge.algebra import expression as ex
from shardmerge.algebra.rows import expand_rows
from shardmerge.algebra.transplant import TransplantSpec
from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.numerics import FLOAT32
from shardmerge.compose.composer import Composer
from shardmerge.compose.tokenizer.matching import ComparedTokens
from shardmerge.engine.transplant import from_parts
from shardmerge.recipe.recipe import load_recipe, parse_recipe
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Approximation
from shardmerge.report.explain import explain
from shardmerge.sources.sources import Sources, lock_path

HEAD = "merge_method: linear\nmodels: [{model: o/a, parameters: {weight: 1}}]\n"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def read(text: str) -> Approximation:
    block = f"tokenizer: {{source: o/b, approximate: {text}}}"
    return parse_recipe(HEAD + block, "r.yaml").stages["r"].tokenizer.approximation


class TestReading:
    def test_a_word(self) -> None:
        found = read("subword")
        assert (found.method, found.weighting, found.k, found.scale) == ("subword", "mean", None, 1)
        assert (found.prefix, found.byte, found.donor) == ((), (), None)

    def test_a_mapping(self) -> None:
        text = (
            "{method: common_interpolation, k: 3, cosine_similarity: true, donor: o/c, "
            "weight_scheme: barycentric, prefix_match: lm_head, byte_match: yes, "
            "new_vocab_scale: 0.5}"
        )
        found = read(text)
        assert (found.k, found.cosine, found.weighting) == (3, True, "barycentric")
        assert (found.prefix, found.byte) == (("lm_head",), ("embed", "lm_head"))
        assert (found.donor, found.scale) == (Reference("o/c"), 0.5)

    def test_omp_is_the_default(self) -> None:
        assert read("{k: 8}").method == "omp"

    def test_a_donor_is_a_source(self) -> None:
        text = "tokenizer: {source: union, approximate: {donor: o/c}}"
        stage = parse_recipe(HEAD + text, "r.yaml").stages["r"]
        assert Reference("o/c") in stage.references

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("opm", "must be one of `omp`"),
            ("{method: 3}", "must be one of `omp`"),
            ("{k: 0}", "from 1 to"),
            ("{k: true}", "from 1 to"),
            ("{method: mean, k: 3}", "goes with the method `omp` or `common_interpolation`"),
            ("{weight_scheme: barycentric}", "goes with the method `common_interpolation`"),
            ("{method: subword, subword_method: last}", "must be one of `mean`"),
            ("{method: common_interpolation, cosine_similarity: 1}", "true or false"),
            ("{prefix_match: maybe}", "must be one of `no`"),
            ("{new_vocab_scale: 0}", "above 0"),
            ("{metod: omp}", "unknown key 'metod'"),
            ("[omp]", "approximate"),
        ],
    )
    def test_mistakes(self, text: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            read(text)
        assert caught.value.where.startswith("r.yaml:")


class TestMatching:
    BYTES = ComparedTokens(
        {"Ġthe": 0, "the": 1, "<s>": 2, "Ã©": 3, "Ċ": 4, "a": 5, "Ġ": 6, "Ã": 7, "th": 8},
        {"bos_token": "<s>"},
        9,
    )
    PIECES = ComparedTokens(
        {"▁the": 4, "the": 3, "<bos>": 2, "é": 1, "<0x0A>": 0, "<0x61>": 5, "▁▁": 6, "b": 9},
        {"bos_token": "<bos>"},
        9,
    )

    @pytest.mark.parametrize(
        ("token", "row"),
        [("Ġthe", 4), ("the", 3), ("<s>", 2), ("Ã©", 1), ("a", None), ("Ã", None)],
    )
    def test_across_kinds(self, token: str, row: int | None) -> None:
        assert self.PIECES.row(self.BYTES.key(token)) == row

    def test_a_byte(self) -> None:
        assert self.PIECES.row(self.BYTES.key("a"), byte=True) == 5
        assert self.PIECES.row(self.BYTES.key("Ċ"), byte=True) == 0
        assert self.BYTES.row(self.PIECES.key("<0x61>"), byte=True) == 5
        assert self.BYTES.row(self.PIECES.key("<0x0A>"), byte=True) == 4

    def test_a_prefix(self) -> None:
        assert self.BYTES.row(("text", "thy"), prefix=True) == 8
        assert self.BYTES.row(("word", "then"), prefix=True) == 0
        assert self.BYTES.row(("special", "then"), prefix=True) is None
        assert self.BYTES.row(("text", "xyz"), prefix=True) is None

    def test_texts(self) -> None:
        assert [self.BYTES.text(t) for t in ("Ġthe", "Ã©", "Ċ", "Ã", "<s>")] == [
            " the", "é", "\n", "Ã", "<s>",
        ]  # fmt: skip
        assert [self.PIECES.text(t) for t in ("▁the", "▁▁")] == [" the", "  "]

    def test_a_token_without_a_row_is_none(self) -> None:
        assert self.PIECES.row(("text", "b")) is None


SPECIAL = {"<s>": True, "</s>": True}
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tokenized(root / "a", 0, ["the", "cat"], SPECIAL, **NAMED)
    tokenized(root / "b", 1, ["the", "dog"], SPECIAL | {"<x>": True}, width=24, **NAMED)
    tokenized(root / "c", 2, ["the", "dog", "ran"], {"<begin>": True}, bos_token="<begin>")
    tokenized(root / "far", 3, [], {})
    table = load_json(root / "far/tokenizer.json")
    vocab = {f"#{token}": i for token, i in table["model"]["vocab"].items()}
    table["model"] |= {"vocab": vocab, "merges": []}
    (root / "far/tokenizer.json").write_text(json.dumps(table))
    shutil.copytree(root / "b", root / "table-less")
    path = root / "table-less/model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k not in TABLES}, path)
    return root


def composed(
    folder: Path, models: Path, names: str, approximate: Any, source: str = "b", **block: Any
) -> Composer:
    """Return the composer of a linear merge of models, locked."""
    named = source if source in ("union", "base") else str(models / source)
    how = approximate
    if isinstance(how, dict) and "donor" in how:
        how = how | {"donor": str(models / how["donor"])}
    made = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [
            {"model": str(models / name), "parameters": {"weight": 0.5}} for name in names.split()
        ],
        "tokenizer": {"source": named, "approximate": how} | block,
    }
    return locked(folder, made)


def specs(composer: Composer) -> list[TransplantSpec]:
    composer.outputs("r")
    return [one.spec for one in composer.made.values()]


class TestPlanning:
    def test_each_table_has_a_job_of_its_own(self, tmp_path: Path, models: Path) -> None:
        composer = composed(tmp_path, models, "a", {"k": 4})
        found = {spec.donor.tensor: spec for spec in specs(composer)}
        assert set(found) == set(TABLES)
        ids = composer.tokenizers.of(Reference("r")).ids
        by_row = {row: token for token, row in ids.items()}
        spec = found[TABLES[0]]
        lacking = [by_row[row] for row in expand_rows(spec.donor.targets)]
        assert lacking == ["d", "do", "dog", "<x>"][-len(lacking) :] and "dog" in lacking
        assert spec.count == len(lacking) and spec.most == 4
        assert len(expand_rows(spec.own)) == len(expand_rows(spec.donor.shared))
        assert forms.read(TransplantSpec, json.loads(json.dumps(spec.to_json()))) == spec

    def test_the_lock_holds_special_tokens(self, tmp_path: Path, models: Path) -> None:
        composer = composed(tmp_path, models, "c", {"k": 4})
        assert composer.lock.sources[str(models / "c")].special_tokens == {"bos_token": "<begin>"}
        own = {t.name: t.expression for t in composer.outputs("r")}[TABLES[0]]
        ids = composer.tokenizers.of(Reference("r")).ids
        bos = load_json(models / "c/tokenizer.json")["added_tokens"][0]["id"]
        rows = next(
            node
            for node in ex.walk(own)
            if isinstance(node, ex.Rows) and isinstance(node.operand, ex.Source)
        )
        assert expand_rows(rows.table)[ids["<s>"]] == bos

    def test_models_that_merge_share_what_is_the_same(self, tmp_path: Path, models: Path) -> None:
        shutil.copytree(models / "a", tmp_path / "a2")
        for name in "ab":
            shutil.copytree(models / name, tmp_path / name)
        composer = composed(tmp_path, tmp_path, "a a2", {"k": 4})
        assert len(specs(composer)) == 2

    def test_union_takes_each_models_own(self, tmp_path: Path, models: Path) -> None:
        """Each lacks what the other has, and gets it from there."""
        composer = composed(tmp_path, models, "a c", {"k": 4}, source="union")
        donors = {one.models[0] for one in [*composer.made.values()] or []}
        found = specs(composer)
        donors = {one.models[0] for one in composer.made.values()}
        assert donors == {str(models / "a"), str(models / "c")}
        assert len(found) == 4

    def test_a_rule_of_a_token_counts_more(self, tmp_path: Path, models: Path) -> None:
        rules = {"dog": {"source": {"kind": "zero"}}}
        composer = composed(tmp_path, models, "a", {"k": 4}, tokens=rules)
        plain = composed(tmp_path, models, "a", {"k": 4})
        assert specs(composer)[0].count == specs(plain)[0].count - 1

    def test_mean_and_zero_need_no_job(self, tmp_path: Path, models: Path) -> None:
        for method, kind in (("mean", ex.Mean), ("zero", None)):
            composer = composed(tmp_path, models, "a", method)
            assert specs(composer) == []
            nodes = {type(node) for t in composer.outputs("r") for node in ex.walk(t.expression)}
            assert ex.Mean in nodes if kind else ex.Mean not in nodes

    def test_a_donor_beside_the_tokenizers_model(self, tmp_path: Path, models: Path) -> None:
        composer = composed(tmp_path, models, "a", {"k": 4, "donor": "c"})
        assert {one.models[0] for one in composer.made.values()} <= {str(models / "c")}
        specs(composer)
        assert {one.models[0] for one in composer.made.values()} == {str(models / "c")}

    def test_a_digest_depends_on_the_donor_and_not_on_the_models_weights(
        self, tmp_path: Path, models: Path
    ) -> None:
        for name in "ab":
            shutil.copytree(models / name, tmp_path / name)
        first = {spec.digest for spec in specs(composed(tmp_path, tmp_path, "a", {"k": 4}))}
        for name in "ab":
            path = tmp_path / name / "model.safetensors"
            tensors = load_file(path)
            save_file({k: v + 1 for k, v in tensors.items()}, path, {"format": "pt"})
            lock_path(tmp_path / "r.yaml").unlink()
            found = {spec.digest for spec in specs(composed(tmp_path, tmp_path, "a", {"k": 4}))}
            assert (found == first) == (name == "a")

    @pytest.mark.parametrize(
        ("names", "how", "source", "message"),
        [
            ("a", {"k": 4}, "far", "have no token in common"),
            ("a", {"k": 400}, "b", r"asks for more rows than the \d+ of tokens"),
            ("a", {"k": 4, "donor": "table-less"}, "b", "no one embedding|no embeddings"),
        ],
    )
    def test_mistakes(
        self, tmp_path: Path, models: Path, names: str, how: Any, source: str, message: str
    ) -> None:
        with pytest.raises(UserError, match=message) as caught:
            composed(tmp_path, models, names, how, source).outputs("r")
        assert "r.yaml:" in (caught.value.where or "")

    def test_a_donor_that_is_not_stored_as_it_is(self, tmp_path: Path, models: Path) -> None:
        first = {
            "name": "first",
            "merge_method": "passthrough",
            "models": [{"model": str(models / "b"), "parameters": {"scale": 0.5}}],
        }
        second = {
            "name": "r",
            "merge_method": "passthrough",
            "models": [{"model": str(models / "a")}],
            "tokenizer": {"source": "first", "approximate": {"k": 4}},
        }
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump_all([first, second]))
        recipe = load_recipe(path)
        sources = Sources({}, tmp_path / "models", tmp_path / "cache")
        lock = sources.lock(recipe, write=True, renew=False, say=lambda line: None)
        with pytest.raises(UserError, match="are not stored as they are"):
            Composer(recipe, lock, FLOAT32).outputs("r")


class TestParts:
    def spec(self, **values: Any) -> TransplantSpec:
        given = {"method": "subword", "count": 1, "most": 4, "limit": 10, "weighting": "mean"}
        return TransplantSpec(**(given | {"texts": ("abc",)} | values))

    @pytest.mark.parametrize(
        ("weighting", "head", "rows", "weights"),
        [
            ("mean", False, [2, 5, 7], [1 / 3, 1 / 3, 1 / 3]),
            ("sum", False, [2, 5, 7], [1, 1, 1]),
            ("weighted_mean", False, [2, 5, 7], [2 / 6, 1 / 6, 3 / 6]),
            ("weighted_mean", True, [2, 5, 7], [2 / 6, 3 / 6, 1 / 6]),
            ("first_last", False, [7], [1]),
            ("first_last", True, [5], [1]),
        ],
    )
    def test_weights(
        self, weighting: str, head: bool, rows: list[int], weights: list[float]
    ) -> None:
        found = from_parts(self.spec(weighting=weighting, head=head), [(5, 2, 7)])
        assert [row for row in found.rows[0].tolist() if row >= 0] == rows
        torch.testing.assert_close(found.weights[0, : len(rows)], torch.tensor(weights).float())

    def test_a_part_that_comes_twice_is_one_term(self) -> None:
        found = from_parts(self.spec(), [(5, 5, 2)])
        assert found.rows[0].tolist() == [2, 5, -1, -1]
        torch.testing.assert_close(found.weights[0, :2], torch.tensor([1 / 3, 2 / 3]))

    def test_a_token_without_parts_is_zero(self) -> None:
        assert from_parts(self.spec(), [()]).rows.tolist() == [[-1] * 4]

    def test_too_many_parts(self) -> None:
        with pytest.raises(UserError, match="split into more than 4 parts"):
            from_parts(self.spec(), [(1, 2, 3, 4, 5)])

    def test_a_part_without_an_embedding(self) -> None:
        with pytest.raises(UserError, match="has id 10 and no embedding"):
            from_parts(self.spec(), [(1, 10)])


def test_what_became_of_tokens_is_told(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = {
        "name": "r",
        "merge_method": "passthrough",
        "models": [{"model": str(models / "a")}],
        "tokenizer": {"source": str(models / "b"), "approximate": {"k": 4}},
    }
    description, warnings = described(document)
    ((model, method, own, made),) = description["tokens"]["made_rows"]
    ids = load_json(models / "b/tokenizer.json")
    assert own + made == len(ids["model"]["vocab"]) + len(ids["added_tokens"])
    assert (model, method, bool(made)) == (str(models / "a"), "omp", True)
    assert warnings == []
    (told,) = explain("recipe.yaml", {}).tokens
    assert f"{own} tokens" in told and f"{made} others" in told
    document["tokenizer"] = {"source": str(models / "far"), "approximate": "zero"}
    _, warnings = described(document)
    assert any("few-shared-tokens" in warning for warning in warnings)
