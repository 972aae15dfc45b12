"""Where blocks are computed: in the slots' own memory, or on an accelerator beside it."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardmerge.base.direct import huge_pages
from shardmerge.base.errors import UserError
from shardmerge.engine.layout import Window

if TYPE_CHECKING:
    import torch

#: A tensor's sources are held on a card if they take no more than this part of its free memory:
#: other jobs may use it too.
_SHARE = 8


@dataclass
class HostBuffer:
    """Page-aligned host memory, as bytes and, where torch is used, as a tensor of uint8."""

    memory: memoryview
    address: int
    tensor: torch.Tensor | None = None


@dataclass
class Slot:
    """The buffers that a window travels in: its output, and what it is computed from."""

    output: HostBuffer
    arena: HostBuffer
    window: Window = field(init=False)


def host_buffer(length: int, *, tensor: bool, pinned: bool = False) -> HostBuffer:
    """Return a buffer of at least one byte.

    Args:
        length: Bytes.
        tensor: Whether torch will compute in it.
        pinned: Whether an accelerator copies from and to it by itself.
    """
    length = max(length, 1)
    if pinned:
        import torch

        pages = torch.empty(length, dtype=torch.uint8, pin_memory=True)
        return HostBuffer(memoryview(pages.numpy()), pages.data_ptr(), pages)
    pages = huge_pages(length)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    if not tensor:
        return HostBuffer(memoryview(pages), address)
    import torch

    return HostBuffer(memoryview(pages), address, torch.frombuffer(pages, dtype=torch.uint8))


def card_of(device: str) -> int | None:
    """Return which of the cards that torch sees a device is, from 0; None for the processor.

    Args:
        device: ``cpu``, ``cuda`` (the first card) or ``cuda:N``, N from 0.

    Raises:
        UserError: If it is unknown.
    """
    form = re.fullmatch(r"cpu|cuda(?::([0-9]{1,2}))?", device, re.ASCII)
    if not form:
        raise UserError(f"unknown device {device!r}", "device", "Known here: cpu, cuda, cuda:N.")
    return None if device == "cpu" else int(form[1] or 0)


def check_device(device: str) -> None:
    """Show that a device can be used.

    Args:
        device: As of ``card_of``.

    Raises:
        UserError: If it is unknown or not there.
    """
    number = card_of(device)
    if number is None:
        return
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not seen:
        raise UserError(
            "torch finds no CUDA device", "device", "Write `device: cpu` in the configuration."
        )
    if number >= seen:
        raise UserError(
            f"torch sees no device {device!r}, but {seen} from cuda:0 on",
            "device",
            "Write `device: cuda`: the first card that the job is given.",
        )


class Host:
    """Computing in the slots' own memory."""

    device = "cpu"
    #: Whether it copies from and to host memory by itself, which must be pinned then.
    pinned = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make this the place where torch computes in the calling thread."""
        yield

    def inputs(self, buffer: HostBuffer, length: int) -> torch.Tensor:
        """Return a buffer's first bytes where they can be computed with."""
        return buffer.tensor[:length]

    def outputs(self, buffer: HostBuffer) -> torch.Tensor:
        """Return a tensor of a buffer's length in bytes that results are written to."""
        return buffer.tensor

    def deliver(self, results: torch.Tensor, buffer: HostBuffer, begin: int, end: int) -> None:
        """Bring a range of the results to the buffer."""

    def mark(self) -> Callable[[], None]:
        """Return what waits until all that the thread has asked for so far is done."""
        return lambda: None

    def wait(self) -> None:
        """Return when all that was asked for is done."""

    def room(self, length: int) -> bool:
        """Whether so many bytes may be held here, so that files are not read for each pass."""
        return False


class Cuda:
    """Computing on a CUDA device, in a stream of its own, beside pinned buffers.

    Lanes with streams of their own overlap one's copies with another's computing.

    Args:
        device: ``cuda`` or ``cuda:N``.
    """

    pinned = True

    def __init__(self, device: str) -> None:
        import torch

        self._torch: Any = torch
        self.device = device
        self._stream = torch.cuda.Stream(torch.device(device))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make this the place where torch computes in the calling thread."""
        with self._torch.cuda.stream(self._stream):
            yield

    def inputs(self, buffer: HostBuffer, length: int) -> torch.Tensor:
        """Return a buffer's first bytes where they can be computed with."""
        return buffer.tensor[:length].to(self.device, non_blocking=True)

    def outputs(self, buffer: HostBuffer) -> torch.Tensor:
        """Return a tensor of a buffer's length in bytes that results are written to."""
        return self._torch.empty_like(buffer.tensor, device=self.device)

    def deliver(self, results: torch.Tensor, buffer: HostBuffer, begin: int, end: int) -> None:
        """Bring a range of the results to the buffer."""
        buffer.tensor[begin:end].copy_(results[begin:end], non_blocking=True)

    def mark(self) -> Callable[[], None]:
        """Return what waits until all that the thread has asked for so far is done."""
        return self._torch.cuda.current_stream(self.device).record_event().synchronize

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        self._stream.synchronize()

    def room(self, length: int) -> bool:
        """Whether so many bytes may be held here, so that files are not read for each pass."""
        cuda = self._torch.cuda
        free, _ = cuda.mem_get_info(self.device)
        own = cuda.memory_reserved(self.device) - cuda.memory_allocated(self.device)
        return length <= (free + own) // _SHARE
