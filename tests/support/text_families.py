"""Families that write text: decoders, mixtures of experts, and such with layers of other kinds."""

from __future__ import annotations

import dataclasses

from support.family import (
    ENCODER,
    EXPERTS,
    HEAD,
    LATENT,
    LAYERS,
    LINEAR,
    LOCAL_EXPERTS,
    ROUTED,
    SSM,
    TEXT,
    VOCABULARY,
    WINDOW,
    Family,
    decoder,
)

DECODERS = {
    "llama": decoder("Llama", dtype="float32"),
    "llama-tied": decoder("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "mistral": decoder("Mistral", WINDOW, HEAD),
    "qwen2": decoder(
        "Qwen2", WINDOW, {"use_sliding_window": True, "max_window_layers": 2}
    ),
    "qwen2-tied": decoder("Qwen2", {"tie_word_embeddings": True}, dtype="float32"),
    "qwen3": decoder("Qwen3", HEAD, {"tie_word_embeddings": True}),
    "gemma": decoder("Gemma", HEAD),
    "gemma2": decoder("Gemma2", HEAD, WINDOW),
    "gemma3": decoder("Gemma3", HEAD, WINDOW, {"sliding_window_pattern": 2}),
    "gpt2": Family(
        "GPT2Config", "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": LAYERS, "n_head": 2,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        stack="transformer.h",
    ),
    "gpt-neox": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", ENCODER, stack="gpt_neox.layers"
    ),
    "gptj": Family(
        "GPTJConfig", "GPTJForCausalLM",
        {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": LAYERS, "n_head": 2,
         "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
         "tie_word_embeddings": False},
        stack="transformer.h",
    ),
    "gpt-bigcode": Family(
        "GPTBigCodeConfig", "GPTBigCodeForCausalLM",
        {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": LAYERS, "n_head": 2,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        stack="transformer.h",
    ),
    "gpt-neo": Family(
        "GPTNeoConfig", "GPTNeoForCausalLM",
        {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "hidden_size": 16,
         "intermediate_size": 24, "num_layers": LAYERS, "num_heads": 2, "window_size": 4,
         "attention_types": [[["global", "local"], 2]], "bos_token_id": 1, "eos_token_id": 2},
        stack="transformer.h",
    ),
    "bloom": Family(
        "BloomConfig", "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": LAYERS, "n_head": 2,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        stack="transformer.h",
    ),
    "opt": Family(
        "OPTConfig", "OPTForCausalLM",
        {**ENCODER, "ffn_dim": 24, "word_embed_proj_dim": 16}, stack="model.decoder.layers",
    ),
    "falcon": Family(
        "FalconConfig", "FalconForCausalLM", {**ENCODER, "ffn_hidden_size": 24},
        stack="transformer.h",
    ),
    "mpt": Family(
        "MptConfig", "MptForCausalLM",
        {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": LAYERS, "n_heads": 2,
         "max_seq_len": 64, "expansion_ratio": 2, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0},
        stack="transformer.blocks",
    ),
    "phi": Family("PhiConfig", "PhiForCausalLM", TEXT, stack="model.layers"),
    "phi3": decoder("Phi3", WINDOW),
    "starcoder2": decoder("Starcoder2", WINDOW),
    "stablelm": decoder("StableLm"),
    "olmo": decoder("Olmo"),
    "olmo2": decoder("Olmo2"),
    "olmo3": decoder("Olmo3", WINDOW),
    "cohere": decoder("Cohere"),
    "cohere2": decoder("Cohere2", WINDOW, {"layer_types": None, "sliding_window_pattern": 2}),
    "granite": decoder("Granite", {"tie_word_embeddings": True}),
    "glm": decoder("Glm", HEAD),
    "glm4": decoder("Glm4", HEAD),
    "smollm3": decoder(
        "SmolLM3", {"no_rope_layer_interval": 2, "tie_word_embeddings": True}
    ),
    "exaone4": decoder("Exaone4", WINDOW, {"sliding_window_pattern": 2}),
    "ministral": decoder("Ministral", HEAD, WINDOW),
    "seed-oss": decoder("SeedOss", HEAD),
    "ernie4_5": decoder("Ernie4_5", HEAD),
    "nemotron": decoder("Nemotron"),
    "helium": decoder("Helium", HEAD),
    "vaultgemma": decoder("VaultGemma", HEAD, WINDOW),
    "apertus": decoder("Apertus"),
    "arcee": decoder("Arcee"),
}  # fmt: skip

MIXTURES = {
    "mixtral": decoder("Mixtral", LOCAL_EXPERTS),
    "qwen2-moe": decoder(
        "Qwen2Moe", EXPERTS, {"shared_expert_intermediate_size": 16, "mlp_only_layers": [1]}
    ),
    "qwen3-moe": decoder("Qwen3Moe", EXPERTS, HEAD, {"mlp_only_layers": [0]}),
    "gpt-oss": decoder("GptOss", LOCAL_EXPERTS, HEAD, WINDOW),
    "deepseek-v2": decoder("DeepseekV2", ROUTED, LATENT, {"topk_method": "greedy"}),
    "deepseek-v3": decoder("DeepseekV3", ROUTED, LATENT, {"num_key_value_heads": 2}),
    "glm4-moe": decoder("Glm4Moe", ROUTED, HEAD, {"use_qk_norm": True}),
    "glm4-moe-lite": decoder(
        "Glm4MoeLite", ROUTED, LATENT, {"num_key_value_heads": 2}, order=((0, 2), (0, 4))
    ),
    "afmoe": decoder(
        "Afmoe", EXPERTS, HEAD, WINDOW,
        {"num_dense_layers": 1, "global_attn_every_n_layers": 2, "num_shared_experts": 1}
    ),
    "granitemoe": decoder("GraniteMoe", LOCAL_EXPERTS),
    "granitemoeshared": decoder(
        "GraniteMoeShared", LOCAL_EXPERTS, {"shared_intermediate_size": 12}
    ),
    "olmoe": decoder("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": decoder("Phimoe", LOCAL_EXPERTS),
    "dots1": decoder("Dots1", ROUTED, HEAD),
    "ernie4_5-moe": decoder(
        "Ernie4_5_Moe", HEAD,
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1,
         "moe_layer_start_index": 1, "moe_layer_end_index": 3}
    ),
    "minimax": decoder("MiniMax", LOCAL_EXPERTS, HEAD, {"block_size": 8}),
    "minimax-m2": decoder("MiniMaxM2", LOCAL_EXPERTS, HEAD),
    "hunyuan-moe": decoder(
        "HunYuanMoEV1", {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 16}, HEAD
    ),
    "llama4": decoder(
        "Llama4", LOCAL_EXPERTS, HEAD,
        {"interleave_moe_layer_step": 2, "intermediate_size_mlp": 24, "attention_chunk_size": 8},
    ),
}  # fmt: skip
MIXTURES["llama4"] = dataclasses.replace(MIXTURES["llama4"], config="Llama4TextConfig")

HYBRIDS = {
    "qwen3-next": decoder(
        "Qwen3Next", EXPERTS, HEAD, LINEAR,
        {"shared_expert_intermediate_size": 16, "full_attention_interval": 2},
    ),
    "qwen3_5": decoder("Qwen3_5", HEAD, LINEAR, {"full_attention_interval": 2}),
    "mamba": Family(
        "MambaConfig", "MambaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": LAYERS,
         "conv_kernel": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        stack="backbone.layers",
    ),
    "mamba2": Family(
        "Mamba2Config", "Mamba2ForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": LAYERS,
         "conv_kernel": 3, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 8,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        stack="backbone.layers",
    ),
    "falcon-mamba": Family(
        "FalconMambaConfig", "FalconMambaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": LAYERS,
         "conv_kernel": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        stack="backbone.layers",
    ),
    "falcon-h1": decoder("FalconH1", SSM, {"mamba_d_ssm": 32, "num_key_value_heads": 2}),
    "granitemoehybrid": decoder(
        "GraniteMoeHybrid", LOCAL_EXPERTS, SSM,
        {"shared_intermediate_size": 12,
         "layer_types": ["mamba", "attention", "mamba", "attention"]},
    ),
    "bamba": decoder("Bamba", SSM, {"attn_layer_indices": [1, 3]}),
    "jamba": decoder(
        "Jamba", {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2,
                  "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
                  "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 4,
                  "mamba_expand": 2},
        order=((0, 2), (0, 4)),
    ),
    "lfm2": decoder(
        "Lfm2", {"full_attn_idxs": [1, 3], "block_multiple_of": 8, "conv_L_cache": 3}
    ),
    "lfm2-moe": decoder(
        "Lfm2Moe", EXPERTS,
        {"layer_types": ["conv", "full_attention", "conv", "full_attention"],
         "num_dense_layers": 1},
    ),
    "nemotron-h": decoder(
        "NemotronH", HEAD,
        {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "mamba_num_heads": 4,
         "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8, "conv_kernel": 3,
         "chunk_size": 8, "n_routed_experts": 4, "moe_intermediate_size": 16,
         "moe_shared_expert_intermediate_size": 16},
        stack="backbone.layers", memory="model.layers",
    ),
    "zamba2": decoder(
        "Zamba2", {"mamba_d_state": 8, "mamba_d_conv": 3, "mamba_expand": 2, "mamba_ngroups": 1,
                   "n_mamba_heads": 2, "num_mem_blocks": 1, "chunk_size": 8,
                   "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
                   "num_key_value_heads": 2, "attention_head_dim": 16, "adapter_rank": 4},
    ),
    "recurrent-gemma": decoder(
        "RecurrentGemma", {"attention_window_size": 4, "lru_width": 16, "head_dim": 8,
                           "block_types": ["recurrent", "attention"]},
    ),
}  # fmt: skip
