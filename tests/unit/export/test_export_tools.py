"""Programs of llama.cpp: where they are found, how they run, what is told when they fail."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from helpers.stand_ins import StandIns
from shardmerge.base.errors import UserError
from shardmerge.export import tools
from shardmerge.export.tools import CONVERTER, LlamaCpp, run_program


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path / "it's $(touch PWNED) llama")


def script(folder: Path, body: str) -> list[str]:
    path = folder / "program"
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return [str(path)]


class TestFinding:
    def test_in_the_folder(self, stand_ins: StandIns) -> None:
        found = LlamaCpp(stand_ins.folder)
        assert found.program("llama-quantize") == str(stand_ins.folder / "build/bin/llama-quantize")
        assert found.converter() == stand_ins.folder / CONVERTER
        assert found.python() == sys.executable

    def test_the_folders_own_python_runs_the_converter(self, stand_ins: StandIns) -> None:
        own = stand_ins.folder / ".venv/bin/python"
        own.parent.mkdir(parents=True)
        own.symlink_to(sys.executable)
        assert LlamaCpp(stand_ins.folder).python() == str(own)

    def test_on_the_path(self, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", f"{stand_ins.folder}:{stand_ins.folder}/build/bin")
        assert LlamaCpp().converter().parent == stand_ins.folder
        assert LlamaCpp().program("llama-imatrix").startswith(str(stand_ins.folder))

    def test_a_folder_is_not_mixed_with_the_path(
        self, stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", f"{stand_ins.folder}/build/bin")
        with pytest.raises(UserError, match="has no llama-quantize"):
            LlamaCpp(tmp_path).program("llama-quantize")

    def test_what_is_nowhere_is_told_with_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(tools, "find_spec", lambda name: None)
        for find in (LlamaCpp().converter, lambda: LlamaCpp().program("llama-quantize")):
            with pytest.raises(UserError, match="`llama_cpp` in the configuration"):
                find()

    def test_versions(self, stand_ins: StandIns) -> None:
        found = LlamaCpp(stand_ins.folder).versions()
        assert found["llama.cpp"] == "7 (abc)"
        assert all(found[name].startswith("sha256:") for name in (CONVERTER, "llama-quantize"))


class TestRunning:
    def test_last_lines_are_the_reason(self, tmp_path: Path) -> None:
        words = script(tmp_path, "print(*range(9), sep='\\n'); print('\\x1b[31mBAD'); exit(3)")
        with pytest.raises(UserError) as caught:
            run_program(words, tmp_path, "the model")
        text = str(caught.value)
        assert "program failed with status 3" in text and "the model" in text
        assert "\n  8\n  \\x1b[31mBAD" in text and "\n  3" not in text

    @pytest.mark.parametrize(
        ("last", "hint"),
        [
            (
                "NotImplementedError: BPE pre-tokenizer was not recognized",
                "tokenizer of one source",
            ),
            ("ERROR: Model FooForCausalLM is not supported", "architecture"),
            ("ModuleNotFoundError: No module named 'torch'", "requirements-gguf.txt"),
        ],
    )
    def test_known_failures_have_a_hint(self, tmp_path: Path, last: str, hint: str) -> None:
        with pytest.raises(UserError, match=hint):
            run_program(script(tmp_path, f"exit({last!r})"), tmp_path, "the model")

    def test_not_to_be_started(self, tmp_path: Path) -> None:
        (tmp_path / "program").write_text("text")
        with pytest.raises(UserError, match="cannot be started"):
            run_program([str(tmp_path / "program")], tmp_path, "the model")

    def test_told_no_secrets_and_no_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_abc123")
        monkeypatch.setenv("PYTHONPATH", "elsewhere")
        body = "import os; print(sorted((k, v) for k, v in os.environ.items()))"
        run_program(script(tmp_path, body), tmp_path, "the model")
        said = capfd.readouterr().err
        assert "hf_abc123" not in said and "elsewhere" not in said
        assert "('HF_HUB_OFFLINE', '1')" in said

    def test_ends_with_the_job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Ended(BaseException):
            pass

        def ended(text: str) -> str:
            raise Ended(text)

        monkeypatch.setattr(tools, "printable", ended)
        body = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        with pytest.raises(Ended) as caught:
            run_program(script(tmp_path, body), tmp_path, "the model")
        with pytest.raises(ProcessLookupError):
            os.kill(int(str(caught.value)), 0)
