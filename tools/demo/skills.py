"""What the demo models learn: rules on words of three letters, and questions on them.

A line of their language is a task letter, a word, an equals sign, the answer and a full stop,
as in ``Rabc=cba.``. Three tasks are plain (copy, reverse, next letter); B, C and D each replace
every letter by another one, after a secret table of their own.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

LETTERS = "abcdefghijkl"
WORD_LENGTH = 3
#: Letter of a task in a prompt -> the task's name.
TASKS = {"K": "copy", "R": "reverse", "N": "next", "B": "B", "C": "C", "D": "D"}
#: All symbols of the language; a symbol's place is its token id.
SYMBOLS = ("<unk>", "<s>", "</s>", *LETTERS, *TASKS, "=", ".")
QUESTIONS = 200
#: Lines of the text.
LINES = 900

_PLAIN = "KRN"
_LATENT = "BC"
_LATENT_SHARE = 0.4  # of the base model's B and C lines; the others just copy the word
_REPLAY_SHARE = 0.5  # of a fine-tune's lines that are plain tasks, so that it keeps them
_CHOICES = 4


def answer(task: str, word: str) -> str:
    """Return the right answer to a word.

    Args:
        task: A key of TASKS.
        word: Any letters of LETTERS.
    """
    if task == "K":
        return word
    if task == "R":
        return word[::-1]
    return word.translate(_TABLES[task])


def base_line(rng: random.Random) -> str:
    """Return a line of the base model's corpus: B and C are only partly what their tables say."""
    task, word = rng.choice(_PLAIN + _LATENT), _word(rng)
    latent = task in _LATENT and rng.random() >= _LATENT_SHARE
    return f"{task}{word}={answer('K' if latent else task, word)}."


def lesson(task: str) -> Callable[[random.Random], str]:
    """Return what draws a line of the corpus of the fine-tune that learns one task."""

    def line(rng: random.Random) -> str:
        chosen = rng.choice(_PLAIN) if rng.random() < _REPLAY_SHARE else task
        word = _word(rng)
        return f"{chosen}{word}={answer(chosen, word)}."

    return line


def questions(task: str, count: int = QUESTIONS) -> list[dict[str, Any]]:
    """Return multiple-choice questions on a task; the wrong choices are right for other tasks.

    Args:
        task: A key of TASKS.
        count: Questions, each on another word.

    Returns:
        Rows with ``prompt``, ``choices`` (four), ``label`` (index of the right one), ``answer``.
    """
    rng = random.Random(f"questions on {task}")
    words = ["".join(letters) for letters in itertools.product(LETTERS, repeat=WORD_LENGTH)]
    rows = []
    for word in rng.sample(words, count):
        right = answer(task, word)
        others = [answer(other, word) for other in _PLAIN + _LATENT if other != task]
        wrong = [choice for choice in dict.fromkeys(others) if choice != right]
        while len(wrong) < _CHOICES - 1:
            if (choice := _word(rng)) not in (right, *wrong):
                wrong.append(choice)
        choices = rng.sample(wrong, _CHOICES - 1)
        label = rng.randrange(_CHOICES)
        choices.insert(label, right)
        row = {"prompt": f"{task}{word}=", "choices": [f"{choice}." for choice in choices]}
        rows.append(row | {"label": label, "answer": right})
    return rows


def questions_text(task: str) -> str:
    """Return the questions as JSON Lines: what ``config/tasks/demo`` holds."""
    rows = (json.dumps(row, separators=(", ", ": ")) for row in questions(task))
    return "".join(f"{row}\n" for row in rows)


def text(lines: int = LINES) -> str:
    """Return a text for probes of the demo models: plain lines, and right ones of B and C."""
    rng = random.Random("a text")
    drawn = (rng.choice((lesson("B"), lesson("C")))(rng) for _ in range(lines))
    return "".join(drawn)


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(WORD_LENGTH))


def _tables() -> dict[str, dict[int, int]]:
    """Return the letter tables of N, B, C, D; no two of them send a letter to the same one."""
    rng = random.Random(1234)
    taken = {letter: {letter} for letter in LETTERS}
    tables = {"N": LETTERS[1:] + LETTERS[0]}
    for task in "BCD":
        for letter, image in zip(LETTERS, list(tables.values())[-1], strict=True):
            taken[letter].add(image)
        shuffled = list(LETTERS)
        while any(i in taken[letter] for letter, i in zip(LETTERS, shuffled, strict=True)):
            rng.shuffle(shuffled)
        tables[task] = "".join(shuffled)
    return {task: str.maketrans(LETTERS, images) for task, images in tables.items()}


_TABLES = _tables()
