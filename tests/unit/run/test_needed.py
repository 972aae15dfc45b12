"""What a package is needed for is told in a sentence where it is not installed."""

from __future__ import annotations

import pytest

from shardmerge.base.errors import UserError
from shardmerge.run import needed
from shardmerge.run.cli import run


@pytest.mark.parametrize(("name", "target"), [("torch.nn", "env-torch"), ("lm_eval", "env`")])
def test_a_job_that_lacks_one(name: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(SystemExit):
        run(main)
    told = capsys.readouterr().err
    assert told.startswith("error: ") and f"need the package {name}" in told
    assert f"make {target}" in told


def test_a_fault_of_ours_stays_one() -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'shardmerge.nowhere'", name="shardmerge.nowhere")

    with pytest.raises(ModuleNotFoundError):
        run(main)


def test_torch_before_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "find_spec", lambda name: None)
    needed.check_torch(False)
    with pytest.raises(UserError, match=r"not native code.* need the package torch"):
        needed.check_torch(True)
