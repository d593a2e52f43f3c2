"""What is one item of text: a prompt, its one right answer, and what makes it the same item?

Also the registry type of both lists of items, ``mix.MIX`` and ``tasks.TASKS``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with its one right answer."""

    prompt: str
    """Words separated by single spaces, lower case."""
    answer: str
    """The exact continuation that scores, written like the prompt."""
    key: str
    """Two items of equal key ask the same thing, in whatever words: no two splits share a key."""


Draw = Callable[[Random], Item]
"""Draws one item; everything random in it comes from the generator given."""


def register(table: dict[str, Draw]) -> Callable[[Draw], Draw]:
    """A decorator that enters a draw function into ``table`` under its own name."""

    def enter(draw: Draw) -> Draw:
        if draw.__name__ in table:
            raise ValueError(f"{draw.__name__} is registered twice")
        table[draw.__name__] = draw
        return draw

    return enter
