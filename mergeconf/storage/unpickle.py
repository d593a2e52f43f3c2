"""What does a pickle describe? Nothing of it is run, and nothing is imported.

Pickles are programs for a small stack machine, which may call any function of any module. This
machine carries out those instructions that torch.save writes for state dicts (protocols 2 to 5)
and makes plain values: numbers, texts, lists, tuples, `Mapping`. What the pickle wants to have
called becomes a `Call` that says so, which function it names a `Global`; both are words. Names
that a caller does not allow are gathered, and the pickle is refused.

Python's own unpickler is not used, even restricted: it reserves memory for lengths that the file
merely claims, calls methods that a pickle can choose, and hashes keys, which may take forever for
tuples within tuples. Here the work is bounded by the number of instructions, and the memory by
that and the length of the pickle.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from collections.abc import Mapping as Table
from dataclasses import dataclass, field

MAX_INSTRUCTIONS = 4_000_000
"""Most instructions that are carried out; a tensor takes about 32."""
_LONGEST_NAME = 1000
"""Longest line that names a module or a function, in bytes."""
_LONGEST_INTEGER = 255
"""Longest whole number, in bytes."""


class UnsoundPickle(Exception):
    """A pickle is damaged or not what torch.save writes; the message says in what."""


class EndedEarly(UnsoundPickle):
    """The pickle goes on after the bytes that were given."""


class WantsCode(UnsoundPickle):
    """A pickle names functions or classes that are not allowed."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        super().__init__(", ".join(names))


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a function or class."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Mapping:
    """A dict, by its entries in the order of writing; a key may occur twice."""

    items: list[tuple[object, object]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call that the pickle describes; it is not made."""

    function: Global
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """A reference to what lies outside the pickle: a storage."""

    key: object


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a pickle describes."""

    value: object
    references: tuple[Persistent, ...]
    """All storages that it refers to."""
    end: int
    """Where the pickle ends, in bytes from the start of the data."""


_ORDERED_DICT = Global("collections", "OrderedDict")


class _Machine:
    """One run over one pickle."""

    def __init__(self, data: bytes, position: int, allowed: Callable[[Global], bool]) -> None:
        self.data = data
        self.position = position
        self.allowed = allowed
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.refused: dict[str, None] = {}
        self.references: list[Persistent] = []
        self.copied = 0

    def run(self) -> object:
        """Carry out instructions until the one that stops."""
        data, steps, size = self.data, _STEPS, len(self.data)
        for _ in range(MAX_INSTRUCTIONS):
            if self.position >= size:
                raise EndedEarly("ends before its last instruction")
            code = data[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                return self.pop()
            step = steps.get(code)
            if step is None:
                raise UnsoundPickle(f"has the instruction {bytes([code])!r}, which is not read")
            step(self)
        raise UnsoundPickle(f"has more than {MAX_INSTRUCTIONS:,} instructions")

    # reading

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        end = self.position + length
        if end > len(self.data):
            raise EndedEarly(f"ends {end - len(self.data)} bytes early")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, length: int) -> int:
        """Return the next bytes as a whole number without sign."""
        return int.from_bytes(self.take(length), "little")

    def text(self, length: int) -> str:
        """Return the next bytes as text."""
        try:
            return self.take(length).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise UnsoundPickle("holds text that is not UTF-8") from None

    def line(self) -> str:
        """Return the text up to the end of the line."""
        end = self.data.find(b"\n", self.position, self.position + _LONGEST_NAME)
        if end < 0:
            if self.position + _LONGEST_NAME > len(self.data):
                raise EndedEarly("ends within a name")
            raise UnsoundPickle(f"has a name of more than {_LONGEST_NAME} bytes")
        text = self.text(end - self.position)
        self.position = end + 1
        return text

    # stack

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def top(self) -> object:
        """Return the last value of the stack, above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise UnsoundPickle("takes a value that is not there")
        return self.stack[-1]

    def pop(self) -> object:
        """Take the last value of the stack."""
        value = self.top()
        del self.stack[-1]
        return value

    def pop_mark(self) -> list[object]:
        """Take the values above the last mark, and the mark."""
        if not self.marks:
            raise UnsoundPickle("takes a mark that is not there")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    # names and calls

    def name(self, module: str, name: str) -> None:
        """Put the name of a function or class on the stack."""
        module = "builtins" if module == "__builtin__" else module
        found = self.globals.get((module, name))
        if found is None:
            found = self.globals[module, name] = Global(module, name)
            if not self.allowed(found):
                self.refused[str(found)] = None
        self.push(found)

    def call(self) -> None:
        """Replace a function and its arguments by the call, or by an empty mapping."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or type(arguments) is not tuple:
            raise UnsoundPickle("calls what is not a function")
        if function != _ORDERED_DICT:
            self.push(Call(function, arguments))
            return
        made = Mapping()
        if len(arguments) == 1 and type(arguments[0]) is list:  # as Python 2 wrote it
            # a list may be recalled and copied any number of times, so that it counts as work
            self.copied += len(arguments[0])
            if self.copied > MAX_INSTRUCTIONS:
                raise UnsoundPickle(f"copies more than {MAX_INSTRUCTIONS:,} entries")
            made.items.extend(_pair(pair) for pair in arguments[0])
        elif arguments:
            raise UnsoundPickle("makes an OrderedDict of what is no list of pairs")
        self.push(made)

    def add_items(self, target: object, flat: list[object]) -> None:
        """Add keys and values, which alternate, to a mapping."""
        if type(target) is not Mapping or len(flat) % 2:
            raise UnsoundPickle("sets entries of what is not a dict")
        target.items.extend(zip(flat[::2], flat[1::2], strict=True))


def _pair(value: object) -> tuple[object, object]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return value[0], value[1]
    raise UnsoundPickle("makes an OrderedDict of what is no list of pairs")


# --- instructions -----------------------------------------------------------------------------

_Step = Callable[[_Machine], None]


def _ignore(_: object) -> None:
    """Do nothing with a value."""


def _constant(value: object) -> _Step:
    return lambda machine: machine.stack.append(value)


def _unsigned(length: int) -> _Step:
    return lambda machine: machine.stack.append(machine.number(length))


def _utf8(length: int) -> _Step:
    return lambda machine: machine.stack.append(machine.text(machine.number(length)))


def _raw(length: int) -> _Step:
    return lambda machine: machine.stack.append(machine.take(machine.number(length)))


def _integer(length: int) -> _Step:
    def step(machine: _Machine) -> None:
        size = machine.number(length)
        if size > _LONGEST_INTEGER:
            raise UnsoundPickle(f"holds a whole number of {size} bytes")
        machine.push(int.from_bytes(machine.take(size), "little", signed=True))

    return step


def _python_2_text(length: int) -> _Step:
    def step(machine: _Machine) -> None:
        machine.push(machine.take(machine.number(length)).decode("utf-8", "backslashreplace"))

    return step


def _signed(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(4), "little", signed=True))


def _float(machine: _Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _protocol(machine: _Machine) -> None:
    if (protocol := machine.number(1)) > 5:
        raise UnsoundPickle(f"is of protocol {protocol}; up to 5 are read")


def _tuple(count: int) -> _Step:
    def step(machine: _Machine) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(values[::-1]))

    return step


def _append(machine: _Machine) -> None:
    value, target = machine.pop(), machine.top()
    _extend(target, [value])


def _appends(machine: _Machine) -> None:
    values = machine.pop_mark()
    _extend(machine.top(), values)


def _extend(target: object, values: list[object]) -> None:
    if type(target) is not list:
        raise UnsoundPickle("appends to what is not a list")
    target.extend(values)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.add_items(machine.top(), [key, value])


def _set_items(machine: _Machine) -> None:
    values = machine.pop_mark()
    machine.add_items(machine.top(), values)


def _build(machine: _Machine) -> None:
    # torch gives a state dict the attribute `_metadata`: versions of modules, which nobody needs
    machine.pop()
    if type(machine.top()) is not Mapping:
        raise UnsoundPickle("sets attributes of what is not a dict")


def _global(machine: _Machine) -> None:
    module = machine.line()
    machine.name(module, machine.line())


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise UnsoundPickle("has a name that is not text")
    if max(len(name), len(module)) > _LONGEST_NAME:
        raise UnsoundPickle(f"has a name of more than {_LONGEST_NAME} bytes")
    machine.name(module, name)


def _instance(machine: _Machine) -> None:
    arguments = tuple(machine.pop_mark())
    _global(machine)
    machine.push(arguments)
    machine.call()


def _refer(machine: _Machine) -> None:
    reference = Persistent(machine.pop())
    machine.references.append(reference)
    machine.push(reference)


def _put(length: int) -> _Step:
    def step(machine: _Machine) -> None:
        machine.memo[machine.number(length)] = machine.top()

    return step


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _get(length: int) -> _Step:
    def step(machine: _Machine) -> None:
        index = machine.number(length)
        if index not in machine.memo:
            raise UnsoundPickle(f"recalls value {index}, which it never stored")
        machine.push(machine.memo[index])

    return step


def _pop(machine: _Machine) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.pop()


def _new_list(machine: _Machine) -> None:
    machine.push([])


_STEPS: Table[int, _Step] = {
    0x80: _protocol,
    0x95: lambda machine: _ignore(machine.take(8)),  # FRAME: nothing but a length
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord(")"): _constant(()),
    ord("]"): _new_list,
    0x8F: _new_list,  # a set; its members are no weights
    ord("}"): lambda machine: machine.push(Mapping()),
    ord("("): lambda machine: machine.marks.append(len(machine.stack)),
    ord("K"): _unsigned(1),
    ord("M"): _unsigned(2),
    ord("J"): _signed,
    ord("G"): _float,
    0x8A: _integer(1),
    0x8B: _integer(4),
    ord("X"): _utf8(4),
    0x8C: _utf8(1),
    0x8D: _utf8(8),
    ord("U"): _python_2_text(1),
    ord("T"): _python_2_text(4),
    ord("C"): _raw(1),
    ord("B"): _raw(4),
    0x8E: _raw(8),
    0x96: _raw(8),
    ord("t"): lambda machine: machine.push(tuple(machine.pop_mark())),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    0x91: lambda machine: machine.push(machine.pop_mark()),  # a frozen set
    ord("a"): _append,
    ord("e"): _appends,
    0x90: _appends,
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("b"): _build,
    ord("c"): _global,
    0x93: _stack_global,
    ord("i"): _instance,
    ord("R"): lambda machine: machine.call(),
    0x81: lambda machine: machine.call(),
    ord("Q"): _refer,
    ord("q"): _put(1),
    ord("r"): _put(4),
    0x94: _memoize,
    ord("h"): _get(1),
    ord("j"): _get(4),
    ord("0"): _pop,
    ord("1"): lambda machine: _ignore(machine.pop_mark()),
}
"""What each instruction does, by its code. Left out are those that name functions by a number, and
texts and numbers of protocol 0, which torch.save has never written."""


def unpickle(data: bytes, allowed: Callable[[Global], bool], position: int = 0) -> Unpickled:
    """Return what a pickle describes.

    Args:
        data: bytes that hold the pickle.
        allowed: whether a function or class may be named. It is not imported either way.
        position: where the pickle starts in `data`.

    Raises:
        EndedEarly: the pickle goes on after `data`.
        WantsCode: it names what is not allowed; all such names in what was read.
        UnsoundPickle: it is damaged, or not what torch.save writes.
    """
    machine = _Machine(data, position, allowed)
    try:
        value = machine.run()
    except UnsoundPickle:
        if machine.refused:
            raise WantsCode(list(machine.refused)) from None
        raise
    if machine.refused:
        raise WantsCode(list(machine.refused))
    return Unpickled(value, tuple(machine.references), machine.position)
