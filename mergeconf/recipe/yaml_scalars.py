"""Which scalar means what? The YAML 1.2 core schema, for reading and for writing.

Only `true` and `false` are truth values, `no` is text, `1e-3` is a number, `010` is ten.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from yaml.emitter import Emitter
from yaml.nodes import MappingNode, Node, SequenceNode
from yaml.representer import SafeRepresenter
from yaml.resolver import BaseResolver
from yaml.serializer import Serializer

TAG = "tag:yaml.org,2002:"
"""Start of the names of YAML's own types."""
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class Resolver(BaseResolver):
    """Gives scalars without a tag the type that the YAML 1.2 core schema gives them."""

    def resolve(self, kind: type[Node], value: str | None, implicit: Any) -> str:
        """Return the tag of a node that has none."""
        if kind is SequenceNode:
            return TAG + "seq"
        if kind is MappingNode:
            return TAG + "map"
        if not implicit[0] or value is None:
            return TAG + "str"
        for pattern, tag in ((_NULL, "null"), (_BOOL, "bool"), (_INT, "int"), (_FLOAT, "float")):
            if pattern.fullmatch(value):
                return TAG + tag
        return TAG + "str"


def _int(text: str) -> int:
    body = text.lower()
    return int(text, 8 if body.startswith("0o") else 16 if body.startswith("0x") else 10)


def _float(text: str) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


SCALARS: dict[str, Callable[[str], Any]] = {
    TAG + "str": str,
    TAG + "null": lambda _: None,
    TAG + "bool": lambda text: {"true": True, "false": False}[text.lower()],
    TAG + "int": _int,
    TAG + "float": _float,
}


class _Dumper(Emitter, Serializer, SafeRepresenter, Resolver):
    """Plain data to text that `read_yaml` reads as the same data."""

    def __init__(self, stream: Any) -> None:
        Emitter.__init__(self, stream, width=100, allow_unicode=True)
        Serializer.__init__(self)
        SafeRepresenter.__init__(self, sort_keys=False)
        Resolver.__init__(self)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_yaml(data: Any) -> str:
    """Return plain data as YAML that `read_yaml` reads as the same data."""
    stream = io.StringIO()
    dumper: Any = _Dumper(stream)
    dumper.open()
    dumper.represent(data)
    dumper.close()
    return stream.getvalue()
