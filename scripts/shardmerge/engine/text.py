"""Functions in LLVM's assembly language that have loops in loops, line by line."""

from __future__ import annotations

from shardmerge.engine.assembly import element, inserted, repeated


class Text:
    """Lines of a function with one loop in another."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names = 0
        self.block = "entry"

    def function(self, *declared: str, count: str = "%count") -> str:
        """Return the function.

        Args:
            declared: What it calls.
            count: Its name for the number of elements.
        """
        given = f"ptr %output, ptr %leaves, i64 {count}, ptr %constants, ptr %more"
        return "\n".join([
            f"define void @merge({given}) {{",
            "entry:",
            *self.lines,
            "  ret void",
            "}",
            *declared,
        ])  # fmt: skip

    def new(self, text: str) -> str:
        """Write a line that makes a value; return its name."""
        self._names += 1
        self.lines.append(f"  %t{self._names} = {text}")
        return f"%t{self._names}"

    def at(self, kind: str, base: str, index: str) -> str:
        """Write the address of an element."""
        return self.new(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def load(self, kind: str, base: str, index: str, align: int = 4) -> str:
        """Write that an element, or a vector from it on, is loaded; return its name."""
        return self.new(f"load {kind}, ptr {self.at(element(kind), base, index)}, align {align}")

    def store(self, kind: str, value: str, base: str, index: str, align: int = 4) -> None:
        """Write that a value is stored."""
        place = self.at(element(kind), base, index)
        self.lines.append(f"  store {kind} {value}, ptr {place}, align {align}")

    def begin(self, name: str, carried: dict[str, tuple[str, str]], first: str = "0") -> None:
        """Begin a loop; ``carried`` are (type, first value) of what goes on to the next turn."""
        self.lines += [f"  br label %{name}", f"{name}:"]
        before = self.block
        phis = {f"{name}.i": ("i64", first), **carried}
        self.lines += [
            f"  %{key} = phi {kind} [{value}, %{before}], [%{key}.next, %{name}.end]"
            for key, (kind, value) in phis.items()
        ]
        self.block = name

    def end(self, name: str, carried: dict[str, str], step: int, stop: str) -> None:
        """End a loop; ``carried`` has (type, value) for the next turn."""
        self.lines += [f"  br label %{name}.end", f"{name}.end:"]
        for key, (kind, value) in carried.items():
            self.lines.append(f"  %{key}.next = bitcast {kind} {value} to {kind}")
        self.lines += [
            f"  %{name}.i.next = add i64 %{name}.i, {step}",
            f"  %{name}.more = icmp ult i64 %{name}.i.next, {stop}",
            f"  br i1 %{name}.more, label %{name}, label %{name}.done",
            f"{name}.done:",
        ]
        self.block = f"{name}.done"

    def spread(self, kind: str, value: str) -> str:
        """Write a vector of one value; return its name."""
        return self.new(repeated(self.new(inserted(value, kind)), kind))
