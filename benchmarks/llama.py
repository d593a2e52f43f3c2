"""Llama shapes of several sizes: which tensors a checkpoint has, and its config.json."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The numbers that decide every tensor's shape."""

    hidden: int
    """Width of the residual stream."""
    intermediate: int
    """Width inside the feed-forward blocks."""
    layers: int
    """Number of layers."""
    heads: int
    """Query heads; the width of one is `hidden // heads`."""
    kv_heads: int
    """Key and value heads."""
    vocabulary: int
    """Rows of the embedding."""
    tied: bool
    """Whether the output head is the embedding, and so not in the files."""


LLAMA_SHAPES: dict[str, LlamaShape] = {
    "0.1": LlamaShape(768, 2048, 12, 12, 4, 32000, tied=True),
    "0.5": LlamaShape(1024, 4096, 28, 16, 8, 32000, tied=False),
    "1.1": LlamaShape(2048, 5632, 22, 32, 4, 32000, tied=False),
    "3": LlamaShape(3072, 8192, 28, 24, 8, 128256, tied=True),
    "7": LlamaShape(4096, 11008, 32, 32, 32, 32000, tied=False),
}
"""Shapes by their size in billions of parameters; 1.1, 3 and 7 are those of known models."""


def layer_shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one layer, named without the layer's prefix."""
    kv_width = shape.hidden // shape.heads * shape.kv_heads
    return {
        "input_layernorm.weight": (shape.hidden,),
        "mlp.down_proj.weight": (shape.hidden, shape.intermediate),
        "mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.up_proj.weight": (shape.intermediate, shape.hidden),
        "post_attention_layernorm.weight": (shape.hidden,),
        "self_attn.k_proj.weight": (kv_width, shape.hidden),
        "self_attn.o_proj.weight": (shape.hidden, shape.hidden),
        "self_attn.q_proj.weight": (shape.hidden, shape.hidden),
        "self_attn.v_proj.weight": (kv_width, shape.hidden),
    }


def tensor_shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Return all tensors of a checkpoint, by name, in the order they are written."""
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocabulary, shape.hidden)
    }
    for layer in range(shape.layers):
        for name, dimensions in layer_shapes(shape).items():
            tensors[f"model.layers.{layer}.{name}"] = dimensions
    tensors["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        tensors["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    return tensors


def config_json(shape: LlamaShape) -> dict[str, object]:
    """Return the model's config.json, as transformers writes it for a Llama model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }
