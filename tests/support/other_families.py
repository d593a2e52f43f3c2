"""Families of encoders, of encoders with decoders, and of models that see or hear."""

from __future__ import annotations

from support.family import (
    BART,
    ENCODER,
    HEAD,
    IMAGE_TOKEN,
    LAYERS,
    T5,
    TEXT,
    TOWER,
    VOCABULARY,
    WINDOW,
    Family,
)

ENCODERS = {
    "bert": Family("BertConfig", "BertModel", ENCODER, stack="encoder.layer", dtype="float32"),
    "bert-mlm": Family(
        "BertConfig", "BertForMaskedLM", ENCODER, stack="bert.encoder.layer", dtype="float32"
    ),
    "bert-classifier": Family(
        "BertConfig", "BertForSequenceClassification", {**ENCODER, "num_labels": 3},
        stack="bert.encoder.layer",
    ),
    "distilbert": Family(
        "DistilBertConfig", "DistilBertForMaskedLM",
        {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": LAYERS, "n_heads": 2,
         "max_position_embeddings": 64, "pad_token_id": 0},
        stack="distilbert.transformer.layer", dtype="float32",
    ),
    "roberta": Family(
        "RobertaConfig", "RobertaForMaskedLM", ENCODER, stack="roberta.encoder.layer"
    ),
    "xlm-roberta": Family(
        "XLMRobertaConfig", "XLMRobertaModel", ENCODER, stack="encoder.layer"
    ),
    "modernbert": Family(
        "ModernBertConfig", "ModernBertForMaskedLM",
        {**ENCODER, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 1,
         "sep_token_id": 2, "attn_implementation": "eager"},
        stack="model.layers",
    ),
    "electra": Family(
        "ElectraConfig", "ElectraForMaskedLM", {**ENCODER, "embedding_size": 16},
        stack="electra.encoder.layer",
    ),
    "deberta-v2": Family(
        "DebertaV2Config", "DebertaV2ForMaskedLM",
        {**ENCODER, "relative_attention": True, "position_buckets": 4,
         "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "share_att_key": True},
        stack="deberta.encoder.layer",
    ),
    "mpnet": Family("MPNetConfig", "MPNetForMaskedLM", ENCODER, stack="mpnet.encoder.layer"),
    "nomic-bert": Family(
        "NomicBertConfig", "NomicBertForMaskedLM", ENCODER, stack="nomic_bert.encoder.layers",
        memory="nomic_bert.layers",
    ),
    "eurobert": Family(
        "EuroBertConfig", "EuroBertForMaskedLM", TEXT, stack="model.layers"
    ),
    "albert": Family("AlbertConfig", "AlbertForMaskedLM", {**ENCODER, "embedding_size": 16}),
    "esm": Family(
        "EsmConfig", "EsmForMaskedLM",
        {**ENCODER, "mask_token_id": 3, "position_embedding_type": "rotary"},
        stack="esm.encoder.layer",
    ),
    "vit": Family(
        "ViTConfig", "ViTForImageClassification", {**TOWER, "num_labels": 3},
        stack="vit.encoder.layer", memory="vit.layers", inputs="image", order=((0, 2), (1, 3)),
        dtype="float32",
    ),
    "dinov2": Family(
        "Dinov2Config", "Dinov2Model", {**TOWER, "mlp_ratio": 2}, stack="encoder.layer",
        inputs="image", order=((0, 2), (1, 3)),
    ),
    "siglip": Family(
        "SiglipConfig", "SiglipModel",
        {"text_config": {**ENCODER, "projection_size": 16}, "vision_config": TOWER},
        stack="text_model.encoder.layers", module="text_model", inputs="words+image",
    ),
    "clip": Family(
        "CLIPConfig", "CLIPModel",
        {"text_config": ENCODER, "vision_config": TOWER, "projection_dim": 8},
        stack="text_model.encoder.layers", module="text_model", inputs="words+image",
        dtype="float32",
    ),
    "wav2vec2": Family(
        "Wav2Vec2Config", "Wav2Vec2ForCTC",
        {**ENCODER, "conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [8, 4],
         "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
         "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0},
        stack="wav2vec2.encoder.layers", inputs="wave", dtype="float32",
    ),
    "resnet": Family(
        "ResNetConfig", "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        inputs="image", dtype="float32",
    ),
}  # fmt: skip

ENCODER_DECODERS = {
    "t5": Family(
        "T5Config", "T5ForConditionalGeneration", {**T5, "tie_word_embeddings": True},
        stack="encoder.block", module="encoder", order=((0, 2), (1, 3)), inputs="words>words",
        dtype="float32",
    ),
    "t5-untied": Family(
        "T5Config", "T5ForConditionalGeneration",
        {**T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        stack="decoder.block", module="decoder", order=((0, 2), (1, 2)), inputs="words>words",
    ),
    "t5-encoder": Family(
        "T5Config", "T5EncoderModel", T5, stack="encoder.block", order=((0, 2), (1, 3)),
    ),
    "mt5": Family(
        "MT5Config", "MT5ForConditionalGeneration", T5, stack="decoder.block", module="decoder",
        order=((0, 2), (1, 2)), inputs="words>words",
    ),
    "bart": Family(
        "BartConfig", "BartForConditionalGeneration", BART, stack="model.encoder.layers",
        module="encoder", order=((0, 2), (1, 3)), inputs="words>words", dtype="float32",
    ),
    "mbart": Family(
        "MBartConfig", "MBartForConditionalGeneration", BART, stack="model.decoder.layers",
        module="decoder", order=((0, 2), (1, 2)), inputs="words>words",
    ),
    "marian": Family(
        "MarianConfig", "MarianMTModel", BART, stack="model.decoder.layers", module="decoder",
        order=((0, 2), (1, 2)), inputs="words>words",
    ),
    "m2m100": Family(
        "M2M100Config", "M2M100ForConditionalGeneration", BART, stack="model.encoder.layers",
        module="encoder", order=((0, 2), (1, 3)), inputs="words>words",
    ),
    "pegasus": Family(
        "PegasusConfig", "PegasusForConditionalGeneration", BART, stack="model.encoder.layers",
        module="encoder", order=((0, 2), (1, 3)), inputs="words>words",
    ),
    "whisper": Family(
        "WhisperConfig", "WhisperForConditionalGeneration",
        {**BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32,
         "begin_suppress_tokens": [1, 2]},
        stack="model.decoder.layers", module="decoder", order=((0, 2), (1, 2)),
        inputs="sound>words", dtype="float32",
    ),
    "switch": Family(
        "SwitchTransformersConfig", "SwitchTransformersForConditionalGeneration",
        {**T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
         "expert_capacity": 8},
        inputs="words>words", dtype="float32",
    ),
    "t5gemma": Family(
        "T5GemmaConfig", "T5GemmaForConditionalGeneration",
        {"encoder": {**TEXT, **HEAD, **WINDOW}, "decoder": {**TEXT, **HEAD, **WINDOW},
         "vocab_size": VOCABULARY},
        stack="model.encoder.layers", module="encoder", inputs="words>words",
    ),
}  # fmt: skip

_M_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_QWEN_TOWER = {
    "depth": 3, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "in_channels": 3, "intermediate_size": 24, "out_hidden_size": 16,
}  # fmt: skip
_QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN, "video_token_id": 41, "vision_start_token_id": 42,
    "vision_end_token_id": 43,
}  # fmt: skip

VISION_LANGUAGE = {
    "llava": Family(
        "LlavaConfig", "LlavaForConditionalGeneration",
        {"text_config": {"model_type": "llama", **TEXT},
         "vision_config": {"model_type": "clip_vision_model", **TOWER},
         "image_token_index": IMAGE_TOKEN, "vision_feature_layer": -1},
        stack="language_model.model.layers", module="text_decoder", inputs="words+image",
        memory="model.language_model.layers",
    ),
    "qwen2-vl": Family(
        "Qwen2VLConfig", "Qwen2VLForConditionalGeneration",
        {"text_config": {**TEXT, "rope_parameters": _M_ROPE},
         "vision_config": {"depth": 3, "embed_dim": 16, "hidden_size": 16, "num_heads": 2,
                           "mlp_ratio": 2, "patch_size": 4, "spatial_merge_size": 2,
                           "temporal_patch_size": 2},
         **_QWEN_TOKENS},
        stack="model.layers", module="text_decoder", inputs="words+grid",
        memory="model.language_model.layers",
    ),
    "qwen2_5-vl": Family(
        "Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration",
        {"text_config": {**TEXT, "rope_parameters": _M_ROPE, "tie_word_embeddings": True},
         "vision_config": {**_QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1]},
         "tie_word_embeddings": True, **_QWEN_TOKENS},
        stack="model.layers", module="text_decoder", inputs="words+grid",
        memory="model.language_model.layers",
    ),
    "qwen3-vl": Family(
        "Qwen3VLConfig", "Qwen3VLForConditionalGeneration",
        {"text_config": {**TEXT, **HEAD, "rope_parameters": _M_ROPE},
         "vision_config": {**_QWEN_TOWER, "deepstack_visual_indexes": [0, 1],
                           "num_position_embeddings": 16},
         **_QWEN_TOKENS},
        stack="model.language_model.layers", module="text_decoder", inputs="words+grid",
    ),
    "gemma3-vl": Family(
        "Gemma3Config", "Gemma3ForConditionalGeneration",
        {"text_config": {**TEXT, **HEAD, **WINDOW, "sliding_window_pattern": 2},
         "vision_config": TOWER, "mm_tokens_per_image": 4, "image_token_index": IMAGE_TOKEN,
         "boi_token_index": 41, "eoi_token_index": 42},
        stack="language_model.model.layers", module="text_decoder", inputs="words+image",
        memory="model.language_model.layers",
    ),
    "paligemma": Family(
        "PaliGemmaConfig", "PaliGemmaForConditionalGeneration",
        {"text_config": {"model_type": "gemma", **TEXT, **HEAD},
         "vision_config": {"model_type": "siglip_vision_model", **TOWER},
         "image_token_index": IMAGE_TOKEN, "projection_dim": 16},
        stack="language_model.model.layers", module="text_decoder", inputs="words+image",
        memory="model.language_model.layers",
    ),
    "internvl": Family(
        "InternVLConfig", "InternVLForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **TEXT},
         "vision_config": {**TOWER, "image_size": [16, 16], "patch_size": [4, 4]},
         "image_token_id": IMAGE_TOKEN, "downsample_ratio": 0.5},
        stack="language_model.model.layers", module="text_decoder", inputs="words+image",
        memory="model.language_model.layers",
    ),
    "idefics3": Family(
        "Idefics3Config", "Idefics3ForConditionalGeneration",
        {"text_config": {"model_type": "llama", **TEXT},
         "vision_config": {**TOWER, "patch_size": 4}, "image_token_id": IMAGE_TOKEN,
         "scale_factor": 2},
        stack="model.text_model.layers", module="text_model", inputs="words",
    ),
    "mistral3": Family(
        "Mistral3Config", "Mistral3ForConditionalGeneration",
        {"text_config": {"model_type": "mistral", **TEXT},
         "vision_config": {"model_type": "pixtral", **TOWER, "patch_size": 4},
         "image_token_index": IMAGE_TOKEN, "spatial_merge_size": 2},
        stack="language_model.model.layers", module="text_decoder", inputs="words",
        memory="model.language_model.layers",
    ),
    "blip-2": Family(
        "Blip2Config", "Blip2ForConditionalGeneration",
        {"text_config": {"model_type": "opt", **ENCODER, "ffn_dim": 24, "word_embed_proj_dim": 16},
         "vision_config": TOWER, "num_query_tokens": 4, "image_token_index": IMAGE_TOKEN,
         "qformer_config": {**ENCODER, "encoder_hidden_size": 16, "cross_attention_frequency": 2}},
        stack="language_model.model.decoder.layers", module="text_decoder", inputs="words+image",
        memory="language_model.model.decoder.layers",
    ),
    "mllama": Family(
        "MllamaConfig", "MllamaForConditionalGeneration",
        {"text_config": {**TEXT, "cross_attention_layers": [1]},
         "vision_config": {**TOWER, "num_global_layers": 1, "attention_heads": 2,
                           "vision_output_dim": 48, "intermediate_layers_indices": [0, 1],
                           "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]},
         "image_token_index": IMAGE_TOKEN},
        stack="language_model.model.layers", module="text_decoder", inputs="words",
        memory="model.language_model.layers",
    ),
    "qwen2-audio": Family(
        "Qwen2AudioConfig", "Qwen2AudioForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **TEXT},
         "audio_config": {"num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 2,
                          "encoder_ffn_dim": 24, "d_model": 16, "max_source_positions": 16},
         "audio_token_index": IMAGE_TOKEN},
        stack="language_model.model.layers", module="text_decoder", inputs="words",
        memory="model.language_model.layers",
    ),
    "gemma3n": Family(
        "Gemma3nTextConfig", "Gemma3nForCausalLM",
        {**TEXT, **HEAD, **WINDOW, "vocab_size_per_layer_input": VOCABULARY,
         "hidden_size_per_layer_input": 4, "altup_num_inputs": 2, "num_kv_shared_layers": 0,
         "laurel_rank": 4, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
        stack="model.layers",
    ),
    "gemma4": Family(
        "Gemma4TextConfig", "Gemma4ForCausalLM",
        {**TEXT, **HEAD, **WINDOW, "vocab_size_per_layer_input": VOCABULARY,
         "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0, "global_head_dim": 8},
        stack="model.layers",
    ),
}  # fmt: skip
