"""What native code does to elements of output tensors once their passes are made."""

from __future__ import annotations

from shardmerge.algebra import expression as ex
from shardmerge.algebra.lowering import Steps, is_native, steps_for
from shardmerge.engine.held import HeldSources
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.passes import NativePasses
from shardmerge.engine.record import Tally
from shardmerge.engine.tasks import TensorTask
from shardmerge.methods.passes import Map


def steps_in_passes(task: TensorTask, files: InputFiles | HeldSources, tally: Tally) -> Steps:
    """Make the passes of a tensor's calls; return what is done to its elements then.

    Args:
        task: Of the tensor.
        files: That are read.
        tally: Where what was found is noted.
    """
    maps = native_maps(task, files, tally)
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
