"""Models of four layers and more, made by transformers, and models put together by hand from them.

What `slices` make is compared with `by_hand`: a model of as many layers, whose weights are copied
one by one, loaded by transformers from its own config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mergeconf.checkpoint import Checkpoint, StoredTensor
from mergeconf.dtypes import DType

VOCABULARY = 48
LAYERS = 4
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [SLIDING, SLIDING, FULL, SLIDING]


def config_of(kind: str, **changes: Any) -> Any:
    """Return the config of a small model."""
    import transformers as t

    common = {**COMMON, "tie_word_embeddings": kind.endswith("-tied")}
    windows = {"sliding_window": 4, "head_dim": 8}
    makers: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaConfig(**{**common, **changes}),
        "qwen2": lambda: t.Qwen2Config(
            **{**common, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2,
               **changes}),
        "qwen3": lambda: t.Qwen3Config(
            **{**common, **windows, "use_sliding_window": True, "layer_types": MIXED, **changes}),
        "gemma2": lambda: t.Gemma2Config(**{**common, **windows, **changes}),
        "gemma3": lambda: t.Gemma3TextConfig(
            **{**common, **windows, "layer_types": MIXED, **changes}),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_head=2, bos_token_id=1,
            eos_token_id=2, **{"n_layer": LAYERS, **changes}),
        "helium": lambda: t.HeliumConfig(**{**common, "head_dim": 8, **changes}),
        "t5": lambda: t.T5Config(
            vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=3,
            num_decoder_layers=2, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False, **changes),
    }  # fmt: skip
    return makers[kind.partition("-")[0]]()


def new_model(kind: str, variant: int, **changes: Any) -> Any:
    """Return a model with random weights, others for each variant."""
    import transformers

    torch.manual_seed(100 + variant)
    config = config_of(kind, **changes)
    if config.is_encoder_decoder:
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def save(kind: str, variant: int, folder: Path, **changes: Any) -> Any:
    """Write a model and return it."""
    model = new_model(kind, variant, **changes)
    model.save_pretrained(folder)
    return model


def stack_of(model: Any) -> str:
    """Return the name of a model's list of layers, in its state."""
    return "transformer.h" if model.config.model_type == "gpt2" else "model.layers"


def by_hand(
    kind: str,
    layers: Sequence[Mapping[str, torch.Tensor]],
    first: Any,
    last: Any,
    **changes: Any,
) -> Any:
    """Return a model of these layers, between the embeddings of `first` and the head of `last`.

    Each layer is its tensors by the rest of their names.
    """
    import transformers

    count = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    config = config_of(kind, **{count: len(layers), **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    stack = stack_of(model)
    state = {}
    for name in model.state_dict():
        if name.startswith(f"{stack}."):
            _, _, rest = name.removeprefix(f"{stack}.").partition(".")
            number = int(name.removeprefix(f"{stack}.").partition(".")[0])
            state[name] = layers[number][rest]
        else:
            end = any(word in name for word in ("model.norm", "ln_f", "lm_head"))
            state[name] = (last if end else first).state_dict()[name]
    if config.tie_word_embeddings:
        state = {name: value for name, value in state.items() if name != "lm_head.weight"}
    model.load_state_dict(state, strict=not config.tie_word_embeddings)
    model.tie_weights()
    return model


def layer(model: Any, number: int) -> dict[str, torch.Tensor]:
    """Return the tensors of one layer by the rest of their names."""
    start = f"{stack_of(model)}.{number}."
    state = model.state_dict()
    return {n.removeprefix(start): value for n, value in state.items() if n.startswith(start)}


def output_of(model: Any) -> torch.Tensor:
    """Return a model's logits for a fixed input, longer than any window."""
    words = (torch.arange(32).reshape(2, 16) * 7) % VOCABULARY
    with torch.no_grad():
        return model(input_ids=words).logits


def headers(label: str, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Return a checkpoint that has names and shapes and no files."""
    file = Path(label, "model.safetensors")
    stored = {
        name: StoredTensor(name, DType.float32, tuple(value.shape), file, 0, value.numel() * 4)
        for name, value in tensors.items()
    }
    return Checkpoint(label, Path(label), stored, {}, None, (), (), ())
