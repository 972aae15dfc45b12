"""Programs that stand in for llama.cpp's: each writes down what it was told, and a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_HEAD = """\
import json, os, pathlib, sys
here = pathlib.Path(__file__).resolve().parent
with open({log!r}, "a") as log:
    told = {{"name": {name!r}, "words": sys.argv[1:], "token": os.environ.get("HF_TOKEN"),
             "offline": os.environ.get("HF_HUB_OFFLINE"), "seen": sorted(os.listdir("."))}}
    if os.path.isdir("model"):
        told["model"] = sorted(os.listdir("model"))
        told["texts"] = {{p.name: p.read_text() for p in pathlib.Path("model").glob("*.json")}}
    log.write(json.dumps(told) + "\\n")
"""
CONVERT = """
[out] = [w.partition("=")[2] for w in sys.argv if w.startswith("--outfile=")]
pathlib.Path(out).write_bytes(b"base")
"""
QUANTIZE = """
words = [w for w in sys.argv[1:] if not w.startswith("--")]
at = words.index("base.gguf")
pathlib.Path(words[at + 1]).write_bytes(words[at + 2].encode() * 100)
"""
SPLIT = """
if "--version" in sys.argv:
    print("version: 7 (abc)")
else:
    data = pathlib.Path(sys.argv[-2]).read_bytes()
    half = len(data) // 2
    for i, part in enumerate((data[:half], data[half:]), 1):
        pathlib.Path(f"{sys.argv[-1]}-{i:05d}-of-00002.gguf").write_bytes(part)
"""
IMATRIX = """
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_bytes(pathlib.Path("text").read_bytes())
"""


class StandIns:
    """A folder of llama.cpp whose programs are stand-ins.

    Args:
        folder: Made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._log = folder, folder / "told.jsonl"
        (folder / "build" / "bin").mkdir(parents=True)
        self.write("convert_hf_to_gguf.py", CONVERT)
        self.write("build/bin/llama-quantize", QUANTIZE)
        self.write("build/bin/llama-gguf-split", SPLIT)
        self.write("build/bin/llama-imatrix", IMATRIX)

    def write(self, name: str, body: str) -> None:
        """Write a program."""
        head = _HEAD.format(log=str(self._log), name=Path(name).name)
        path = self.folder / name
        path.write_text(f"#!{sys.executable}\n{head}{body}", encoding="utf-8")
        path.chmod(0o755)

    def told(self) -> list[dict]:
        """Return what the programs were told, in the order that they ran."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [json.loads(line) for line in lines]
