"""How are numbers written in words, and which names and things do the texts speak of?

Knows nothing of tasks or models.
"""

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

NAMES = ("mia", "tom", "ana", "ben", "lea", "max", "zoe", "sam")
"""Who the stories are about."""
THINGS = ("apples", "pears", "plums", "coins", "books", "cards", "stones", "shells")
"""What is counted, in the plural."""
COLORS = ("red", "blue", "green", "black", "white", "brown")
"""What things look like."""
LETTERS = "abcdefghij"
"""The letters of the string kinds, each a word of its own."""


def number_words(number: int) -> str:
    """The number in American English words, without "and" and without hyphens.

    >>> number_words(407), number_words(1342)
    ('four hundred seven', 'one thousand three hundred forty two')

    Raises ValueError outside 0..999999.
    """
    if not 0 <= number <= 999_999:
        raise ValueError(f"{number} is not in 0..999999")
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _joined(_TENS[number // 10], number % 10)
    if number < 1000:
        return _joined(f"{_SMALL[number // 100]} hundred", number % 100)
    return _joined(f"{number_words(number // 1000)} thousand", number % 1000)


def _joined(head: str, rest: int) -> str:
    """``head`` followed by what is left of the number, if anything is."""
    return f"{head} {number_words(rest)}" if rest else head
