"""Probes of models on a text: numbers worked out by hand, and models that are the same."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from shardmerge.base.errors import UserError
from shardmerge.benchmark import scores
from shardmerge.benchmark.agreement import agreement, cohens_kappa
from shardmerge.benchmark.divergence import Divergence, measure_divergence
from shardmerge.benchmark.needle import haystacks, measure_needles
from shardmerge.benchmark.options import EvalOptions
from shardmerge.benchmark.perplexity import measure_perplexity
from shardmerge.benchmark.probe_options import ProbeOptions, parse_probes
from shardmerge.benchmark.probe_text import ProbeText, TextWindow, tokenized, windows
from shardmerge.benchmark.reference_logits import keep_logits
from shardmerge.benchmark.resampling import Passages
from shardmerge.benchmark.samples import GivenAnswer
from shardmerge.recipe.benchmark_entries import whole_of
from shardmerge.recipe.settings import load_settings

ALPHABET = "<abcdefghijklmnopqrstuvwxyz0123456789. \n"


class Letters:
    """A tokenizer of single letters."""

    is_fast = True
    unk_token_id = None

    def __init__(self, alphabet: str = ALPHABET) -> None:
        self.alphabet = alphabet

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        ids = [self.alphabet.index(letter) for letter in text.lower() if letter in self.alphabet]
        return {"input_ids": ids, "offset_mapping": [(i, i + 1) for i in range(len(ids))]}

    def get_vocab(self) -> dict[str, int]:
        return {letter: i for i, letter in enumerate(self.alphabet)}


class Network:
    """Predicts with logits that depend on the last token alone, or finds what stands twice."""

    def __init__(self, table: torch.Tensor, finds: bool = False) -> None:
        self.table, self.finds = table, finds
        self.longest = 0

    def forward(self, **_: Any) -> None: ...

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.longest = max(self.longest, input_ids.shape[1])
        logits = self.table[input_ids[0]].clone()
        if self.finds:
            logits += self._found(input_ids[0].tolist())
        return SimpleNamespace(logits=logits[None])

    def _found(self, tokens: list[int]) -> torch.Tensor:
        """Favour what followed the last three tokens where they stood before."""
        extra = torch.zeros(len(tokens), self.table.shape[1])
        for i in range(3, len(tokens)):
            for j in range(3, i):
                if tokens[j - 3 : j] == tokens[i - 2 : i + 1]:
                    extra[i, tokens[j]] += 20
        return extra


def model(
    seed: int = 0, *, finds: bool = False, alphabet: str = ALPHABET, longest: int = 64
) -> Any:
    """Return a model as lm-eval loads one, with random predictions."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(len(alphabet), len(alphabet), generator=generator)
    return SimpleNamespace(
        model=Network(table, finds),
        tokenizer=Letters(alphabet),
        prefix_token_id=0,
        device="cpu",
        max_length=longest,
    )


def options(**more: Any) -> ProbeOptions:
    return parse_probes(json.dumps({"text": "text.txt"} | more))


def cut(own: Any, text: str, **narrowed: Any) -> ProbeText:
    ids = own.tokenizer(text)["input_ids"]
    passages = tuple(text[i : i + 16] for i in range(0, len(text), 16))
    asked = tuple(EvalOptions(**narrowed).asked(len(passages)))
    return ProbeText(passages, tuple(ids), tuple(i // 16 for i in range(len(ids))), asked)


TEXT = "the cat sat on the mat and said that two and two are 4. " * 3


class TestWindows:
    @pytest.mark.parametrize(("tokens", "context", "stride"), [(10, 4, 2), (3, 8, 4), (9, 3, 3)])
    def test_every_token_is_predicted_once_and_no_window_is_too_long(
        self, tokens: int, context: int, stride: int
    ) -> None:
        found = list(windows(tokens, context, stride))
        assert [n for w in found for n in range(w.begin, w.end)] == list(range(tokens))
        # one token before the text is read too, and the last is predicted only
        assert all(0 <= w.start <= w.begin and w.end - w.start <= context for w in found)


class TestDivergence:
    def test_is_what_the_formula_gives_by_hand(self) -> None:
        p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
        found = Divergence.of(1)
        found.fill(TextWindow(0, 0, 1), q.log(), p.log(), [1])
        by_hand = 0.5 * math.log(2) + 0.25 * math.log(0.5)
        assert found.kl[0] == pytest.approx(by_hand, rel=1e-6)
        assert found.same[0] == 0
        assert found.change[0] == pytest.approx(math.log(2), rel=1e-6)

    def test_gain_and_loss_are_summed_apart(self) -> None:
        found = Divergence(numpy.ones(4), numpy.ones(4), numpy.array([1.0, -3.0, 0.0, 2.0]))
        metrics = found.metrics(Passages([0, 0, 1, 1], [0, 1]))
        assert (metrics["gain"][0], metrics["loss"][0]) == (0.75, 0.75)

    def test_a_model_does_not_diverge_from_itself_at_all(self, tmp_path: Path) -> None:
        own, text = model(), cut(model(), TEXT)
        keep_logits(own, "own", text, options(context=16), tmp_path / "l.safetensors")
        found = measure_divergence(own, "copy", text, [tmp_path / "l.safetensors"])
        values = found.values["kl_own"]
        assert [values[name] for name in ("mean", "p99", "gain", "loss")] == [(0.0, 0.0)] * 4
        assert values["same_top"] == (1.0, 0.0)

    def test_of_a_whole_text_is_the_mean_by_tokens(self, tmp_path: Path) -> None:
        own, other = model(1), model(2)
        text = cut(own, TEXT)
        for run in ("a", "b"):
            keep_logits(other, "other", text, options(context=16, stride=5), tmp_path / run)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        found = measure_divergence(own, "own", text, [tmp_path / "a"])
        before = torch.tensor([0, *text.tokens[:-1]])
        p = other.model.table[before].double().softmax(-1)
        q = own.model.table[before].double().softmax(-1)
        each = (p * (p / q).log()).sum(-1).numpy()
        values = found.values["kl_other"]
        assert values["mean"][0] == pytest.approx(each.mean(), rel=1e-9)
        assert values["median"][0] == pytest.approx(sorted(each)[math.ceil(len(each) / 2) - 1])
        assert values["mean"][1] > 0
        assert found.values["kl"]["mean"] == values["mean"]
        assert own.model.longest == 16
        again = measure_divergence(own, "own", text, [tmp_path / "a"])
        assert again == found

    def test_another_vocabulary_is_told_and_not_compared(self, tmp_path: Path) -> None:
        other = model(2, alphabet=ALPHABET.replace("ab", "ba"))
        keep_logits(other, "other", cut(other, TEXT), options(), tmp_path / "l")
        own = model(1)
        found = measure_divergence(own, "own", cut(own, TEXT), [tmp_path / "l"])
        assert found.values == {}
        assert found.notes == [
            "kl of own from other was not measured: their vocabularies differ in 2 tokens."
        ]

    def test_rows_beyond_a_shorter_vocabulary_do_not_count(self, tmp_path: Path) -> None:
        own, padded = model(1), model(1)
        rows = padded.model.table
        padded.model.table = torch.cat([rows, torch.full((len(rows), 3), 9.0)], 1)
        keep_logits(padded, "padded", cut(own, TEXT), options(), tmp_path / "l")
        found = measure_divergence(own, "own", cut(own, TEXT), [tmp_path / "l"])
        assert found.values["kl_padded"]["mean"][0] == 0


class TestPerplexity:
    def test_is_what_the_probabilities_give(self) -> None:
        own = model(3)
        text = cut(own, TEXT)
        found = measure_perplexity(own, text, options(context=16)).values["perplexity"]
        before = torch.tensor([0, *text.tokens[:-1]])
        known = own.model.table[before].double().log_softmax(-1)
        lost = -known[range(len(before)), list(text.tokens)].sum().item()
        assert found["token_perplexity"][0] == pytest.approx(math.exp(lost / len(before)))
        assert found["bits_per_byte"][0] == pytest.approx(lost / math.log(2) / len(TEXT))

    def test_tokens_of_another_tokenizer_get_a_footnote_and_bytes_none(self) -> None:
        results = []
        for name, alphabet in (("a", ALPHABET), ("b", ALPHABET), ("c", ALPHABET[::-1])):
            own = model(3, alphabet=alphabet)
            found = measure_perplexity(own, cut(own, TEXT), options(context=16))
            values = {f"{k},none": v for k, (v, _) in found.values["perplexity"].items()}
            results.append(
                {
                    "model_name": name,
                    "requested_task": "perplexity",
                    "results": {"perplexity": values},
                    "config": {},
                    "metric_settings": found.settings,
                    "probe_notes": ["Said once."],
                }
            )
        table = scores.score_table(results)
        noted = {(m, c.metric) for (m, c), cell in table.cells.items() if cell.notes}
        assert noted == {("c", "token_perplexity")}
        assert table.footnotes[-1] == "Said once." and len(table.footnotes) == 2


class TestParts:
    """Halves and limits, by which searches measure trials, hold of probes too."""

    def test_halves_of_a_text_are_apart_and_make_the_whole(self, tmp_path: Path) -> None:
        own, other = model(3), model(4)
        keep_logits(other, "other", cut(own, TEXT), options(context=16), tmp_path / "l")
        rows: dict[str | None, list[Any]] = {}
        for half in (None, "even", "odd"):
            text = cut(own, TEXT, half=half)
            found = measure_perplexity(own, text, options(context=16)).rows
            found += measure_divergence(own, "own", text, [tmp_path / "l"]).rows
            rows[half] = sorted(found, key=lambda row: (row["task"], row["doc_id"]))
        assert {row["doc_id"] % 2 for row in rows["even"]} == {0}
        both = rows["even"] + rows["odd"]
        assert sorted(both, key=lambda row: (row["task"], row["doc_id"])) == rows[None]

    def test_values_of_a_half_are_of_its_passages_alone(self) -> None:
        own = model(3)
        text = cut(own, TEXT, half="odd", limit=2)
        found = measure_perplexity(own, text, options(context=16))
        rows = [row["bits_per_byte"] for row in found.rows]
        assert [row["doc_id"] for row in found.rows] == [1, 3]
        bits = -sum(lost for lost, _ in rows) / math.log(2) / sum(size for _, size in rows)
        assert found.values["perplexity"]["bits_per_byte"][0] == pytest.approx(bits)

    def test_no_more_is_read_than_a_limit_needs(self) -> None:
        own, read = model(3), []

        class Counting(Network):
            def __call__(self, input_ids: torch.Tensor, **more: Any) -> Any:
                read.append(input_ids.shape[1])
                return super().__call__(input_ids, **more)

        own.model = Counting(own.model.table)
        measure_perplexity(own, cut(own, TEXT, limit=1), options(context=16))
        few = len(read)
        measure_perplexity(own, cut(own, TEXT), options(context=16))
        assert few == 1 < len(read) - few

    def test_a_text_that_is_too_short_for_halves_is_told(self) -> None:
        with pytest.raises(UserError, match="too few for two halves"):
            tokenized(Letters(), TEXT, EvalOptions(half="odd"))  # type: ignore[arg-type]

    def test_halves_and_limits_of_haystacks_have_all_depths(self) -> None:
        asked = options(lengths=[120, 150], depths=[0.1, 0.5, 0.9], needles=4)

        def made(**narrowed: Any) -> list[tuple[int, float, int]]:
            found = haystacks(Letters(), TEXT, 64, asked, EvalOptions(**narrowed))
            return [(hay.length, hay.depth, hay.number) for hay in found]

        even, odd = made(half="even"), made(half="odd")
        assert sorted(even + odd) == sorted(made())
        assert not set(even) & set(odd)
        for part in (even, odd, made(limit=3)):
            assert {(length, depth) for length, depth, _ in part} == {
                (length, depth) for length in (120, 150) for depth in (0.1, 0.5, 0.9)
            }
        one = options(lengths=[120], depths=[0.5], needles=1)
        with pytest.raises(UserError, match="no two halves"):
            list(haystacks(Letters(), TEXT, 64, one, EvalOptions(half="odd")))


class TestNeedles:
    def test_a_model_that_looks_back_finds_them_and_another_does_not(self) -> None:
        asked = options(lengths=[120], depths=[0.1, 0.9], needles=2, needle="key is {secret}.",
                        question="key is {secret}")  # fmt: skip
        found = measure_needles(model(finds=True), TEXT, asked)
        assert found.values["needle"]["acc"][0] == 1 and found.values["needle"]["exact"][0] == 1
        assert found.parts == ["needle_120"] and len(found.rows) == 4
        blind = measure_needles(model(), TEXT, asked)
        assert blind.values["needle"]["exact"][0] == 0
        keys = ("doc_hash", "target_hash")  # the same questions, so that models can be compared
        assert [[r[k] for k in keys] for r in blind.rows] == [
            [r[k] for k in keys] for r in found.rows
        ]

    def test_haystacks_have_their_length_and_one_needle_and_follow_from_the_seed(self) -> None:
        def made(seed: int) -> Any:
            asked = options(lengths=[150, 200], needles=1, seed=seed)
            return list(haystacks(Letters(), TEXT, 64, asked))

        found = made(0)
        assert found == made(0) and found != made(1)
        for hay in found:
            assert 1 + len(hay.prompt) + len(hay.answers[0]) == hay.length
            text = "".join(ALPHABET[token] for token in hay.prompt)
            assert text.count(hay.secrets[hay.right]) == 1
            assert not any(s in text for i, s in enumerate(hay.secrets) if i != hay.right)

    def test_the_longest_is_what_the_model_declares_unless_capped(self) -> None:
        assert options().haystacks(2048) == [512, 1024, 2048]
        assert options().haystacks(32768)[-1] == 4096
        assert options(longest=32768).haystacks(32768)[-1] == 32768

    @pytest.mark.parametrize(
        ("more", "words"),
        [({"symbols": "äöü"}, "no tokens for secrets"), ({"lengths": [20]}, "has no room")],
    )
    def test_what_cannot_be_asked_is_told(self, more: Any, words: str) -> None:
        with pytest.raises(UserError, match=words):
            list(haystacks(Letters(), TEXT, 64, options(**more)))


class TestConfiguration:
    def test_probes_stand_among_the_tasks(self) -> None:
        settings = load_settings({"recipes": ["r"], "benchmark": {"probes": {"text": "t"}}})
        assert settings["benchmark"]["tasks"] == ["perplexity", "kl", "needle"]
        # what predictions are compared with must be whole
        only = {"models": ["merged"], "probes": {"text": "t"}}
        assert load_settings({"recipes": ["r"], "benchmark": only}).measured == (
            "merged",
            "sources",
        )

    def test_a_sweep_that_aims_at_a_part_of_a_probe_measures_the_probe(self) -> None:
        made = {"probes": {"text": "t"}, "tasks": ["needle_own"]}
        benchmark = load_settings({"recipes": ["r"], "benchmark": made})["benchmark"]
        asked = ["kl_base", "needle_64", "needle_own", "kl", "other"]
        assert [whole_of(benchmark, task) for task in asked] == [
            "kl", "needle", "needle_own", "kl", "other",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("benchmark", "words"),
        [
            ({"tasks": ["kl"]}, "'kl' is a probe and a task"),
            ({"probes": {"needle": "secret"}}, r"probes\.needle"),
            ({"probes": {"symbols": "aa"}}, "fewer than two"),
            ({"backend": "vllm", "device": "cuda"}, "need `backend: hf`"),
        ],
    )
    def test_what_does_not_go_together_is_told(self, benchmark: Any, words: str) -> None:
        made = copy.deepcopy(benchmark)
        made["probes"] = {"text": "t"} | made.get("probes", {})
        with pytest.raises(UserError, match=words):
            load_settings({"recipes": ["r"], "benchmark": made})


def test_kappa_is_what_cohen_gives_by_hand() -> None:
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10
    pairs += [(False, False)] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)  # observed 0.7, by chance 0.5
    assert cohens_kappa([(True, True), (True, False)]) is None


def test_agreement_counts_answers() -> None:
    """Both right, both wrong alike, both wrong otherwise, one right."""
    own = [GivenAnswer("a", True), GivenAnswer("b", False), GivenAnswer("c", False)]
    others = [GivenAnswer("a", True), GivenAnswer("b", False), GivenAnswer("d", False)]
    own, others = [*own, GivenAnswer(1, True)], [*others, GivenAnswer(2, False)]
    pairs = list(zip(own, others, strict=True))
    found = agreement("x", "y", "task", pairs)
    assert (found.model, found.other, found.task) == ("x", "y", "task")
    assert (found.questions, found.same, found.right, found.wrong) == (4, 2, 1, 1)
    assert found.kappa == pytest.approx(0.5)  # observed 3/4, by chance 1/2
