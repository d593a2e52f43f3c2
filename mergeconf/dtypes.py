"""The number formats that a checkpoint's tensors are stored in: a closed set.

Knows nothing of torch; `numpy` names the array type that holds the stored bits unchanged.
"""

from __future__ import annotations

from enum import Enum


class DType(Enum):
    """A stored number format: safetensors code, bytes an element, numpy type of its bits."""

    float64 = ("F64", 8, "<f8", "float")
    float32 = ("F32", 4, "<f4", "float")
    float16 = ("F16", 2, "<u2", "float")
    bfloat16 = ("BF16", 2, "<u2", "float")
    float8_e4m3fn = ("F8_E4M3", 1, "<u1", "float8")
    float8_e5m2 = ("F8_E5M2", 1, "<u1", "float8")
    float8_e8m0fnu = ("F8_E8M0", 1, "<u1", "exponent")
    int64 = ("I64", 8, "<i8", "integer")
    int32 = ("I32", 4, "<i4", "integer")
    int16 = ("I16", 2, "<i2", "integer")
    int8 = ("I8", 1, "<i1", "integer")
    uint64 = ("U64", 8, "<u8", "integer")
    uint32 = ("U32", 4, "<u4", "integer")
    uint16 = ("U16", 2, "<u2", "integer")
    uint8 = ("U8", 1, "<u1", "integer")
    bool = ("BOOL", 1, "<u1", "integer")

    def __init__(self, code: str, itemsize: int, numpy: str, kind: str) -> None:
        self.code = code
        """Name in a safetensors header."""
        self.itemsize = itemsize
        """Bytes an element."""
        self.numpy = numpy
        """numpy type string of an array that holds the stored bits (float16 as unsigned)."""
        self.is_float = kind == "float"
        """Whether methods can compute with it."""
        self.is_float8 = kind == "float8"
        """Whether it holds 8-bit floats, which stand for weights only together with a scale."""
        self.is_integer = kind == "integer"
        """Whether it holds whole numbers or truth values, which are copied, never merged."""

    @classmethod
    def from_code(cls, code: str) -> DType | None:
        """Return the format with that safetensors code, or None."""
        return _BY_CODE.get(code)

    def __str__(self) -> str:
        return self.name


_BY_CODE = {dtype.code: dtype for dtype in DType}
