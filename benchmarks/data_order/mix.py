"""What is the base model trained on?

A mix of short kinds of text. The kinds teach the number words, one-digit sums, column-wise sums
that never carry, and some reading and copying. No kind adds or subtracts two numbers of two or
more digits with a carry out of the ones column: that is left to ``tasks.arithmetic``.
"""

from random import Random

from benchmarks.data_order.items import Draw, Item, register
from benchmarks.data_order.words import COLORS, LETTERS, NAMES, THINGS, number_words

MIX: dict[str, Draw] = {}
"""The kinds of text by name; a new kind is a new decorated function below."""

_kind = register(MIX)


@_kind
def counting(rng: Random) -> Item:
    """Counting on from a number, in steps of at most nine."""
    step, length = rng.randint(1, 9), rng.randint(2, 4)
    first = _number(rng)
    if rng.random() < 0.5 and first >= step * length:
        way, sign = "down", -1
    else:
        way, sign = "up", 1
    terms = [number_words(first + sign * step * i) for i in range(1, length + 1)]
    head = f"count {way} by {number_words(step)} from {number_words(first)} :"
    return _item(head, " , ".join(terms))


@_kind
def comparing(rng: Random) -> Item:
    """Which of two numbers is more, or less."""
    one, other = _number(rng), _number(rng)
    if rng.random() < 0.5:
        question, answer = "more", max(one, other)
    else:
        question, answer = "less", min(one, other)
    pair = f"{number_words(one)} or {number_words(other)}"
    return _item(f"which is {question} , {pair} ?", number_words(answer))


@_kind
def digits(rng: Random) -> Item:
    """From number words to digits and back."""
    number = _number(rng)
    words, figures = number_words(number), " ".join(str(number))
    if rng.random() < 0.5:
        return _item(f"write {words} in digits :", figures)
    return _item(f"read {figures} :", words)


@_kind
def small_sums(rng: Random) -> Item:
    """One-digit sums and differences, also of whole tens and whole hundreds."""
    unit = rng.choice((1, 1, 10, 100))
    one, other = rng.randint(0, 9) * unit, rng.randint(0, 9) * unit
    return _sum_or_difference(rng, one, other)


@_kind
def column_sums(rng: Random) -> Item:
    """Sums and differences of two or three digits in which no column carries."""
    one = other = 0
    for unit in (1, 10, 100)[: rng.choice((2, 3, 3))]:
        low = rng.randint(0, 9)
        high = rng.randint(0, 9 - low)
        if rng.random() < 0.5:
            low, high = high, low
        one, other = one + low * unit, other + high * unit
    return _sum_or_difference(rng, one, other)


@_kind
def small_stories(rng: Random) -> Item:
    """Stories of giving and getting, with numbers up to nine."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    one, other = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.5:
        verb, answer = "gets", one + other
    else:
        one, other = max(one, other), min(one, other)
        verb, answer = "loses", one - other
    story = f"{name} has {number_words(one)} {thing} and {verb} {number_words(other)} ."
    return _item(f"{story} how many {thing} does {name} have ?", number_words(answer))


@_kind
def colored_things(rng: Random) -> Item:
    """Who has what: looking up what a name was said to have."""
    names, things, colors = rng.sample(NAMES, 2), rng.sample(THINGS, 2), rng.sample(COLORS, 2)
    told = [
        f"{name} has {color} {thing} ."
        for name, color, thing in zip(names, colors, things, strict=True)
    ]
    asked = rng.randrange(2)
    question = f"what does {names[asked]} have ?"
    return _item(f"{' '.join(told)} {question}", f"{colors[asked]} {things[asked]}")


@_kind
def strings(rng: Random) -> Item:
    """Copying and reversing letters."""
    letters = rng.choices(LETTERS, k=rng.randint(2, 7))
    verb = rng.choice(("copy", "reverse"))
    result = letters if verb == "copy" else letters[::-1]
    return _item(f"{verb} {' '.join(letters)} :", " ".join(result))


def draw_mix(rng: Random) -> Item:
    """One item of a kind drawn with equal probability."""
    return MIX[rng.choice(tuple(MIX))](rng)


def _number(rng: Random) -> int:
    """A number below 1000, of one, two or three digits with equal probability."""
    return rng.randrange(10 ** rng.randint(1, 3))


def _sum_or_difference(rng: Random, one: int, other: int) -> Item:
    """``one + other``, or the same fact read backwards as a difference."""
    if rng.random() < 0.5:
        return _item(
            f"{number_words(one)} plus {number_words(other)} is", number_words(one + other)
        )
    whole, part = number_words(one + other), number_words(other)
    return _item(f"{whole} minus {part} is", number_words(one))


def _item(prompt: str, answer: str) -> Item:
    """An item that is the same as another only where its prompt is."""
    return Item(prompt, answer, key=prompt)
