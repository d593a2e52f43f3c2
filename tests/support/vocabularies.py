"""Small real tokenizers, made by the tokenizers library, and small models that go with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "a merge of models is a function of their tensors",
    "tokens have rows, and rows have places; naïve façade 東京 🦊",
]
OTHER_TEXT = ["quartz glyphs vex jumbo wizards", "zebras graze lazily in the hazy maze"]
KINDS = ("bytes", "unigram", "wordpiece", "words", "pieces")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def make_tokenizer(kind: str, text: Sequence[str] = TEXT, size: int = 300) -> Tokenizer:
    """Return a tokenizer trained on a few lines.

    `bytes` is a byte-level BPE, `pieces` a BPE over sentencepiece-like words.
    """
    special = list(SPECIAL.values())
    trainer: Any
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>"
        )
    elif kind == "pieces":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special)
    tokenizer.train_from_iterator([*text] * 3, trainer)
    ids = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=ids
    )
    return tokenizer


def save_tokenizer(
    folder: Path, tokenizer: Tokenizer, *, chat_template: str | None = None, **config: Any
) -> None:
    """Write a tokenizer's files as transformers does."""
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**SPECIAL, **config})
    if chat_template is not None:
        wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)


LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip


def write_llama(
    folder: Path,
    rows: int,
    *,
    seed: int = 0,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """Write a small llama without a tokenizer, and return its tensors."""
    from support.models import write_model

    generator = torch.Generator().manual_seed(seed)
    hidden, inner = LLAMA["hidden_size"], LLAMA["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, hidden),
        "model.norm.weight": (hidden,),
    }
    if not tied:
        shapes["lm_head.weight"] = (rows, hidden)
    for name, shape in {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden),
        "self_attn.v_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }.items():  # fmt: skip
        shapes[f"model.layers.0.{name}.weight"] = shape
    tensors = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }
    full = {**LLAMA, "vocab_size": rows, "tie_word_embeddings": tied, **config}
    write_model(folder, tensors, config=full)
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content
