"""Buffers that blocks are computed in, made once."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from shardmerge.base.dtypes import DTYPES

#: Has torch ask for huge pages for tensors of 2 MB and more.
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def _use_huge_pages() -> None:
    """Have torch ask for huge pages, which take less time to get than small ones.

    It looks once, when it first asks for memory; forks of this process keep what it found.
    """
    if _HUGE_PAGES not in os.environ:
        os.environ[_HUGE_PAGES] = "1"
        torch.empty(1)
        del os.environ[_HUGE_PAGES]


_use_huge_pages()


class BlockBuffers:
    """Buffers of one block each, made when first asked for.

    Args:
        length: Elements of a block at most.
        device: Where they lie.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        self.length = length
        self.device = device
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        self._scratch: dict[tuple[str, int], dict[int, torch.Tensor]] = {}

    def get(self, dtype: str, index: int) -> torch.Tensor:
        """Return the buffer of that dtype and number."""
        if (dtype, index) not in self._buffers:
            self._buffers[dtype, index] = torch.empty(
                self.length, dtype=torch_dtype(dtype), device=self.device
            )
        return self._buffers[dtype, index]

    def scratch(self, dtype: str, index: int) -> Callable[[int, int], torch.Tensor]:
        """Return what gives further buffers of that dtype, by number, as long as is asked for."""
        buffers: dict[int, torch.Tensor] = self._scratch.setdefault((dtype, index), {})

        def get(number: int, length: int) -> torch.Tensor:
            if number not in buffers or len(buffers[number]) < length:
                buffers[number] = torch.empty(length, dtype=torch_dtype(dtype), device=self.device)
            return buffers[number]

        return get


def torch_dtype(code: str) -> torch.dtype:
    """Return torch's dtype of a safetensors code."""
    return getattr(torch, DTYPES[code].name)


def data_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor, which has at least one element."""
    return memoryview(tensor.contiguous().cpu().numpy()).cast("B")
