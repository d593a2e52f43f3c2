"""Which tensor of a model is meant by a name that peft gave, in memory, to a module?

A library may call a module by a longer or another name than the file does: peft puts
`base_model.model.` before it, `model.` or the model's own name may be there or not, and the text
part of a model that also sees is `language_model.model` in older files and `model.language_model`
in memory. Names are compared exactly first, then without such parts, then with the parts that were
renamed; the first way in which a name fits any tensor decides, and it has to fit exactly one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

_WRAPPERS = frozenset(
    {
        "model", "base_model", "transformer", "module", "_orig_mod", "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
    }
)  # fmt: skip
"""Parts of a name that only wrap what follows."""
_SECTIONS = _WRAPPERS | {"language_model", "text_model", "vision_model", "decoder_model"}
"""Parts that are not at the same place, or not there at all, in every version of a name."""

_RENAMED = (
    (r"(^|\.)encoder\.layer\.", r"\1layers."),
    (r"\.attention\.(attention|self)\.", ".attention."),
    (r"\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<!\.attention)\.output\.dense\.", ".mlp.fc2."),
)
"""What transformers 5 calls differently in memory than the files of encoders (ViT and its kin)."""


class Ambiguous(LookupError):
    """A name fits several tensors; the arguments are their names."""


class NameIndex:
    """Finds names of a model's tensors."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._ways: tuple[tuple[Callable[[str], str], dict[str, list[str]]], ...] = ()

    def find(self, name: str) -> str | None:
        """Return the model's name for a tensor, or None.

        Raises:
            Ambiguous: it could be one of several.
        """
        if name in self._names:
            return name
        if not self._ways:
            ways = (_without_wrappers, _bare, _renamed)
            self._ways = tuple((way, self._by(way)) for way in ways)
        plain, *others = (known.get(way(name), []) for way, known in self._ways)
        for found in (plain, self._by_end(name), *others):
            if len(found) > 1:
                raise Ambiguous(*sorted(found))
            if found:
                return found[0]
        return None

    def nearest(self, name: str) -> str:
        """Return the most similar name, or an empty text."""
        end = name.rpartition(".")[2]
        alike = [other for other in self._names if other.rpartition(".")[2] == end]
        digits = [part for part in name.split(".") if part.isdigit()]
        same = [o for o in alike if [part for part in o.split(".") if part.isdigit()] == digits]
        close = difflib.get_close_matches(name, sorted(same)[:500], n=1, cutoff=0.5)
        return close[0] if close else ""

    def _by(self, way: Callable[[str], str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._names:
            found.setdefault(way(name), []).append(name)
        return found

    def _by_end(self, name: str) -> list[str]:
        """Return names that end with this one, or else the longest that this one ends with."""
        longer = [other for other in self._names if other.endswith(f".{name}")]
        if longer:
            return longer
        rest = name
        while "." in rest:
            rest = rest.partition(".")[2]
            if rest in self._names and rest.count(".") > 1:
                return [rest]
        return []


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return _bare(name)


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _SECTIONS)
