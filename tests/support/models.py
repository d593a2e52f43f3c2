"""Small real models, made by transformers without a network, and models written by hand.

Models of transformers are made once a session: `made("llama", 1)` is the second fine-tune of the
first llama, always in the same folder. Nothing may be written there.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VOCABULARY = 48
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
KINDS = (
    "llama", "llama-tied", "gpt2", "bert", "qwen3", "qwen3-tied", "mixtral", "t5",
)  # fmt: skip
CAUSAL = ("llama", "llama-tied", "gpt2", "qwen3", "qwen3-tied", "mixtral")

_folder = Path(tempfile.mkdtemp(prefix="mergeconf-test-models-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)

# --- by hand ----------------------------------------------------------------------------------


def write_model(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, Any] | None = None,
    shards: int = 1,
    order: Sequence[str] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Write a model: one weight file, or shards with an index.

    Args:
        folder: where to; made if it is missing.
        tensors: by name.
        config: content of config.json; none is written if left out.
        shards: number of weight files.
        order: names in the order in which they are dealt out to the shards, one by one.
        files: small files, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = list(order or tensors)
    assert sorted(names) == sorted(tensors)
    whole = {name: tensors[name].contiguous() for name in names}
    if shards == 1:
        save_file(whole, folder / "model.safetensors", {"format": "pt"})
    else:
        where = {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: whole[name] for name in names[number::shards]}
            save_file(part, folder / file, {"format": "pt"})
            where |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def read_model(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a model's weight files, read by the safetensors library."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        part = load_file(path)
        assert not tensors.keys() & part.keys()
        tensors |= part
    return tensors


def llama_like(
    seed: int = 0,
    *,
    layers: int = 3,
    rows: int = 6,
    vocab: int = 10,
    dtype: torch.dtype = torch.float32,
    head: bool = True,
) -> dict[str, torch.Tensor]:
    """Return tensors with names as Llama's, of few elements: whole numbers over 64, so that sums
    and means of a few of them are exact in every format."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return (torch.randint(-32, 33, shape, generator=generator) / 64).to(dtype)

    tensors = {"model.embed_tokens.weight": some(vocab, rows)}
    for layer in range(layers):
        start = f"model.layers.{layer}"
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            tensors[f"{start}.{module}.weight"] = some(rows, rows)
        tensors[f"{start}.input_layernorm.weight"] = some(rows)
    tensors["model.norm.weight"] = some(rows)
    if head:
        tensors["lm_head.weight"] = some(vocab, rows)
    return tensors


# --- by transformers --------------------------------------------------------------------------


@cache
def made(kind: str, variant: int = 0, *, tokenizer: bool = False) -> Path:
    """Return the folder of a small model: `variant` 0 is the base, others its fine-tunes."""
    model = new_model(kind, variant)
    folder = _folder / f"{kind}-{variant}-{tokenizer}"
    model.save_pretrained(folder)
    if tokenizer:
        _tokenizer().save_pretrained(folder)
        model.generation_config.max_new_tokens = 7 + variant
        model.generation_config.save_pretrained(folder)
    return folder


def new_model(kind: str, variant: int = 0) -> Any:
    """Return a model with random weights; each variant differs from the base in half of them."""
    torch.manual_seed(1)
    model = _model_class(kind)(_config(kind)).eval()
    generator = torch.Generator().manual_seed(variant)
    with torch.no_grad():
        for parameter in model.parameters():  # a tied weight comes once
            coin = torch.rand(parameter.shape, generator=generator) < 0.5
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            if variant:
                parameter.add_(noise * coin)
    return model


def logits(model: Any) -> torch.Tensor:
    """Return a model's output for a fixed input."""
    words = (torch.arange(24).reshape(2, 12) * 7) % VOCABULARY
    more = {"decoder_input_ids": words} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=words, **more).logits


def load_exactly(folder: Path) -> Any:
    """Load a model with the class its config names; fail on any missing or unexpected key."""
    import transformers

    config = json.loads((folder / "config.json").read_text())
    loader = getattr(transformers, config["architectures"][0])
    model, info = loader.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return model.eval()


def _model_class(kind: str) -> Any:
    import transformers

    return {
        "llama": transformers.LlamaForCausalLM,
        "gpt2": transformers.GPT2LMHeadModel,
        "bert": transformers.BertForMaskedLM,
        "qwen3": transformers.Qwen3ForCausalLM,
        "mixtral": transformers.MixtralForCausalLM,
        "t5": transformers.T5ForConditionalGeneration,
    }[kind.partition("-")[0]]


def _config(kind: str) -> Any:
    import transformers

    name, _, ending = kind.partition("-")
    tied = ending == "tied"
    common = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    match name:
        case "llama":
            return transformers.LlamaConfig(
                **common, num_key_value_heads=1, tie_word_embeddings=tied
            )
        case "qwen3":
            return transformers.Qwen3Config(
                **common, num_key_value_heads=1, head_dim=8, tie_word_embeddings=tied
            )
        case "mixtral":
            return transformers.MixtralConfig(
                **common, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1
            )
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2,
                bos_token_id=1, eos_token_id=2,
            )  # fmt: skip
        case "bert":
            return transformers.BertConfig(**common)
        case "t5":
            return transformers.T5Config(
                vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                decoder_start_token_id=0, tie_word_embeddings=True,
            )  # fmt: skip
    raise AssertionError(kind)


def _tokenizer() -> Any:
    import tokenizers
    import transformers

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(VOCABULARY - 4))]
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")  # type: ignore[call-arg]
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer
