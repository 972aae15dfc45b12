"""Prefixes that vision-language models have under two names: those of first releases, and newer.

Data, to be added to: transformers from 4.52 on saves the new ones, and reads both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

#: Each a table of one kind of model: old prefix and new.
TABLES: tuple[tuple[tuple[str, str], ...], ...] = (
    (  # LLaVA, Gemma 3, PaliGemma, Mistral 3, Mllama, Aria and their like
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("vision_model.", "model.vision_model."),
        ("image_tower.", "model.image_tower."),
        ("video_tower.", "model.video_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("image_newline", "model.image_newline"),
    ),
    (  # Emu 3
        ("text_model.model.", "model.text_model."),
        ("text_model.lm_head.", "lm_head."),
        ("vqmodel.", "model.vqmodel."),
    ),
    (  # Qwen2-VL and Qwen2.5-VL
        ("visual.", "model.visual."),
        ("model.", "model.language_model."),
    ),
)


def renamings(names: Iterable[str]) -> Iterator[Callable[[str], str]]:
    """Yield the ways to spell a model's names as its architecture did earlier or does later.

    A table is a model's only if it has names of several of its rows: else a language model would
    pass for the text decoder of a larger one.

    Args:
        names: All of the model.
    """
    known = list(names)
    for table in TABLES:
        for rows in (table, tuple((new, old) for old, new in table)):
            if sum(any(name.startswith(row) for name in known) for row, _ in rows) > 1:
                yield lambda name, rows=rows: _renamed(name, rows)


def _renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    row = next((row for row in rows if name.startswith(row[0])), None)
    return row[1] + name.removeprefix(row[0]) if row else name
