"""Train the demo models, and write them as sharded checkpoints."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import write_text
from shardmerge.run.cli import run
from tools.demo import skills


def main() -> None:
    """Read the command line, train, save, and print what each model can do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="folder to make the models' folders in")
    parser.add_argument("--model", action="append", help="train only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default 0)")
    parser.add_argument("--questions", type=Path, help="folder to write the tasks' questions to")
    args = parser.parse_args()

    if args.questions:
        for task, name in skills.TASKS.items():
            write_text(args.questions / f"demo_{name}.jsonl", skills.questions_text(task))
        write_text(args.questions / "text.txt", skills.text())
    if args.output:
        _train(args.output, args.seed, args.model)


def _train(output: Path, seed: int, names: list[str] | None) -> None:
    import torch
    from transformers.utils import logging

    from tools.demo.checkpoint import save_model
    from tools.demo.training import FAMILY, choice_accuracy, train_family

    torch.set_num_threads(1)  # so that sums are always added in one order
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()

    names = names or list(FAMILY)
    for name in names:
        if name not in FAMILY:
            raise UserError(f"there is no demo model {name!r}", hint=did_you_mean(name, FAMILY))
        if (output / name).exists():
            raise UserError("exists already", str(output / name), "Give another --output.")
    start = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - start:4.0f} s  {text}", file=sys.stderr, flush=True)

    questions = {task: skills.questions(task) for task in skills.TASKS}
    print(f"{'accuracy':20}", *(f"{name:>8}" for name in skills.TASKS.values()))
    for name, model in train_family(seed, names, tell).items():
        if name in names:
            half = save_model(name, model, output / name)
            scores = (choice_accuracy(half.float(), rows) for rows in questions.values())
            print(f"{name:20}", *(f"{score:8.3f}" for score in scores), flush=True)


if __name__ == "__main__":
    run(main)
