"""GGUF files by llama.cpp's own programs: converted, measured, quantised, split."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardmerge.base.claims import part_path
from shardmerge.base.digest import canonical_json
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, put_in_place
from shardmerge.export.gguf import PLAIN
from shardmerge.export.tools import LlamaCpp, run_program
from shardmerge.plan.description import BuildDescription

#: What of a model's folder the converter sees: nothing that could be code.
_SEEN = re.compile(r"\w[\w.-]*\.(safetensors|json|model|txt|jinja|tiktoken|bpe)")
#: In JSON files: where code of a model's own lies, here or in any repository.
_CODE = "auto_map"
_MEGABYTE = 1_000_000


def plain_type(description: BuildDescription) -> str:
    """Return the type that holds a model's values as they are: that of most of its bytes."""
    sizes: Counter[str] = Counter()
    for shard in description.shards:
        for dtype, shape in shard.tensors.values():
            sizes[dtype] += tensor_bytes(dtype, shape)
    held = [code for code, _ in sizes.most_common() if code in PLAIN]
    return PLAIN[held[0]] if held else "f32"


def convert_model(tools: LlamaCpp, model: Path, name: str, kind: str, output: Path) -> None:
    """Convert a model to one GGUF file.

    The converter runs code that a model's folder names, so it is shown a folder of links to what
    is no code, and JSON files that name none.

    Args:
        tools: llama.cpp.
        model: The folder of the model, verified.
        name: The model's, for the metadata.
        kind: ``bf16``, ``f16`` or ``f32``.
        output: The file.
    """
    script = str(tools.converter())
    with _workplace(output) as work:
        _show(model, work / "model")
        options = ["--outfile=base.gguf", f"--outtype={kind}", f"--model-name={name}"]
        run_program([tools.python(), script, "model", *options], work, str(model))
        put_in_place(_made(work, "base.gguf", "the converter"), output)


def measure_importance(tools: LlamaCpp, base: Path, text: Path, threads: int, output: Path) -> None:
    """Measure on a text which weights matter, for quantisation.

    Args:
        tools: llama.cpp.
        base: From ``convert_model``.
        text: What the model reads.
        threads: To compute with.
        output: The importance matrix.
    """
    program = tools.program("llama-imatrix")
    if not text.is_file():
        raise UserError("is no file", str(text), "`exports.gguf.imatrix` names a text.")
    with _workplace(output) as work:
        (work / "text").symlink_to(text.absolute())
        (work / "base.gguf").symlink_to(base.absolute())
        words = ["-m", "base.gguf", "-f", "text", "-o", "imatrix.gguf", "-t", str(threads)]
        hint = "The text may be too short: it needs some thousands of tokens."
        run_program([program, *words], work, str(text), hint)
        put_in_place(_made(work, "imatrix.gguf", "llama-imatrix"), output)


def quantize(
    tools: LlamaCpp,
    base: Path,
    kind: str,
    stem: str,
    split: int,
    folder: Path,
    *,
    plain: str,
    imatrix: Path | None = None,
    threads: int = 1,
) -> None:
    """Make the folder of one type, with one file or several.

    Args:
        tools: llama.cpp.
        base: From ``convert_model``.
        kind: The type.
        stem: Of the files' names.
        split: The most bytes of a file.
        folder: Made whole or not at all.
        plain: The type of ``base``.
        imatrix: From ``measure_importance``; types that round nothing away need none.
        threads: To compute with.
    """
    with _workplace(folder) as work:
        (work / "base.gguf").symlink_to(base.absolute())
        if kind == plain:
            _link(base, work / "model.gguf")
        else:
            weighed = imatrix is not None and kind not in PLAIN.values()
            if weighed:
                (work / "imatrix.gguf").symlink_to(imatrix.absolute())
            options = ["--imatrix", "imatrix.gguf"] if weighed else []
            words = [*options, "base.gguf", "model.gguf", kind.upper(), str(threads)]
            run_program([tools.program("llama-quantize"), *words], work, str(base))
        files = _split(tools, _made(work, "model.gguf", "llama-quantize"), split)
        done = work / "done"
        done.mkdir()
        for file in files:
            put_in_place(file, done / file.name.replace("model", stem, 1))
        _replace_folder(done, folder)


def _split(tools: LlamaCpp, file: Path, most: int) -> list[Path]:
    """Return a file, or the files that it was split into if it is too large for one."""
    if file.stat().st_size <= most:
        return [file]
    limit = f"{max(1, most // _MEGABYTE)}M"
    words = ["--split", "--split-max-size", limit, "model.gguf", "model"]
    run_program([tools.program("llama-gguf-split"), *words], file.parent, str(file))
    file.unlink()
    found = sorted(file.parent.glob("model-*-of-*.gguf"))
    if not found:
        raise UserError("made no files", "llama-gguf-split")
    return found


def _show(model: Path, folder: Path) -> None:
    """Make a folder of what the converter may see of a model."""
    folder.mkdir()
    for path in sorted(model.iterdir()):
        if not (path.is_file() and _SEEN.fullmatch(path.name)):
            continue
        if path.name.endswith("config.json"):
            text = canonical_json(_without_code(load_json(path)))
            (folder / path.name).write_text(text, encoding="utf-8")
        else:
            (folder / path.name).symlink_to(path.absolute())


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key != _CODE}
    return [_without_code(item) for item in value] if isinstance(value, list) else value


def _made(work: Path, name: str, program: str) -> Path:
    if not (work / name).is_file():
        raise UserError("ended well, and left no file", program)
    return work / name


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """Give a new folder beside an output to work in, which goes afterwards.

    What earlier jobs left that were killed goes too: the output's claim is held.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    work = part_path(output)
    remove_folders(output.parent.glob(f".{_escaped(output.name)}.*.part"))
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_folders(folders: Iterable[Path]) -> None:
    """Remove unfinished folders, links themselves and not what they lead to."""
    for folder in folders:
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _replace_folder(made: Path, folder: Path) -> None:
    """Give a finished folder its name; an earlier one goes when the new one is whole."""
    earlier = None
    if folder.is_dir():
        earlier = part_path(folder)
        os.rename(folder, earlier)
    os.rename(made, folder)
    if earlier:
        shutil.rmtree(earlier)
