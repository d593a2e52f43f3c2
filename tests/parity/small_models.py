"""Llama-shaped checkpoints, small enough to merge hundreds of times."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

MOST_MODELS = 5
HIDDEN, INNER, VOCABULARY, LAYERS = 48, 72, 112, 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip

Tensors = dict[str, torch.Tensor]


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.v_proj": (HIDDEN // 2, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER), "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }.items():  # fmt: skip
            found[f"model.layers.{layer}.{name}.weight"] = shape
    return found


def family(kind: str) -> list[Tensors]:
    """Return a base and five fine-tunes of it.

    `plain` has float32 deltas in about half of the elements of every tensor; `bfloat16` is the
    same rounded, in which magnitudes repeat; `odd` has in layer 1 tensors that are equal in all
    models, zero, changed by next to nothing, unchanged in one model, or multiples of the base's.
    """
    generator = torch.Generator().manual_seed(7)
    models: list[Tensors] = [{} for _ in range(1 + MOST_MODELS)]
    for name, shape in shapes().items():
        base = torch.randn(shape, generator=generator) * 0.5
        for index, model in enumerate(models):
            delta = torch.randn(shape, generator=generator) * 0.02
            changed = torch.rand(shape, generator=generator) < 0.5
            value = base + delta * changed if index else base.clone()
            if kind == "odd":
                value = _oddity(name, index, base, value)
            model[name] = value.to(torch.bfloat16) if kind == "bfloat16" else value
    return models


def _oddity(name: str, index: int, base: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    match name.removeprefix("model.layers.1.").removesuffix(".weight"):
        case "self_attn.q_proj":
            return base.clone()
        case "mlp.up_proj":
            return torch.zeros_like(base)
        case "self_attn.k_proj":
            return (base + (value - base) * 1e-5) * 1e-4
        case "self_attn.v_proj" if index == 1:
            return base.clone()
        case "self_attn.o_proj":
            return base * (1 + 0.1 * index)
    return value


def write(models: list[Tensors], folder: Path) -> list[Path]:
    """Write checkpoints and return their folders, the base's first."""
    written = []
    for index, tensors in enumerate(models):
        target = folder / ("base" if index == 0 else f"model{index}")
        target.mkdir(parents=True)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        (target / "config.json").write_text(json.dumps(CONFIG))
        written.append(target)
    return written
