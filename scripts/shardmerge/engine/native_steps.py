"""What is done to elements of output tensors: made once for each, by the thread that asks first."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

from shardmerge.algebra import expression as ex
from shardmerge.algebra.lowering import Steps, is_native, steps_for
from shardmerge.engine.held import HeldSources
from shardmerge.engine.held_room import HeldRoom
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.memory import BEHIND
from shardmerge.engine.passes import NativePasses
from shardmerge.engine.record import Tally
from shardmerge.engine.tasks import TensorTask
from shardmerge.methods.passes import Map

#: Tensors whose steps are kept: windows come in order, so that threads work on few at a time.
_REMEMBERED = 16


class StepsOf:
    """The steps of output tensors, those of calls in passes too.

    Args:
        tasks: Of the shard's tensors.
        files: That a job reads.
        tally: Where what was found is noted.
        room: Where sources of some tensors are held; None if none are.
    """

    def __init__(
        self,
        tasks: Sequence[TensorTask],
        files: InputFiles,
        tally: Tally,
        room: HeldRoom | None = None,
    ) -> None:
        self._tasks, self._files, self._tally, self._room = tasks, files, tally, room
        self._lock = threading.Lock()
        self._found: OrderedDict[int, Future[Steps]] = OrderedDict()

    def __call__(self, tensor: int) -> Steps:
        """Return the steps of an output tensor; the first thread that asks makes its passes."""
        task = self._tasks[tensor]
        if not task.calls:
            return task.steps
        with self._lock:
            found = self._found.get(tensor)
            mine = found is None
            if mine:
                self._found[tensor] = found = Future()
                self._forget()
        if mine:
            try:
                found.set_result(self._make(task, self.held(tensor) or self._files))
            except BaseException as error:
                found.set_exception(error)
        return found.result()

    def _forget(self) -> None:
        """Drop what is found of the first tensors, whose windows are done."""
        _, *between = self._found
        behind = sum(math.prod(self._tasks[one].tensor.shape) for one in between[:-1])
        while len(self._found) > _REMEMBERED or behind >= BEHIND:
            self._found.popitem(last=False)
            behind -= math.prod(self._tasks[between.pop(0)].tensor.shape)

    def held(self, tensor: int) -> HeldSources | None:
        """Return the sources of an output tensor if they are held."""
        if self._room is None or tensor not in self._room:
            return None
        return self._room.take(tensor)

    def release(self, tensor: int) -> None:
        """Say that a window's part of a tensor is done, whose sources may be held."""
        if self._room is not None and tensor in self._room:
            self._room.release(tensor)

    def _make(self, task: TensorTask, files: InputFiles | HeldSources) -> Steps:
        maps = native_maps(task, files, self._tally)
        rest = task.leaves, task.direct, task.numerics, maps.__getitem__
        return steps_for(task.expression, task.tensor.dtype, *rest)


def native_maps(
    task: TensorTask, files: InputFiles | HeldSources, tally: Tally
) -> dict[ex.Call, Map]:
    """Return what those of a tensor's calls in passes do whose passes native code can make.

    Torch may make the elements, as where rows are taken of a result.

    Args:
        task: Of the tensor.
        files: That are read.
        tally: Where what was found is noted.
    """
    from shardmerge.engine.native import is_usable

    passes, numerics = NativePasses(files, task.numerics), task.numerics
    native = task.calls
    if task.kind != "native":
        native = [one for one in task.calls if is_native(one, files.stored, numerics)]
    maps = {call: passes.map(call) for call in (native if is_usable() else ())}
    if maps:
        tally.add_passes(task.tensor.name, [passes.answers.get(one, []) for one in task.calls])
    return maps
