"""In which batches, and in which order, does a model see its items?

Everything is a function of a seed, so an order can be computed again after the training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.data_order.items import Item
from benchmarks.data_order.mix import draw_mix

IGNORED = -100
"""The label of a token that does not count in the loss."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens and the labels they are trained on."""

    tokens: torch.Tensor
    """int64, rows x longest row; padded at the end, so causal attention never sees the padding."""
    labels: torch.Tensor
    """Equal to ``tokens`` where the loss counts, ``IGNORED`` elsewhere."""

    def to(self, device: str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.tokens.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class Encoded:
    """One item as tokens."""

    prompt: list[int]
    """Tokens of the prompt, ``<bos>`` first."""
    answer: list[int]
    """Tokens of the answer, ``<eos>`` last."""


def encode(items: Sequence[Item], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """The items as tokens."""
    prompts = tokenizer([item.prompt for item in items])["input_ids"]
    answers = tokenizer([item.answer for item in items], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [Encoded(p, a + end) for p, a in zip(prompts, answers, strict=True)]


def pad(items: Sequence[Encoded], pad_token: int) -> Batch:
    """One batch of all ``items``; only their answers count in the loss."""
    longest = max(len(item.prompt) + len(item.answer) for item in items)
    tokens = torch.full((len(items), longest), pad_token)
    labels = torch.full((len(items), longest), IGNORED)
    for row, item in enumerate(items):
        start, end = len(item.prompt), len(item.prompt) + len(item.answer)
        tokens[row, :end] = torch.tensor(item.prompt + item.answer)
        labels[row, start:end] = tokens[row, start:end]
    return Batch(tokens, labels)


def data_order(items: int, epochs: int, seed: int) -> list[int]:
    """Indices of the items in the order of training: every item once in every epoch."""
    rng = Random(f"order/{seed}")
    order: list[int] = []
    for _ in range(epochs):
        epoch = list(range(items))
        rng.shuffle(epoch)
        order += epoch
    return order


def ordered_batches(
    items: Sequence[Encoded], order: Sequence[int], size: int, pad_token: int
) -> Iterator[Batch]:
    """The items in that order, in batches of ``size`` rows; the last one may be smaller."""
    for start in range(0, len(order), size):
        yield pad([items[i] for i in order[start : start + size]], pad_token)


def mix_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int | str, rows: int, length: int
) -> Iterator[Batch]:
    """Batches of pre-training text without end, items packed one behind the other."""
    rng = Random(f"mix/{seed}")
    stream: list[int] = []
    while True:
        while len(stream) < rows * length:
            for item in encode([draw_mix(rng) for _ in range(512)], tokenizer):
                stream += item.prompt + item.answer
        tokens = torch.tensor(stream[: rows * length]).view(rows, length)
        del stream[: rows * length]
        yield Batch(tokens, tokens)
