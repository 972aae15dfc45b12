"""Whether a model finds a secret that stands once in a long text, by length and depth."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.benchmark.options import EvalOptions
from shardmerge.benchmark.probe_model import answer_likelihoods
from shardmerge.benchmark.probe_options import ProbeOptions
from shardmerge.benchmark.probe_result import ProbeFindings, passage_row

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedTokenizerBase

#: Symbols of a secret, and secrets that a model chooses from: by chance it finds one in ten.
DIGITS, CHOICES = 5, 10


@dataclass(frozen=True)
class Haystack:
    """A long text with a secret.

    Args:
        length: Its tokens, with the question, the answer and the token that begins a text.
        depth: Where the secret is, from 0 (beginning) to 1.
        number: Of haystacks of this length and depth.
        secrets: What the model chooses from.
        right: Number of the right one.
        prompt: Tokens up to the answer.
        answers: Tokens of each secret.
    """

    length: int
    depth: float
    number: int
    secrets: tuple[str, ...]
    right: int
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def haystacks(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    declared: int,
    options: ProbeOptions,
    narrowed: EvalOptions = EvalOptions(),
) -> Iterator[Haystack]:
    """Yield haystacks: a stretch of the text (from its beginning again where it ends), the secret.

    Args:
        tokenizer: Of the model.
        text: It.
        declared: The model's longest input.
        options: Lengths, depths, words, seed.
        narrowed: Of which ``half`` and ``limit`` say which haystacks of a length are made.

    Raises:
        UserError: If the tokenizer cannot tell secrets apart, a haystack has no room for one, or a
            half has no haystack.
    """

    def cut(words: str) -> tuple[int, ...]:
        return tuple(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])

    before, _, after = options.question.partition("{secret}")
    asked = before.rstrip(" ")
    gap, straw, question = before[len(asked) :], cut(text), cut(f"\n{asked}")
    for length in options.haystacks(declared):
        for depth, number in _chosen(options, narrowed):
            rng = random.Random(f"{options.seed} {length} {depth} {number}")
            secrets, right = _secrets(rng, options.symbols)
            answers = tuple(cut(f"{gap}{secret}{after}") for secret in secrets)
            _check_apart(answers, tokenizer.unk_token_id, options)
            needle = cut(f"\n{options.needle.replace('{secret}', secrets[right])}\n")
            room = length - 1 - len(needle) - len(question) - max(map(len, answers))
            if room < 1:
                raise UserError(
                    f"a haystack of {length} tokens has no room for needle and question",
                    "configuration: benchmark.probes.lengths",
                )
            begin = rng.randrange(len(straw))
            hay = [straw[(begin + i) % len(straw)] for i in range(room)]
            place = round(depth * room)
            prompt = (*hay[:place], *needle, *hay[place:], *question)
            yield Haystack(length, depth, number, secrets, right, prompt, answers)


def _chosen(options: ProbeOptions, narrowed: EvalOptions) -> list[tuple[float, int]]:
    """Return depth and number of a length's haystacks; a part of them has all depths."""
    every = [(depth, number) for number in range(options.needles) for depth in options.depths]
    found = {every[i] for i in narrowed.asked(len(every))}
    if not found:
        raise UserError(
            "one haystack of each length has no two halves",
            "configuration: benchmark.probes",
            "Write more `needles` or `depths`.",
        )
    in_order = ((depth, number) for depth in options.depths for number in range(options.needles))
    return [one for one in in_order if one in found]


def measure_needles(
    model: LM, text: str, options: ProbeOptions, narrowed: EvalOptions = EvalOptions()
) -> ProbeFindings:
    """Return how often a model finds a secret, for each length of haystack.

    ``acc``: the right secret is the likeliest of ten. ``exact``: its tokens are the likeliest of
    all tokens, one after the other, as if the model had written it.

    Args:
        model: From ``loading.language_model``, with transformers.
        text: What haystacks are made of.
        options: Lengths, depths, words, seed.
        narrowed: Of which ``half`` and ``limit`` say which haystacks of a length are made.
    """
    found = ProbeFindings(better={"acc": True, "exact": True})
    right: dict[str, list[tuple[float, float]]] = {}
    made = haystacks(model.tokenizer, text, model.max_length, options, narrowed)
    for i, hay in enumerate(made):
        likely = answer_likelihoods(model, hay.prompt, hay.answers)
        chosen = max(range(len(likely)), key=lambda n: likely[n][0])
        scores = {"acc": float(chosen == hay.right), "exact": float(likely[hay.right][1])}
        task = f"needle_{hay.length}"
        right.setdefault(task, []).append((scores["acc"], scores["exact"]))
        asked = [hay.length, hay.depth, hay.number, *hay.secrets, digest(text)]
        found.rows.append(
            passage_row(
                task, i, (asked, hay.right), digest(list(hay.prompt)), scores,
                doc={"length": hay.length, "depth": hay.depth, "number": hay.number},
                target=hay.secrets[hay.right],
                filtered_resps=[[value, greedy] for value, greedy in likely],
            )
        )  # fmt: skip
    found.parts = list(right)
    every = [score for scores in right.values() for score in scores]
    for task, scores in ({"needle": every} | right).items():
        acc, exact = zip(*scores, strict=True)
        found.values[task] = {"acc": _share(acc), "exact": _share(exact)}
    return found


def _secrets(rng: random.Random, symbols: str) -> tuple[tuple[str, ...], int]:
    """Return different secrets, and the number of the right one."""
    found: dict[str, None] = {}
    while len(found) < CHOICES:
        found["".join(rng.choice(symbols) for _ in range(DIGITS))] = None
    return tuple(found), rng.randrange(CHOICES)


def _check_apart(
    answers: Sequence[tuple[int, ...]], unknown: int | None, options: ProbeOptions
) -> None:
    if len(set(answers)) < len(answers) or any(unknown in answer for answer in answers):
        raise UserError(
            f"the tokenizer has no tokens for secrets of {options.symbols!r}",
            "configuration: benchmark.probes.symbols",
            "Write symbols that it knows, or leave `needle` out of `measure`.",
        )


def _share(right: Sequence[float]) -> tuple[float, float | None]:
    count, mean = len(right), sum(right) / len(right)
    return mean, math.sqrt(mean * (1 - mean) / (count - 1)) if count > 1 else None
