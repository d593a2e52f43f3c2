"""Which tensors does a model of a known architecture have? Names as its checkpoints have them.

Sizes are as small as they can be while heads still divide what they have to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HIDDEN, KEYS, INNER, EXPERT = 8, 4, 12, 6
VOCABULARY = "rows"
"""Stands for the size of a model's vocabulary."""

Size = tuple[int | str, ...]


@dataclass(frozen=True)
class Stack:
    """Layers that are alike, such as those of a decoder."""

    layer: Mapping[str, Size]
    """Tensors of one layer, by the rest of their names."""
    count: tuple[str, ...]
    """Key of the config, by part, that says how many layers there are; none if it does not."""
    first: Mapping[str, Size] = field(default_factory=dict)
    """What the first layer has beside."""


@dataclass(frozen=True)
class Shape:
    """An architecture."""

    config: Mapping[str, Any]
    stacks: Mapping[str, Stack]
    """By name; a recipe's layer ranges are those of the first."""
    outside: Mapping[str, Size]
    """Tensors outside all layers."""

    def names(self, depth: Mapping[str, int]) -> dict[str, Size]:
        """Return every tensor of a model whose stacks have so many layers."""
        found = dict(self.outside)
        for name, stack in self.stacks.items():
            for index in range(depth[name]):
                extra = stack.first if index == 0 else {}
                for rest, size in {**stack.layer, **extra}.items():
                    found[f"{name}.{index}.{rest}"] = size
        return found


def _norm(name: str, *, bias: bool = False) -> dict[str, Size]:
    found: dict[str, Size] = {f"{name}.weight": (HIDDEN,)}
    return found | ({f"{name}.bias": (HIDDEN,)} if bias else {})


def _dense(name: str, rows: int, columns: int, *, bias: bool = True) -> dict[str, Size]:
    found: dict[str, Size] = {f"{name}.weight": (rows, columns)}
    return found | ({f"{name}.bias": (rows,)} if bias else {})


def _attention(*, bias: bool = False) -> dict[str, Size]:
    return {
        **_dense("self_attn.q_proj", HIDDEN, HIDDEN, bias=bias),
        **_dense("self_attn.k_proj", KEYS, HIDDEN, bias=bias),
        **_dense("self_attn.v_proj", KEYS, HIDDEN, bias=bias),
        **_dense("self_attn.o_proj", HIDDEN, HIDDEN, bias=False),
    }


MLP = {
    **_dense("mlp.gate_proj", INNER, HIDDEN, bias=False),
    **_dense("mlp.up_proj", INNER, HIDDEN, bias=False),
    **_dense("mlp.down_proj", HIDDEN, INNER, bias=False),
}
NORMS = {**_norm("input_layernorm"), **_norm("post_attention_layernorm")}
HEAD_NORMS: dict[str, Size] = {
    "self_attn.q_norm.weight": (KEYS,),
    "self_attn.k_norm.weight": (KEYS,),
}
EMBEDDINGS: dict[str, Size] = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    **_norm("model.norm"),
}
OUTSIDE: dict[str, Size] = {**EMBEDDINGS, "lm_head.weight": (VOCABULARY, HIDDEN)}
COMMON = {
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LAYERS = ("num_hidden_layers",)


def _decoder(
    architecture: str,
    model_type: str,
    layer: Mapping[str, Size],
    *,
    tied: bool = False,
    **config: Any,
) -> Shape:
    """Return a decoder whose outer tensors are called as those of Llama."""
    every = {
        "architectures": [architecture], "model_type": model_type, **COMMON,
        "num_key_value_heads": 1, "tie_word_embeddings": tied, **config,
    }  # fmt: skip
    stack = Stack(layer, LAYERS)
    return Shape(every, {"model.layers": stack}, EMBEDDINGS if tied else OUTSIDE)


LLAMA = {**_attention(), **MLP, **NORMS}
GPT2_LAYER = {
    **_norm("ln_1", bias=True), **_norm("ln_2", bias=True),
    "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN), "attn.c_attn.bias": (3 * HIDDEN,),
    "attn.c_proj.weight": (HIDDEN, HIDDEN), "attn.c_proj.bias": (HIDDEN,),
    "mlp.c_fc.weight": (HIDDEN, INNER), "mlp.c_fc.bias": (INNER,),
    "mlp.c_proj.weight": (INNER, HIDDEN), "mlp.c_proj.bias": (HIDDEN,),
}  # fmt: skip
BERT_LAYER = {
    **_dense("attention.self.query", HIDDEN, HIDDEN),
    **_dense("attention.self.key", HIDDEN, HIDDEN),
    **_dense("attention.self.value", HIDDEN, HIDDEN),
    **_dense("attention.output.dense", HIDDEN, HIDDEN),
    **_norm("attention.output.LayerNorm", bias=True),
    **_dense("intermediate.dense", INNER, HIDDEN),
    **_dense("output.dense", HIDDEN, INNER),
    **_norm("output.LayerNorm", bias=True),
}
T5_ATTENTION = dict.fromkeys("qkvo", (HIDDEN, HIDDEN))
T5_BIAS: dict[str, Size] = {"layer.0.SelfAttention.relative_attention_bias.weight": (4, 2)}


def _t5_layer(*, decoder: bool) -> dict[str, Size]:
    last = 2 if decoder else 1
    found: dict[str, Size] = {}
    for index, kind in enumerate(("SelfAttention", "EncDecAttention")[:last]):
        for part, size in T5_ATTENTION.items():
            found[f"layer.{index}.{kind}.{part}.weight"] = size
        found |= _norm(f"layer.{index}.layer_norm")
    for part, size in {
        "wi_0": (INNER, HIDDEN),
        "wi_1": (INNER, HIDDEN),
        "wo": (HIDDEN, INNER),
    }.items():
        found[f"layer.{last}.DenseReluDense.{part}.weight"] = size
    return found | _norm(f"layer.{last}.layer_norm")


QWEN2 = {**_attention(bias=True), **MLP, **NORMS}
VISION_LAYER = {
    **_norm("norm1", bias=True), **_norm("norm2", bias=True),
    **_dense("attn.qkv", 3 * HIDDEN, HIDDEN), **_dense("attn.proj", HIDDEN, HIDDEN),
    **_dense("mlp.fc1", 2 * HIDDEN, HIDDEN), **_dense("mlp.fc2", HIDDEN, 2 * HIDDEN),
}  # fmt: skip
VISION_OUTSIDE: dict[str, Size] = {
    "visual.patch_embed.proj.weight": (HIDDEN, 3, 2, 2, 2),
    **_norm("visual.merger.ln_q", bias=True),
    **_dense("visual.merger.mlp.0", 16, 32), **_dense("visual.merger.mlp.2", HIDDEN, 16),
}  # fmt: skip
UNET_BLOCK = {
    **_dense("attn1.to_q", HIDDEN, HIDDEN, bias=False),
    **_dense("attn1.to_k", HIDDEN, HIDDEN, bias=False),
    **_dense("attn1.to_v", HIDDEN, HIDDEN, bias=False),
    **_dense("attn1.to_out.0", HIDDEN, HIDDEN),
    **_dense("attn2.to_k", HIDDEN, INNER, bias=False),
    **_dense("ff.net.0.proj", 2 * INNER, HIDDEN), **_dense("ff.net.2", HIDDEN, INNER),
    **_norm("norm1", bias=True),
}  # fmt: skip


def _mixtral(experts: int) -> dict[str, Size]:
    found: dict[str, Size] = {"block_sparse_moe.gate.weight": (experts, HIDDEN)}
    for index in range(experts):
        start = f"block_sparse_moe.experts.{index}"
        found |= {f"{start}.w1.weight": (INNER, HIDDEN), f"{start}.w2.weight": (HIDDEN, INNER)}
        found |= {f"{start}.w3.weight": (INNER, HIDDEN)}
    return found


def _qwen3_moe(experts: int) -> dict[str, Size]:
    found: dict[str, Size] = {"mlp.gate.weight": (experts, HIDDEN)}
    for index in range(experts):
        start = f"mlp.experts.{index}"
        found |= _dense(f"{start}.gate_proj", EXPERT, HIDDEN, bias=False)
        found |= _dense(f"{start}.up_proj", EXPERT, HIDDEN, bias=False)
        found |= _dense(f"{start}.down_proj", HIDDEN, EXPERT, bias=False)
    return found


SHAPES: dict[str, Shape] = {
    "llama": _decoder("LlamaForCausalLM", "llama", LLAMA, rms_norm_eps=1e-5),
    "llama-tied": _decoder("LlamaForCausalLM", "llama", LLAMA, tied=True, rms_norm_eps=1e-5),
    "mistral": _decoder("MistralForCausalLM", "mistral", LLAMA, sliding_window=None),
    "qwen2": _decoder("Qwen2ForCausalLM", "qwen2", QWEN2, tied=True, use_sliding_window=False),
    "qwen3": _decoder(
        "Qwen3ForCausalLM", "qwen3", {**LLAMA, **HEAD_NORMS}, tied=True, head_dim=KEYS
    ),
    "gemma2": _decoder(
        "Gemma2ForCausalLM", "gemma2",
        {**LLAMA, **_norm("pre_feedforward_layernorm"), **_norm("post_feedforward_layernorm")},
        tied=True, head_dim=KEYS,
    ),
    "phi3": _decoder(
        "Phi3ForCausalLM", "phi3",
        {
            **_dense("self_attn.qkv_proj", HIDDEN + 2 * KEYS, HIDDEN, bias=False),
            **_dense("self_attn.o_proj", HIDDEN, HIDDEN, bias=False),
            **_dense("mlp.gate_up_proj", 2 * INNER, HIDDEN, bias=False),
            **_dense("mlp.down_proj", HIDDEN, INNER, bias=False), **NORMS,
        },
    ),
    "mixtral": _decoder(
        "MixtralForCausalLM", "mixtral", {**_attention(), **_mixtral(2), **NORMS},
        num_local_experts=2, num_experts_per_tok=1,
    ),
    "qwen3-moe": _decoder(
        "Qwen3MoeForCausalLM", "qwen3_moe",
        {**_attention(), **HEAD_NORMS, **_qwen3_moe(3), **NORMS},
        num_experts=3, num_experts_per_tok=1, moe_intermediate_size=EXPERT, head_dim=KEYS,
        decoder_sparse_step=1, mlp_only_layers=[],
    ),
    "gpt2": Shape(
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": HIDDEN, "n_head": 2,
         "n_positions": 16, "n_inner": INNER, "bos_token_id": 1, "eos_token_id": 2},
        {"transformer.h": Stack(GPT2_LAYER, ("n_layer",))},
        {"transformer.wte.weight": (VOCABULARY, HIDDEN), "transformer.wpe.weight": (16, HIDDEN),
         **_norm("transformer.ln_f", bias=True)},
    ),
    "bert": Shape(
        {"architectures": ["BertModel"], "model_type": "bert", **COMMON, "type_vocab_size": 2,
         "max_position_embeddings": 16},
        {"encoder.layer": Stack(BERT_LAYER, LAYERS)},
        {"embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
         "embeddings.position_embeddings.weight": (16, HIDDEN),
         "embeddings.token_type_embeddings.weight": (2, HIDDEN),
         **_norm("embeddings.LayerNorm", bias=True), **_dense("pooler.dense", HIDDEN, HIDDEN)},
    ),
    "t5": Shape(
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": HIDDEN,
         "d_ff": INNER, "d_kv": 4, "num_heads": 2, "feed_forward_proj": "gated-gelu",
         "relative_attention_num_buckets": 4, "decoder_start_token_id": 0,
         "tie_word_embeddings": True, "eos_token_id": 2, "pad_token_id": 0},
        {"encoder.block": Stack(_t5_layer(decoder=False), ("num_layers",), T5_BIAS),
         "decoder.block": Stack(_t5_layer(decoder=True), ("num_decoder_layers",), T5_BIAS)},
        {"shared.weight": (VOCABULARY, HIDDEN), **_norm("encoder.final_layer_norm"),
         **_norm("decoder.final_layer_norm")},
    ),
    "qwen2-vl": Shape(
        {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **COMMON,
         "num_key_value_heads": 1, "tie_word_embeddings": False,
         "vision_config": {"model_type": "qwen2_vl", "embed_dim": HIDDEN, "hidden_size": HIDDEN,
                           "num_heads": 2, "mlp_ratio": 2}},
        {"model.layers": Stack(QWEN2, LAYERS),
         "visual.blocks": Stack(VISION_LAYER, ("vision_config", "depth"))},
        {**OUTSIDE, **VISION_OUTSIDE},
    ),
    "unet": Shape(
        {"_class_name": "UNet2DConditionModel", "sample_size": 8, "cross_attention_dim": INNER},
        {"down_blocks.0.attentions.0.transformer_blocks": Stack(UNET_BLOCK, ()),
         "up_blocks.0.attentions.0.transformer_blocks": Stack(UNET_BLOCK, ())},
        {"conv_in.weight": (HIDDEN, 4, 3, 3), "conv_in.bias": (HIDDEN,),
         **_dense("time_embedding.linear_1", HIDDEN, HIDDEN), **_norm("conv_norm_out", bias=True),
         "conv_out.weight": (4, HIDDEN, 3, 3), "conv_out.bias": (4,)},
    ),
}  # fmt: skip
