"""How good are checkpoints at a task: ``python -m benchmarks.data_order.score FOLDER...``.

Exact match by greedy decoding and loss on the right answers, item by item, so that two models can
be compared on the same items. Intervals are over items: they say how sure a difference between
these models is, not what other fine-tunes would give.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

from benchmarks.data_order.batches import IGNORED, Encoded, encode, pad
from benchmarks.data_order.items import Item
from benchmarks.data_order.settings import Settings
from benchmarks.data_order.tasks import TASKS, draw_splits

_ROWS = 128
"""Items decoded or scored together."""
_Z = 1.959964
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of one model on each of a list of items."""

    exact: torch.Tensor
    """float64, 1 where the greedy answer is the right one, else 0."""
    loss: torch.Tensor
    """float64, mean negative log-likelihood of the tokens of the right answer, in nats."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over items with the half width of its 95 % confidence interval."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def estimate(values: torch.Tensor) -> Estimate:
    """Mean and normal 95 % interval of independent values, of which it needs at least two.

    The interval has no width where all values are equal, as when no item is answered rightly.
    """
    return Estimate(values.mean().item(), _Z * values.std().item() / math.sqrt(len(values)))


def score_folder(folder: Path, items: Sequence[Item], device: str = "cpu") -> Score:
    """Scores the checkpoint in ``folder`` with its own tokenizer, computing in float32."""
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    encoded = encode(items, tokenizer)
    model.eval()
    return Score(exact_matches(model, encoded), answer_losses(model, encoded))


@torch.inference_mode()
def exact_matches(model: LlamaForCausalLM, items: Sequence[Encoded]) -> torch.Tensor:
    """1 for each item whose greedy answer is the right one, token by token up to ``<eos>``.

    Only prompts of equal length share a batch, so no padding can touch a result.
    """
    exact = torch.zeros(len(items), dtype=torch.float64)
    by_length = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    for _, group in groupby(by_length, key=lambda i: len(items[i].prompt)):
        members = list(group)
        for start in range(0, len(members), _ROWS):
            chosen = members[start : start + _ROWS]
            right = _decoded_rightly(model, [items[i] for i in chosen])
            exact[chosen] = right.double().cpu()
    return exact


def _decoded_rightly(model: LlamaForCausalLM, items: Sequence[Encoded]) -> torch.Tensor:
    """Whether the greedy continuation is the answer; all prompts have one length."""
    prompts = torch.tensor([item.prompt for item in items], device=model.device)
    longest = max(len(item.answer) for item in items)
    written = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=longest,
    )[:, prompts.shape[1] :]
    right = torch.ones(len(items), dtype=torch.bool)
    for row, item in enumerate(items):
        right[row] = written[row, : len(item.answer)].tolist() == item.answer
    return right


@torch.inference_mode()
def answer_losses(model: LlamaForCausalLM, items: Sequence[Encoded]) -> torch.Tensor:
    """The mean loss over the answer's tokens of each item, in nats."""
    losses = torch.zeros(len(items), dtype=torch.float64)
    by_length = sorted(range(len(items)), key=lambda i: len(items[i].prompt + items[i].answer))
    for start in range(0, len(items), _ROWS):
        chosen = by_length[start : start + _ROWS]
        batch = pad([items[i] for i in chosen], model.config.pad_token_id).to(str(model.device))
        logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1].double()
        labels = batch.labels[:, 1:]
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        losses[chosen] = (each.sum(1) / (labels != IGNORED).sum(1)).cpu()
    return losses


def mean_score(scores: Iterable[Score]) -> Score:
    """The mean model: the mean of several models' scores on each item."""
    every = list(scores)
    exact = torch.stack([score.exact for score in every]).mean(0)
    return Score(exact, torch.stack([score.loss for score in every]).mean(0))


def held_out(settings: Settings, split: str) -> list[Item]:
    """The ``validation`` or ``test`` items that belong to the models of ``settings``."""
    splits = draw_splits(
        settings.task, settings.seed, 0, settings.validation_items, settings.test_items
    )
    return splits.validation if split == "validation" else splits.test


def table(scores: dict[str, Score], reference: Score | None = None) -> str:
    """A text table: one line a model, differences from ``reference`` item by item where given."""
    head = ["model", "exact match", "loss"]
    if reference:
        head += ["exact match, difference", "loss, difference"]
    lines = [head]
    for name, score in scores.items():
        line = [name, str(estimate(score.exact)), str(estimate(score.loss))]
        if reference and score is not reference:
            for difference in (score.exact - reference.exact, score.loss - reference.loss):
                found = estimate(difference)
                line.append(f"{found.mean:+.3f} ± {found.half_width:.3f}")
        lines.append(line + [""] * (len(head) - len(line)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> None:
    """The command line."""
    default = Settings()
    parser = argparse.ArgumentParser(description="Score checkpoint folders on held-out items.")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--task", choices=sorted(TASKS), default=default.task)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of the data draw")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # several threads only get in each other's way in so small a model
    settings = Settings(seed=arguments.seed, task=arguments.task)
    items = held_out(settings, arguments.split)
    print(table({str(folder): score_folder(folder, items) for folder in arguments.folders}))


if __name__ == "__main__":
    main()
