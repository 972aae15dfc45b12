"""One pass over the output's windows: buffers, threads, hash and progress put together."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shardmerge.algebra import expression as ex
from shardmerge.base.direct import huge_pages
from shardmerge.base.errors import UserError
from shardmerge.base.hashing import bound_hash, quick_hasher
from shardmerge.base.safetensors import parse_header
from shardmerge.engine.ahead import Ahead
from shardmerge.engine.device import Cuda, Host, Slot, card_of, check_device, host_buffer
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.layout import Layout, Window, choose_windows
from shardmerge.engine.memory import TUNING, block_length, held_bytes, ready_places
from shardmerge.engine.output import OutputFile
from shardmerge.engine.pipeline import Pipeline
from shardmerge.engine.record import Tally
from shardmerge.engine.tasks import TensorTask, is_prepared, needs_torch, uses_card
from shardmerge.engine.witness import Witness

if TYPE_CHECKING:
    from shardmerge.engine.held import HeldSources
    from shardmerge.engine.native_lane import NativeLane
    from shardmerge.engine.torch_lane import TorchLane

Progress = Callable[[int, int], None]
#: Windows ahead of the reader that the kernel is told of.
_AHEAD = 4


class Stream:
    """A shard, ready to be streamed once.

    Args:
        tasks: Of its tensors.
        files: That it is made from.
        layout: Of the output.
        tally: Where time and bytes are counted.
        threads: Compute threads that are asked for.
        device: ``cpu``, ``cuda`` or ``cuda:N``, for what native code does not compute.
        progress: Called with bytes done and bytes in all.

    Raises:
        UserError: If the device is unknown, or needed and not there.
    """

    def __init__(
        self,
        tasks: Sequence[TensorTask],
        files: InputFiles,
        layout: Layout,
        tally: Tally,
        threads: int = 1,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self.tasks, self.files, self.layout, self.tally = tasks, files, layout, tally
        self._progress = progress
        self._native = _native(tasks, layout.computed)
        left = [tasks[one] for one in layout.computed if one not in self._native]
        self._torch = bool(left)
        self._device = _device_for(left, device)
        self._cuda = self._device != "cpu"
        # a device needs two lanes to copy and compute at once
        self._lanes = min(max(threads, 2 if self._cuda else 1), TUNING.lanes)
        # what a card prepares would take its memory once more
        self._places = 1 if self._cuda else ready_places(threads)
        self._hash, self._quick = hashlib.sha256(), quick_hasher()
        self._tensors = Witness(_task_vectors(tasks, layout))
        self._done = 0
        self._file: OutputFile | None = None
        self._windows: Sequence[Window] = ()
        sizes = {one: held_bytes(tasks[one], TUNING.held) for one in self._native}
        self._held = {one: size for one, size in sizes.items() if size}

    def run(self, file: OutputFile | None) -> str:
        """Send all windows through, to a file unless None; return the SHA-256 of all bytes."""
        with contextlib.ExitStack() as stack:
            with self.tally.timed("start"):
                tuning = TUNING
                if self._cuda:
                    tuning = replace(TUNING, buffers=TUNING.device_buffers)
                # windows of one size, whatever is held
                length, arena, self._windows = choose_windows(self.layout, tuning)
                if self._held:
                    self._windows = list(self._without_held().windows(length))
                lanes: list[NativeLane] = []
                makers: list[NativeLane] = []
                ahead = self._make_ahead()
                if self._torch or needs_torch(self.tasks):
                    stack.enter_context(_one_torch_thread())
                if self._torch:
                    stack.enter_context(_current(self._device))
                slots = self._make_slots(length, arena)
                if self.layout.computed:
                    lanes, makers = self._make_lanes(ahead)
            self._file = file
            Pipeline(
                slots,
                read=self._read,
                compute=[lane.compute for lane in lanes] or [_nothing],
                write=self._write if file else None,
                finish=self._finish,
                beside=[maker.prepare_all for maker in makers],
                stop=ahead.stop,
            ).run(self._windows)
        return self._hash.hexdigest()

    def xxh3(self) -> str:
        """Return the XXH3 of all bytes and their SHA-256, once all windows are through."""
        return bound_hash(self._quick, self._hash.hexdigest())

    def tensor_hashes(self) -> dict[str, str]:
        """Return the XXH3 of each tensor of a shard of task vectors; of no other shard's."""
        return self._tensors.finish(_nothing)

    def _make_slots(self, length: int, arena: int) -> list[Slot]:
        tensor, pinned = self._torch, self._cuda
        return [
            Slot(*(host_buffer(size, tensor=tensor, pinned=pinned) for size in (length, arena)))
            for _ in range(min(TUNING.slots, len(self._windows)))
        ]

    def _make_ahead(self) -> Ahead:
        """Return what has all that is made before the elements of tensors."""
        parts = Counter(chunk.tensor for window in self._windows for chunk in window.chunks)
        needed = {one: count for one, count in parts.items() if is_prepared(self.tasks[one])}
        return Ahead(needed, self._places)

    def _make_lanes(self, ahead: Ahead) -> tuple[list[NativeLane], list[NativeLane]]:
        """Return the compute threads' lanes, and those of threads that prepare tensors ahead."""
        from shardmerge.engine.native_lane import NativeLane

        makers = self._places - 1 if ahead else 0
        others = [None] * (self._lanes + makers)
        if self._torch:
            others = self._make_torch_lanes(ahead, len(others))
        hold = self._make_room()
        own = self.tasks, self.files, self.tally, self._native, ahead, hold
        found = [NativeLane(*own, other) for other in others]
        return found[: self._lanes], found[self._lanes :]

    def _make_room(self) -> Callable[[int, int], HeldSources | None]:
        """Return what gives sources that are held their room, which is each place's own.

        They lie in no window's input buffer.
        """
        from shardmerge.engine.held import HeldSources

        largest = max(self._held.values(), default=0)
        rooms = [huge_pages(largest) for _ in range(self._places if largest else 0)]

        def hold(tensor: int, place: int) -> HeldSources | None:
            if tensor not in self._held:
                return None
            task, room = self.tasks[tensor], rooms[place]
            leaves, count = task.leaves.files, math.prod(task.tensor.shape)
            address = ctypes.addressof(ctypes.c_char.from_buffer(room))
            return HeldSources(self.files, leaves, count, memoryview(room), address)

        return hold

    def _without_held(self) -> Layout:
        """Return the layout without the reads of what is held."""
        segments = (
            replace(one, leaves=()) if one.tensor in self._held else one
            for one in self.layout.segments
        )
        return replace(self.layout, segments=tuple(segments))

    def _make_torch_lanes(self, ahead: Ahead, count: int) -> list[TorchLane]:
        from shardmerge.engine.lowrank import Products, factor_loader
        from shardmerge.engine.torch_lane import Shared, TorchLane

        numerics = self.tasks[0].numerics
        products = Products(factor_loader(self.files, Host()), numerics)
        shared = Shared(
            self.tasks, numerics, self.files, self.tally, ahead, None if self._cuda else products
        )
        block = TUNING.device_block if self._cuda else block_length(self.tasks, TUNING)
        places = [Cuda(self._device) if self._cuda else Host() for _ in range(count)]
        return [TorchLane(shared, place, block) for place in places]

    def _read(self, slot: Slot) -> None:
        window = slot.window
        with self.tally.timed("read"):
            last = window.index + _AHEAD
            for later in self._windows[last if window.index else 0 : last + 1]:
                for copy in later.copies:
                    self.files.will_need(copy.file, copy.offset, copy.length)
                for read in later.reads:
                    for place in read.leaf.touched(read.first, read.count):
                        self.files.will_need(*place)
                self._will_hold(later)
            slot.output.memory[: len(window.literal)] = window.literal
            for copy in window.copies:
                into = slot.output.memory[copy.position : copy.position + copy.length]
                self.files.read(copy.file, copy.offset, into)
            for read in window.reads:
                into = slot.arena.memory[read.position :]
                self.files.read_elements(read.leaf, read.first, read.count, into)

    def _will_hold(self, window: Window) -> None:
        """Tell the kernel of where passes begin."""
        for chunk in window.chunks:
            if chunk.tensor in self._held and chunk.first == 0:
                for leaf in self.tasks[chunk.tensor].leaves.files:
                    for place in self.files.locate(leaf).touched(0, chunk.count):
                        self.files.will_need(*place)

    def _write(self, slot: Slot) -> None:
        window = slot.window
        with self.tally.timed("write"):
            self._file.write(slot.output.memory, window.length, window.offset)
        self.tally.add(written=window.length)

    def _finish(self, slot: Slot) -> None:
        length = slot.window.length
        with self.tally.timed("hash"):
            data = slot.output.memory[:length]
            self._hash.update(data)
            self._quick.update(data)
            self._tensors.saw(slot.window.offset, data)
        self._done += length
        if self._progress:
            self._progress(self._done, self.layout.size)


def _nothing(*_: object) -> None:
    pass


def _task_vectors(tasks: Sequence[TensorTask], layout: Layout) -> dict[str, tuple[int, int]]:
    """Return where the tensors of a shard of task vectors lie; nothing for any other shard."""
    if not all(isinstance(task.tensor.expression, ex.Delta) for task in tasks):
        return {}
    tensors = parse_header(layout.header, layout.size, "the output").tensors
    return {name: (entry.begin, entry.end) for name, entry in tensors.items()}


def _current(device: str) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the calling thread touches no other card than the job's."""
    if device == "cpu":
        return contextlib.nullcontext()
    import torch

    return torch.cuda.device(device)


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch from threads of its own: the lanes are the threads, and sums keep their order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device_for(tasks: Sequence[TensorTask], device: str) -> str:
    """Return where torch computes some tensors.

    Raises:
        UserError: If it is unknown, or needed and not there.
    """
    if card_of(device) is None or not tasks:
        return "cpu"
    try:
        check_device(device)
    except UserError:
        if uses_card(tasks, device):
            raise
        return "cpu"  # there is no native code, and so no card was asked for
    return device


def _native(tasks: Sequence[TensorTask], tensors: Sequence[int]) -> frozenset[int]:
    """Return which of some tensors native code computes on this processor."""
    found = frozenset(i for i in tensors if tasks[i].kind == "native")
    if found:
        from shardmerge.engine.native import is_usable

        if not is_usable():
            return frozenset()
    return found
