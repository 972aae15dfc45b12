"""Memory of torch's tensors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
import {module}
import torch
assert "THP_MEM_ALLOC_ENABLE" not in os.environ or {chosen}
large = [torch.empty(8 << 20, dtype=torch.uint8) for _ in range(4)]
print(sum(one.data_ptr() % 4096 == 0 for one in large))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no huge pages are asked for")
@pytest.mark.parametrize("module", ["shardmerge.engine.torch_lane", "shardmerge.engine.whole"])
@pytest.mark.parametrize(("chosen", "aligned"), [({}, 4), ({"THP_MEM_ALLOC_ENABLE": "0"}, 0)])
def test_large_tensors_lie_in_huge_pages(module: str, chosen: dict[str, str], aligned: int) -> None:
    """Torch aligns those that it asks huge pages for as pages, others after the heap's header."""
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | chosen
    script = SCRIPT.format(module=module, chosen=bool(chosen))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{aligned}\n", done.stderr
