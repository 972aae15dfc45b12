"""The counter-based random numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmerge.methods.kernels import keys, rng

KEY = (0x243F6A8885A308D3, 0x13198A2E03707344)


class TestWords:
    def test_known_answer(self) -> None:
        """Of the generator's authors, for a counter and a key of zeros."""
        zeros = rng.words_torch((0, 0), 0, 1).numpy().view(np.uint64)
        assert [hex(word) for word in zeros] == [
            "0x16554d9eca36314c",
            "0xdb20fe9d672d0fdc",
            "0xd7e772cee186176b",
            "0x7e68b68aec7ba23b",
        ]

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        key=st.tuples(*[st.integers(0, 2**64 - 1)] * 2),
        first=st.integers(0, 2**60),
        blocks=st.integers(1, 9),
    )
    def test_arithmetic_is_that_of_numpy(self, key: rng.Key, first: int, blocks: int) -> None:
        expected = torch.from_numpy(keys.words(key, first, blocks).view(np.int64))
        assert torch.equal(rng.words_torch(key, first, blocks), expected)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_gpu_draws_the_same(self) -> None:
        assert torch.equal(rng.uniform(KEY, 5, 10_000, "cuda").cpu(), rng.uniform(KEY, 5, 10_000))


class TestUniform:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(start=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 300), max_size=4))
    def test_blocks_join(self, start: int, cuts: list[int]) -> None:
        edges = sorted({0, 300, *cuts})
        parts = [rng.uniform(KEY, start + a, b - a) for a, b in itertools.pairwise(edges)]
        assert torch.equal(torch.cat(parts), rng.uniform(KEY, start, 300))

    def test_is_uniform(self) -> None:
        draws = rng.uniform(KEY, 0, 400_000)
        assert draws.dtype == torch.float64
        assert draws.min() >= 0 and draws.max() < 1
        counts = torch.histc(draws, bins=100, min=0, max=1)
        chi_square = ((counts - 4000) ** 2 / 4000).sum()
        assert 50 < chi_square < 170  # 99 degrees of freedom
        assert abs((draws[:-1] - 0.5).dot(draws[1:] - 0.5)) < 5 * 400_000**0.5 / 12

    def test_streams_differ_by_each_part_of_the_key(self) -> None:
        parts = [
            (0, "", "tensor", "model"),
            (1, "", "tensor", "model"),
            (0, "stage", "tensor", "model"),
            (0, "", "other", "model"),
            (0, "", "tensor", "other"),
            (0, "", "tensormodel", ""),
        ]
        draws = torch.stack([rng.uniform(keys.stream_key(*part), 0, 1000) for part in parts])
        assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.15
