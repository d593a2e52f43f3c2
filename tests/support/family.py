"""What a family of models is, and settings that several have.

Sizes are the smallest at which nothing is left out: several layers of each kind, more than one
head, expert and group, windows shorter than the input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

VOCABULARY = 48
IMAGE_TOKEN = 40
"""Token in whose place a vision-language model puts what its tower makes of the image."""
LAYERS = 4
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ENCODER = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_conv_kernel_dim": 3,
}  # fmt: skip
SSM = {
    "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
    "mamba_d_conv": 3, "mamba_expand": 2, "mamba_chunk_size": 8,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
BART = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2,
    "num_layers": 3, "num_decoder_layers": 2, "decoder_start_token_id": 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model."""

    config: str
    """Name of the config's class in transformers."""
    model: str
    """Name of the model's class."""
    settings: Mapping[str, Any]
    """What the config is made with."""
    stack: str | None = None
    """Name of the stack that is made deeper, as it stands in the files; None for none."""
    order: tuple[tuple[int, int], ...] = ((0, 2), (1, 4))
    """Ranges of layers that the deeper model is made of."""
    inputs: str = "words"
    """What the model is run with."""
    dtype: str = "bfloat16"
    """The format of its files."""
    module: str | None = None
    """Key in `modules` where a recipe has to say which stack it means."""
    memory: str | None = None
    """Name of the stack in memory, where it is not that of the files."""


def decoder(name: str, *more: Mapping[str, Any], model: str = "", **fields: Any) -> Family:
    """Return a decoder whose classes are named in the usual way."""
    settings: dict[str, Any] = {**TEXT}
    for part in more:
        settings |= part
    fields = {"stack": "model.layers", **fields}
    config = name + ("TextConfig" if name in ("Gemma3", "Qwen3_5") else "Config")
    return Family(config, model or f"{name}ForCausalLM", settings, **fields)
