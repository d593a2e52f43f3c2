"""Train a base and its fine-tunes: ``python -m benchmarks.data_order.train --out recipes/models``.

The base is stored in bfloat16 first; the fine-tunes start from the stored values and are trained
in float32. The result depends on the seed alone on one machine with one number of threads.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from benchmarks.data_order.batches import (
    IGNORED,
    Batch,
    Encoded,
    data_order,
    encode,
    mix_batches,
    ordered_batches,
)
from benchmarks.data_order.settings import Schedule, Settings
from benchmarks.data_order.tasks import draw_splits
from benchmarks.data_order.tokenizer import make_tokenizer, vocabulary

OnStep = Callable[[int, float, LlamaForCausalLM], None]
"""Called after each step with its number from 1, its loss in nats a token, and the model."""


def new_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of float32 weights drawn from ``settings.seed``."""
    shape = settings.shape
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(config)


def load_model(folder: Path, device: str = "cpu") -> LlamaForCausalLM:
    """The stored model, its values in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)


def save_checkpoint(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Stores model and tokenizer, weights rounded to bfloat16; ``model`` is rounded with them.

    The folder appears under its name only when it is complete.
    """
    partial = folder.with_name(folder.name + ".partial")
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    path = partial / "tokenizer_config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["tokenizer_class"] = "PreTrainedTokenizerFast"  # the one name all releases know
    path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder)


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean loss over the tokens that count, in nats."""
    logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def train_model(
    model: LlamaForCausalLM,
    batches: Iterator[Batch],
    steps: int,
    schedule: Schedule,
    on_step: OnStep | None = None,
) -> None:
    """Trains ``model`` in place for ``steps`` batches."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=schedule.peak_rate, betas=(0.9, 0.95), fused=True)
    rise = max(1, round(steps * schedule.warmup))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / rise, (steps - s) / max(1, steps - rise + 1))
    )
    device = str(model.device)
    model.train()
    for step, batch in enumerate(islice(batches, steps), start=1):
        loss = batch_loss(model, batch.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if on_step:
            on_step(step, loss.item(), model)
    model.eval()


def train_base(
    settings: Settings,
    tokenizer: PreTrainedTokenizerFast,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> LlamaForCausalLM:
    """A base trained on the mix."""
    model = new_model(settings, tokenizer).to(device)
    schedule = settings.pretraining
    batches = mix_batches(tokenizer, settings.seed, schedule.batch, settings.row_tokens)
    train_model(model, batches, settings.pretraining_steps, schedule, on_step)
    return model


def fine_tune(
    model: LlamaForCausalLM,
    items: list[Encoded],
    settings: Settings,
    order_seed: int,
    on_step: OnStep | None = None,
) -> None:
    """Fine-tunes ``model`` in place on ``items`` in the order of ``order_seed``."""
    torch.manual_seed(order_seed)
    schedule = settings.fine_tuning
    order = data_order(len(items), settings.epochs, order_seed)
    batches = ordered_batches(items, order, schedule.batch, model.config.pad_token_id)
    steps = -(-len(order) // schedule.batch)
    train_model(model, batches, steps, schedule, on_step)


def train_all(settings: Settings, out: Path, device: str, report: Callable[[str], None]) -> None:
    """Trains and stores ``out/base`` and ``out/order-1``, ...; keeps what is there."""
    tokenizer = make_tokenizer(vocabulary(settings.vocabulary_tasks))
    base = out / "base"
    with _stage(base, report) as wanted:
        if wanted:
            model = train_base(settings, tokenizer, device, _reporter(report, "base", 500))
            save_checkpoint(model, tokenizer, base)
    splits = draw_splits(
        settings.task,
        settings.seed,
        settings.train_items,
        settings.validation_items,
        settings.test_items,
    )
    items = encode(splits.train, tokenizer)
    for order_seed in range(1, settings.orders + 1):
        folder = out / f"order-{order_seed}"
        with _stage(folder, report) as wanted:
            if wanted:
                model = load_model(base, device)
                on_step = _reporter(report, folder.name, 100)
                fine_tune(model, items, settings, order_seed, on_step)
                save_checkpoint(model, tokenizer, folder)


@contextmanager
def _stage(folder: Path, report: Callable[[str], None]) -> Iterator[bool]:
    """Yields whether ``folder`` is still to be made; reports that, and the time it took."""
    if folder.is_dir():
        report(f"{folder.name}: there already, kept")
        yield False
        return
    started = time.perf_counter()
    yield True
    report(f"{folder.name}: {time.perf_counter() - started:.0f} s")


def _reporter(report: Callable[[str], None], name: str, every: int) -> OnStep:
    """Reports the loss of one step in ``every``."""

    def on_step(step: int, loss: float, _: LlamaForCausalLM) -> None:
        if step % every == 0:
            report(f"{name}: step {step}, loss {loss:.3f}")

    return on_step


def main() -> None:
    """The command line."""
    default = Settings()
    parser = argparse.ArgumentParser(description="Train a base and its fine-tunes.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the models")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--orders", type=int, default=default.orders, help="number of fine-tunes")
    parser.add_argument("--device", default="cpu", help="where torch trains (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True, warn_only=arguments.device != "cpu")
    settings = replace(default, seed=arguments.seed, orders=arguments.orders)
    logging.disable_progress_bar()
    _print_now(json.dumps(asdict(settings)))
    train_all(settings, arguments.out, arguments.device, _print_now)


def _print_now(line: str) -> None:
    """Prints a line that a pipe shows at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
