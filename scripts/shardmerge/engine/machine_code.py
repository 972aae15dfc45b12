"""Machine code of texts in LLVM's assembly language, made once in a process, or once in a run.

Who makes code can tell a listener of it, and other processes of the same program on the same
processor take it over without LLVM's work: loading takes a tenth of a millisecond, making up to 40.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from llvmlite import binding

_POINTER = ctypes.c_void_p
_KIND = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, ctypes.c_int64, _POINTER, _POINTER)
#: What a name begins with; the rest tells the text and the processor that its code is for.
_PREFIX = "merge_"
#: Bytes of an object file that is taken over: of memory, besides its own.
_BESIDES = 1 << 14


@dataclass(frozen=True)
class ObjectCode:
    """An object file, of this processor's kind.

    Args:
        names: Of the functions in it.
        data: Its bytes.
    """

    names: tuple[str, ...]
    data: bytes

    @property
    def room(self) -> int:
        """Bytes of memory that it takes at most, once it is loaded."""
        return 2 * len(self.data) + _BESIDES


class _Code:
    """Functions by their names, and LLVM's engine that holds their code.

    Nothing is ever freed, since a thread may have an address of it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.listener: Callable[[ObjectCode], None] | None = None
        self._functions: dict[str, Callable[..., None]] = {}
        self._engine: binding.ExecutionEngine | None = None

    def functions(self, texts: Sequence[str], effort: int) -> list[Callable[..., None]]:
        how = (*_processor(), effort)
        names = [_name(text, *how) for text in texts]
        with self.lock:
            new = {n: t for n, t in zip(names, texts, strict=True) if n not in self._functions}
            if new:
                made = ObjectCode((*new,), _object(new, *how))
                self._load(made)
                if self.listener:
                    self.listener(made)
            return [self._functions[name] for name in names]

    def add(self, made: ObjectCode) -> bool:
        with self.lock:
            if self._functions.keys() >= {*made.names}:
                return False
            self._load(made)
            return True

    def _load(self, made: ObjectCode) -> None:
        """Load an object; its functions that are there already stay as they are."""
        if self._engine is None:
            _initialise()
            machine = _machine(*_processor(), 0)
            self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        self._engine.add_object_file(binding.ObjectFileRef.from_data(made.data))
        self._engine.finalize_object()
        for name in made.names:
            address = self._engine.get_function_address(name)
            self._functions.setdefault(name, _KIND(address))


_CODE = _Code()


def compiled(text: str, effort: int = 2) -> Callable[..., None]:
    """Return the function ``merge`` of a text in assembly language, made once in a process.

    Args:
        text: The function.
        effort: LLVM's, from 0 to 3. Code that does little itself is made in a quarter of the time
            without any.
    """
    (function,) = compiled_together([text], effort)
    return function


def compiled_together(texts: Sequence[str], effort: int = 2) -> list[Callable[..., None]]:
    """Return the functions of some texts, as ``compiled``.

    LLVM takes milliseconds each time, however short a text is.
    """
    return _CODE.functions(texts, effort)


def take_over(made: ObjectCode) -> bool:
    """Load what another process made, unless it is there; return whether it was loaded.

    That process must be one of the same program on the same processor: nothing is looked at.
    """
    return _CODE.add(made)


def tell_of_code(listener: Callable[[ObjectCode], None]) -> None:
    """Have a function called with all that this process makes from now on."""
    _CODE.listener = listener


def _object(texts: dict[str, str], cpu: str, features: str, effort: int) -> bytes:
    """Return an object file with the functions of texts, by their names."""
    _initialise()
    machine = _machine(cpu, features, effort)
    with binding.parse_assembly(_in_one(texts)) as module:
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        module.verify()
        return machine.emit_object(module)


def _machine(cpu: str, features: str, effort: int) -> binding.TargetMachine:
    target = binding.Target.from_default_triple()
    return target.create_target_machine(cpu=cpu, features=features, opt=effort)


def _in_one(texts: dict[str, str]) -> str:
    """Return a text with the functions of several, by their names."""
    lines: list[str] = []
    declared: dict[str, None] = {}
    for name, text in texts.items():
        for line in text.replace("@merge(", f"@{name}(").splitlines():
            if line.startswith("declare "):
                declared[line] = None
            else:
                lines.append(line)
    return "\n".join([*lines, *declared])


def _name(text: str, cpu: str, features: str, effort: int) -> str:
    """Return the name of a text's function, for a processor."""
    whole = "\0".join((cpu, features, str(effort), text))
    return _PREFIX + hashlib.sha256(whole.encode()).hexdigest()


@cache
def _processor() -> tuple[str, str]:
    """Return the processor's name and what it can do besides."""
    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


@cache
def _initialise() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
