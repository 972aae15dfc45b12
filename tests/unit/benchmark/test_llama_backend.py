"""lm-eval's questions to llama.cpp's server, with a stand-in that computes a formula.

The real server is asked in tests/llama.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.hub_cases import wait_until
from helpers.stand_in_llama import install, logprobs
from shardmerge.base.errors import UserError
from shardmerge.benchmark.llama_server import served
from shardmerge.benchmark.loading import Beside, loaded
from shardmerge.benchmark.options import EvalOptions
from shardmerge.recipe.settings import load_settings

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "resources" / "demo" / "midnight-tiny"
IN_LLAMA = EvalOptions(backend="llama_cpp")


@pytest.fixture
def program(tmp_path: Path) -> str:
    return str(install(tmp_path / "llama"))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export of two files, of which a server is told the first."""
    folder = tmp_path / "q8_0"
    folder.mkdir()
    (folder / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    (folder / "m-00002-of-00002.gguf").write_bytes(b"more")
    return folder


def asked(*args: Any) -> Any:
    return SimpleNamespace(args=args, task_name="t", doc_id=0)


class TestModel:
    def test_answers_have_the_models_own_probabilities(self, program: str, export: Path) -> None:
        with loaded(export, IN_LLAMA, None, Beside(MODEL, None, program)) as model:
            encode = model.tok_encode
            pairs = [("Babcd=", "abc"), ("B", "a"), ("Babcd=", "d"), ("", "ab")]
            found = model.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
            (whole,) = model.loglikelihood_rolling([asked("Babc")])
            first = model.prefix_token_id
        for (context, answer), (total, _) in zip(pairs, found, strict=True):
            before = encode(context) if context else [first]
            tokens = encode(context + answer)[len(before) :] if context else encode(answer)
            tokens = [token for token in tokens if context or token != first]
            wanted = 0.0
            for at, token in enumerate(tokens):
                wanted += logprobs([*before, *tokens[:at]])[token]
            assert total == pytest.approx(wanted)
        tokens = encode("Babc")
        steps = [logprobs([first, *tokens][: at + 1])[t] for at, t in enumerate(tokens)]
        assert whole == pytest.approx(sum(steps))

    def test_whether_an_answer_is_the_likeliest(self, program: str, export: Path) -> None:
        with loaded(export, IN_LLAMA, None, Beside(MODEL, None, program)) as model:
            context = model.tok_encode("Babcd=")
            best = max(range(39), key=logprobs(context).__getitem__)
            rows = [(("", ""), context, [token]) for token in (best, (best + 1) % 39)]
            assert [greedy for _, greedy in model._loglikelihood_tokens(rows)] == [True, False]

    def test_what_is_too_long_loses_its_beginning(self, program: str, export: Path) -> None:
        options = EvalOptions(backend="llama_cpp", model_args={"max_length": 4})
        with loaded(export, options, None, Beside(MODEL, None, program)) as model:
            ((total, _),) = model._loglikelihood_tokens([(("", ""), [5, 6, 7, 8, 9], [1, 2])])
        wanted = logprobs([7, 8, 9])[1] + logprobs([7, 8, 9, 1])[2]
        assert total == pytest.approx(wanted)

    def test_generates_up_to_an_end(self, program: str, export: Path) -> None:
        with loaded(export, IN_LLAMA, None, Beside(MODEL, None, program)) as model:
            (whole,) = model.generate_until([asked("Bab", {"until": [], "max_gen_toks": 6})])
            end = whole[2]
            (cut,) = model.generate_until([asked("Bab", {"until": [end], "max_gen_toks": 6})])
            assert model.llama_cpp == "stand-in"
        assert len(whole) == 6 and cut == whole.partition(end)[0]


class TestServer:
    def test_ends_with_the_context(self, program: str, export: Path) -> None:
        with pytest.raises(ZeroDivisionError), served(program, *first(export)) as server:
            assert server.is_ready
            raise ZeroDivisionError
        assert not server.is_ready

    def test_ends_when_its_job_is_killed(self, program: str, export: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path\n"
            "from shardmerge.benchmark.llama_server import served\n"
            f"with served({program!r}, Path({str(first(export)[0])!r}), []) as server:\n"
            "    print(server.address, flush=True); time.sleep(600)\n"
        )
        env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
        job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
        assert job.stdout is not None
        port = job.stdout.readline().decode().strip().rpartition(":")[2]
        assert any(f"--port {port}" in line for line in command_lines())
        job.send_signal(signal.SIGKILL)
        job.wait()
        wait_until(lambda: not any(f"--port {port}" in line for line in command_lines()))

    def test_its_key_is_in_no_command_line(self, program: str, export: Path) -> None:
        with served(program, *first(export)) as server:
            assert not any(server.key in line for line in command_lines())
            assert server.key not in repr(server)
            with pytest.raises(UserError, match="answers 401"):
                type(server)(server.address, "other").ask("completion", {"prompt": []})

    def test_why_it_does_not_start(self, program: str, tmp_path: Path) -> None:
        (tmp_path / "broken.gguf").write_bytes(b"none")
        began = time.monotonic()
        told = pytest.raises(UserError, match="failed to load model")
        with told as caught, served(program, tmp_path / "broken.gguf", []):
            pass
        assert time.monotonic() - began < 60 and "\x1b" not in str(caught.value)
        told = pytest.raises(UserError, match="is no program that can be started")
        with told, served(str(tmp_path / "none"), tmp_path / "broken.gguf", []):
            pass


def first(export: Path) -> tuple[Path, list[str]]:
    return export / "m-00001-of-00002.gguf", []


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


class TestRefused:
    def test_what_is_no_gguf(self, program: str) -> None:
        told = pytest.raises(UserError, match="holds no GGUF")
        with told, loaded(MODEL, IN_LLAMA, None, Beside(None, None, program)):
            pass

    def test_adapters_in_vllm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shardmerge.benchmark.loading.find_spec", lambda name: True)
        options = EvalOptions(backend="vllm", device="cuda")
        told = pytest.raises(UserError, match="is an adapter")
        with told, loaded(MODEL, options, None, Beside(None, tmp_path)):
            pass

    def test_probes(self) -> None:
        entry = {"model": "exports", "backend": "llama_cpp"}
        benchmark = {"models": [entry], "tasks": ["t"], "probes": {"text": "x"}}
        with pytest.raises(UserError, match="`probes` need `backend: hf`"):
            load_settings({"recipes": ["r"], "benchmark": benchmark})
