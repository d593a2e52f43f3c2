"""Which tensors does an unpickled state dict describe? Knows no file: a storage is a name here.

The forms in which torch describes tensors, each read as far as it says where elements lie. A
tensor that cannot be read as a range of bytes is a reason to refuse the file; reasons are gathered,
each with the names of the tensors that it concerns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mergeconf.dtypes import DType
from mergeconf.storage.safetensors_in import MAX_DIMENSIONS
from mergeconf.storage.unpickle import Call, Global, Mapping, Persistent, UnsoundPickle

NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Names under which training programs put a state dict beside other things."""

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "UntypedStorage": "uint8", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "QInt8Storage": "qint8", "QInt32Storage": "qint32",
    "QUInt8Storage": "quint8", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
"""torch's classes of storages, and the format of their elements."""
_FOREIGN_SIZES = {
    "complex128": 16, "complex64": 8, "qint8": 1, "qint32": 4, "quint8": 1, "quint4x2": 1,
    "quint2x4": 1,
}  # fmt: skip
"""Bytes an element of the formats that are not read."""
_OTHER_DTYPES = {
    *_FOREIGN_SIZES, "complex32", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2",
    "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)),
}  # fmt: skip
_UNREADABLE = {
    "_rebuild_sparse_tensor": "is sparse",
    "_rebuild_qtensor": "is quantized by torch",
    "_rebuild_nested_tensor": "is a nested tensor",
    "_rebuild_meta_tensor_no_storage": "has no elements: it was on the meta device when saved",
    "_rebuild_device_tensor_from_cpu_tensor": "was saved from a device without storages",
    "_rebuild_device_tensor_from_numpy": "was saved from a device without storages",
    "_rebuild_wrapper_subclass": "is of a class of its own",
}
"""What torch calls to make tensors that are no range of bytes, and what is said of them."""
_PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
_TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
_FROM_TYPE = Global("torch._tensor", "_rebuild_from_type_v2")
_CLASSES = (Global("torch", "Tensor"), Global("torch.nn.parameter", "Parameter"))
_SIZE = Global("torch", "Size")
_ALLOWED = {
    Global("collections", "OrderedDict"),
    _FROM_TYPE,
    *_CLASSES,
    _SIZE,
    Global("torch", "device"),
    Global("torch.serialization", "_get_layout"),
    Global("_codecs", "encode"),  # how protocol 2 writes bytes
    *(Global("builtins", name) for name in ("set", "bytearray", "complex")),
    *(Global("torch._utils", name) for name in (*_TENSORS, *_PARAMETERS, *_UNREADABLE)),
    *(Global("torch", name) for name in (*DType.__members__, *_OTHER_DTYPES)),
    *(Global("torch", name) for name in _STORAGES if name != "UntypedStorage"),
    *(Global("torch.cuda", name) for name in _STORAGES if not name.startswith(("Q", "Untyped"))),
    Global("torch.storage", "UntypedStorage"),
    *(Global("torch", f"per_{what}_{how}") for what in ("tensor", "channel")
      for how in ("affine", "symmetric")),
    Global("torch", "per_channel_affine_float_qparams"),
}  # fmt: skip
_LARGEST = 2**63 - 1
_WRAPPED = 4
"""Most descriptions around that of a tensor: a parameter, of a class."""


def is_allowed(name: Global) -> bool:
    """Whether a state dict may name this function or class; all are words, none is imported."""
    return name in _ALLOWED


@dataclass(frozen=True, slots=True)
class Storage:
    """What tensors are views of."""

    key: str
    dtype: str
    """Format of its elements, as torch names it."""
    numel: int
    """Number of elements."""

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        known = DType.__members__.get(self.dtype)
        return known.itemsize if known else _FOREIGN_SIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: a range of a storage's bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    storage: Storage
    start: int
    """Where its first byte lies, in bytes from the storage's start."""
    nbytes: int
    """Length in bytes."""


@dataclass(slots=True)
class StateDict:
    """The tensors of a file, and what it holds besides."""

    views: list[View] = field(default_factory=list)
    unreadable: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reasons why tensors cannot be read, and their names."""
    left_out: list[str] = field(default_factory=list)
    """Entries that are no tensors of the state dict."""


def shown(name: str) -> str:
    """Return a name for a message, in quotes: a pickle may hold one of any length."""
    return repr(name) if len(name) <= 200 else f"{name[:197]!r}..."


class _Unreadable(Exception):
    """A tensor is no range of bytes, or of a format that is not read."""


def read_state_dict(value: object) -> StateDict:
    """Return the tensors of a state dict, which may lie one level deep.

    Raises:
        UnsoundPickle: it is no state dict, or several.
    """
    if not isinstance(value, Mapping):
        kind = "a single tensor" if _is_tensor(value) else "no dict"
        raise UnsoundPickle(f"holds {kind}, not a state dict: tensors by name")
    found = StateDict()
    entries = _entries(value, found)
    nested = [key for key in NESTED if isinstance(inner := entries.get(key), Mapping)
              and any(_is_tensor(part) for _, part in inner.items)]  # fmt: skip
    if len(nested) > 1:
        raise UnsoundPickle(f"holds several state dicts: {', '.join(nested)}")
    if nested:
        found.left_out.extend(shown(name) for name in entries if name != nested[0])
        inner = entries[nested[0]]
        assert isinstance(inner, Mapping)
        entries = _entries(inner, found)
    seen: set[int] = set()
    deeper = [
        shown(name) for name, part in entries.items() if not _is_tensor(part) and _holds(part, seen)
    ]
    if deeper:
        raise UnsoundPickle(f"holds tensors at a deeper level, under {', '.join(deeper[:5])}")
    for name, part in entries.items():
        if not _is_tensor(part):
            found.left_out.append(shown(name))
            continue
        try:
            found.views.append(_view(name, part))
        except _Unreadable as reason:
            found.unreadable[str(reason)].append(shown(name))
    return found


def read_storage(reference: Persistent) -> Storage:
    """Return the storage that a reference of the pickle names.

    Raises:
        UnsoundPickle: the reference is not one that torch writes.
    """
    match reference.key:
        case ("storage", Global(module=module, name=name), str(key), _, numel, *view):
            dtype = _STORAGES.get(name)
            if dtype and module.startswith("torch") and _are_whole((numel,)) and len(view) < 2:
                if view and view[0] is not None:
                    raise UnsoundPickle("has storages that are views of others (torch 0.3)")
                assert isinstance(numel, int)
                return Storage(key, dtype, numel)
    raise UnsoundPickle("refers to something that is no storage")


# --- entries ----------------------------------------------------------------------------------


def _entries(mapping: Mapping, found: StateDict) -> dict[str, object]:
    """Return a mapping's entries by name; those without a text for a name are left out."""
    entries: dict[str, object] = {}
    seen: set[int] = set()
    for key, value in mapping.items:
        if type(key) is not str or not _is_text(key):
            if _holds(value, seen):
                raise UnsoundPickle("holds tensors whose names are not text")
            found.left_out.append("an entry without a text for a name")
        elif key in entries:
            raise UnsoundPickle(f"holds {shown(key)} twice")
        else:
            entries[key] = value
    return entries


def _is_text(text: str) -> bool:
    """Whether text can be written as UTF-8: a pickle can hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_tensor(value: object) -> bool:
    if not isinstance(value, Call):
        return False
    function = value.function
    return function == _FROM_TYPE or function.module == "torch._utils"


def _holds(value: object, seen: set[int]) -> bool:
    """Whether there is a tensor anywhere in a value, but for what was seen before."""
    stack = [value]
    while stack:
        part = stack.pop()
        if _is_tensor(part):
            return True
        if isinstance(part, (list, tuple, Mapping, Call)) and id(part) not in seen:
            seen.add(id(part))
            stack.extend(_parts(part))
    return False


def _parts(value: list[object] | tuple[object, ...] | Mapping | Call) -> Iterable[object]:
    match value:
        case Mapping(items=items):
            return (part for _, part in items)
        case Call(arguments=arguments):
            return arguments
        case _:
            return value


# --- one tensor -------------------------------------------------------------------------------


def _view(name: str, value: object) -> View:
    """Return the range of bytes that a tensor is."""
    function, arguments = _unwrapped(value)
    if reason := _UNREADABLE.get(function):
        raise _Unreadable(reason)
    if function not in _TENSORS or not 4 <= len(arguments) <= 8:
        raise UnsoundPickle(f"describes tensor {shown(name)} in no form of torch's")
    reference, offset, shape, strides = arguments[:4]
    shape, strides = _size(shape), _size(strides)
    sound = shape is not None and strides is not None and len(shape) == len(strides)
    if not sound or not _are_whole((offset,)) or not isinstance(reference, Persistent):
        raise UnsoundPickle(f"describes tensor {shown(name)} in no form of torch's")
    assert shape is not None and strides is not None and isinstance(offset, int)
    storage = read_storage(reference)
    more = arguments[6:]
    named = storage.dtype
    if function == "_rebuild_tensor_v3":
        if not more or not isinstance(more[0], Global):
            raise UnsoundPickle(f"describes tensor {shown(name)} without its dtype")
        named, more = more[0].name, more[1:]
    dtype = DType.__members__.get(named)
    if dtype is None:
        raise _Unreadable(f"has dtype {named}, which is not read")
    if more and isinstance(more[0], Mapping) and any(value for _, value in more[0].items):
        raise _Unreadable("is a conjugate or negative view")
    if not _is_contiguous(shape, strides):
        raise _Unreadable("is not contiguous: a view, such as a transposed matrix")
    nbytes, start = math.prod(shape) * dtype.itemsize, offset * dtype.itemsize
    if math.prod(filter(None, shape)) > _LARGEST or (nbytes and start + nbytes > storage.nbytes):
        raise UnsoundPickle(
            f"tensor {shown(name)} of {nbytes} bytes reaches beyond its storage of {storage.nbytes}"
        )
    return View(name, dtype, shape, storage, start if nbytes else 0, nbytes)


def _unwrapped(value: object) -> tuple[str, tuple[object, ...]]:
    """Return the name of what makes a tensor, and its arguments, without parameter and class."""
    for _ in range(_WRAPPED):
        if not isinstance(value, Call):
            break
        function, arguments = value.function, value.arguments
        if function == _FROM_TYPE and len(arguments) == 4 and isinstance(arguments[0], Global):
            if arguments[1] not in _CLASSES or type(arguments[2]) is not tuple:
                raise _Unreadable("is of a class of its own")
            value = Call(arguments[0], arguments[2])
        elif function.name in _PARAMETERS and arguments:
            value = arguments[0]
        elif function.module == "torch._utils":
            return function.name, arguments
        else:
            break
    raise UnsoundPickle("describes a tensor in no form of torch's")


def _size(value: object) -> tuple[int, ...] | None:
    """Return a shape or strides, or None where they are not whole numbers."""
    if isinstance(value, Call) and value.function == _SIZE and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, (tuple, list)) or not _are_whole(value):
        return None
    return tuple(value) if len(value) <= MAX_DIMENSIONS else None


def _are_whole(values: tuple[object, ...] | list[object]) -> bool:
    return all(type(value) is int and 0 <= value <= _LARGEST for value in values)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie one after another; strides of dimensions of 1 do not matter."""
    if not all(shape):
        return True
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
