"""Every number that decides what the trained models are.

The defaults are those of the models in ``recipes/models``.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the Llama model; the vocabulary comes from the tokenizer."""

    hidden: int = 96
    """Width of the residual stream."""
    intermediate: int = 256
    """Width of the gated feed-forward layers."""
    layers: int = 4
    """Number of decoder layers."""
    heads: int = 4
    """Query heads of a layer."""
    kv_heads: int = 2
    """Key and value heads of a layer."""
    positions: int = 128
    """Longest sequence, in tokens."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """AdamW with a linear warm-up and a linear decay to zero."""

    batch: int
    """Rows of a batch."""
    peak_rate: float
    """Largest learning rate."""
    warmup: float
    """Share of the steps in which the rate grows."""
    weight_decay: float
    """Applied to matrices only."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One base and its fine-tunes on one task."""

    seed: int = 1
    """Decides the first weights, the pre-training text and the data draw."""
    task: str = "arithmetic"
    """What is fine-tuned and scored: a name of ``tasks.TASKS``."""
    vocabulary_tasks: tuple[str, ...] = ("arithmetic",)
    """The tasks whose words the tokenizer knows beside those of the mix."""
    shape: Shape = field(default_factory=Shape)
    """The model."""
    pretraining: Schedule = field(default_factory=lambda: Schedule(32, 3e-3, 0.05, 0.1))
    """How the base is trained; a row is ``row_tokens`` long."""
    pretraining_steps: int = 4_000
    """Batches of pre-training; none is seen twice."""
    row_tokens: int = 96
    """Tokens of a pre-training row, packed from as many items as fit."""
    fine_tuning: Schedule = field(default_factory=lambda: Schedule(32, 5e-4, 0.1, 0.0))
    """How each fine-tune is trained; a row is an item."""
    epochs: int = 3
    """Passes over the training items, each in an order of its own."""
    orders: int = 4
    """Number of fine-tunes; fine-tune k has data order and seed k, all else is equal."""
    train_items: int = 3_072
    """Items of the training split."""
    validation_items: int = 1_000
    """Items of the validation split."""
    test_items: int = 3_000
    """Items of the test split."""
