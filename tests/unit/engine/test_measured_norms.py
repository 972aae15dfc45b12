"""The norm of a task vector over whole models."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardmerge.base.errors import UserError
from shardmerge.base.unfinished import Keeping
from shardmerge.engine import native
from shardmerge.engine.norms import measure_norm


def written(folder: Path, *files: dict[str, torch.Tensor]) -> list[Path]:
    folder.mkdir()
    for number, tensors in enumerate(files):
        save_file(tensors, folder / f"{number}.safetensors")
    return sorted(folder.iterdir())


def test_by_hand(tmp_path: Path) -> None:
    """Differences 3 and 4 in two files, in types and names of their own: the norm is 5."""
    own = written(
        tmp_path / "own",
        {"a": torch.tensor([1.0, 3.0], dtype=torch.bfloat16)},
        {"b": torch.tensor([[5.0]], dtype=torch.float16), "c": torch.ones(3)},
    )
    base = written(tmp_path / "base", {"a": torch.tensor([1.0, 0.0]), "x": torch.tensor([[1.0]])})
    output = tmp_path / "norm.safetensors"
    assert measure_norm(["a", ["b", "x"]], own, base, output) == 5.0
    assert load_file(output)["norm"].tolist() == [5.0]


def test_threads_change_no_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(700, 501, generator=generator)
    own, base = (written(tmp_path / n, {"w": tensor * f}) for n, f in (("a", 1.0), ("b", 0.3)))
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(measure_norm(["w"], own, base, tmp_path / "norm.safetensors"))
    torch.set_num_threads(before)
    assert found[0] == found[1]
    wanted = math.sqrt(float((tensor.double() - (tensor * 0.3).double()).square().sum()))
    assert found[0] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.skipif(not native.is_usable(), reason="no native code here")
def test_native_code_has_the_bits_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each type, tiles and vectors that are not full, and nothing at all."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 91_001, generator=generator)
    codes = {"h": torch.float16, "b": torch.bfloat16, "f": torch.float32}
    own = {name: wide.to(code) for name, code in codes.items()} | {"none": torch.ones(0, 4)}
    base = {name: (one / 3).to(torch.bfloat16) for name, one in own.items()}
    paths = written(tmp_path / "own", own), written(tmp_path / "base", base)
    found = [measure_norm([name], *paths, tmp_path / "made") for name in own]
    monkeypatch.setattr(native, "is_usable", lambda: False)
    assert found == [measure_norm([name], *paths, tmp_path / "made") for name in own]
    assert found[-1] == 0.0


@pytest.mark.skipif(not native.is_usable(), reason="no native code here")
def test_no_torch_is_loaded_for_it(tmp_path: Path) -> None:
    own, base = (written(tmp_path / n, {"w": torch.ones(70) * f}) for n, f in (("a", 1), ("b", 3)))
    script = (
        "import sys, pathlib\n"
        "from shardmerge.engine.norms import measure_norm\n"
        "own, base, made = map(pathlib.Path, sys.argv[1:])\n"
        "assert measure_norm(['w'], [own], [base], made) == 280**0.5\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(*own), str(*base), str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_killed_job_reads_the_rest_alone(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.randn(50, generator=generator) for i in range(5)}
    own = written(tmp_path / "own", tensors)
    base = written(tmp_path / "base", {name: one / 3 for name, one in tensors.items()})
    whole, made = tmp_path / "whole", tmp_path / "made"
    wanted = measure_norm(list(tensors), own, base, whole)
    always = Keeping("job", least=0.0, share=1.0)

    def kill(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_norm(list(tensors), own, base, made, progress=kill, keeping=always)
    again: list[int] = []
    found = measure_norm(
        list(tensors), own, base, made, progress=lambda i, _: again.append(i), keeping=always
    )
    assert again == [4, 5]
    assert (found, made.read_bytes()) == (wanted, whole.read_bytes())


def test_mistakes_are_told(tmp_path: Path) -> None:
    own = written(tmp_path / "own", {"a": torch.tensor([math.inf]), "b": torch.ones(2)})
    base = written(tmp_path / "base", {"a": torch.zeros(1), "b": torch.ones(3)})
    output = tmp_path / "norm.safetensors"
    for name, message in (("a", "infinite"), ("b", "shapes differ"), ("c", "has no tensor 'c'")):
        with pytest.raises(UserError, match=message):
            measure_norm([name], own, base, output)
    assert not output.exists()
