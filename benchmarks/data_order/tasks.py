"""What does fine-tuning teach, and on which held-out items is it scored?

Adding a task is adding one decorated function. A task's items are split by key, so nothing that is
asked in training, in any words, is asked in validation or in the test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from benchmarks.data_order.items import Draw, Item, register
from benchmarks.data_order.words import NAMES, THINGS, number_words

TASKS: dict[str, Draw] = {}
"""The tasks by name; a new task is a new decorated function below."""

_task = register(TASKS)


@dataclass(frozen=True, slots=True)
class Splits:
    """The items of one data draw; no key occurs twice."""

    train: list[Item]
    """What the fine-tunes see, in an order of their own."""
    validation: list[Item]
    """For choosing settings and for losses during training."""
    test: list[Item]
    """For the final scores only."""


def draw_splits(task: str, seed: int, train: int, validation: int, test: int) -> Splits:
    """Draws the splits of ``task`` for ``seed``, of the given numbers of items.

    Test and validation come first: they stay the same when only ``train`` changes. Raises KeyError
    for an unknown task and ValueError where the task has too few different items.
    """
    items = _distinct(TASKS[task], Random(f"{task}/{seed}"))
    tested = [next(items) for _ in range(test)]
    validated = [next(items) for _ in range(validation)]
    return Splits([next(items) for _ in range(train)], validated, tested)


def _distinct(draw: Draw, rng: Random) -> Iterator[Item]:
    """Items of keys not seen before."""
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        item = draw(rng)
        if item.key in seen:
            misses += 1
            continue
        misses = 0
        seen.add(item.key)
        yield item
    raise ValueError(f"{draw.__name__} has only {len(seen)} different items")


@_task
def arithmetic(rng: Random) -> Item:
    """Sums and differences in words that carry out of (or borrow into) the ones column.

    The parts have two or three digits, and the whole is below 1000; the wording is one of six.
    """
    while True:
        one, other = rng.randrange(11, 10 ** rng.randint(2, 3)), rng.randrange(11, 1000)
        if one % 10 + other % 10 >= 10 and one + other < 1000:
            break
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b, whole = number_words(one), number_words(other), number_words(one + other)
    key = f"{min(one, other)}+{max(one, other)}"  # a sum and its differences are one fact
    ask = f"how many {thing} does {name} have ?"
    wording = rng.randrange(3)
    if rng.random() < 0.5:
        prompt = (
            f"{name} has {a} {thing} and gets {b} . {ask}",
            f"what is {a} plus {b} ?",
            f"add {b} to {a} :",
        )[wording]
        return Item(prompt, whole, key)
    prompt = (
        f"{name} has {whole} {thing} and loses {b} . {ask}",
        f"what is {whole} minus {b} ?",
        f"take {b} from {whole} :",
    )[wording]
    return Item(prompt, a, key)
