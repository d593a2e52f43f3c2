"""Runs inside mergekit's environment: adapters made and merged by peft, and by mergekit.

    python peft_worker.py FOLDER

For each case `FOLDER/case/base` and `FOLDER/case/adapter` are written, `merged` is what peft's
`merge_and_unload` gives, and `logits.safetensors` what the model with the adapter beside it
answers. Every `FOLDER/*.yaml` is then merged by mergekit into a folder of its name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import save_file

WORDS = (torch.arange(24).reshape(2, 12) * 7) % 40
PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
LINEAR = ["q_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": LINEAR}),
    "lora-float32": ("llama-float32", {"target_modules": [*LINEAR, "k_proj"], "r": 7}),
    "rslora": ("llama", {"target_modules": LINEAR, "use_rslora": True, "r": 6}),
    "dora": ("llama", {"target_modules": LINEAR, "use_dora": True}),
    "dora-float32": ("llama-float32", {"target_modules": LINEAR, "use_dora": True}),
    "dora-rslora": (
        "llama-float32", {"target_modules": LINEAR, "use_dora": True, "use_rslora": True}),
    "embedding": ("llama-float32", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding-bfloat16": ("llama", {"target_modules": ["embed_tokens"]}),
    "embedding-dora": ("llama-float32", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "head": ("llama", {"target_modules": ["lm_head"]}),
    "some-layers": ("llama", {"target_modules": LINEAR, "layers_to_transform": [1]}),
    "patterns": (
        "llama-float32",
        {"target_modules": [*LINEAR, "k_proj"], "use_rslora": True,
         "rank_pattern": {"down_proj": 2, "layers.0.self_attn.q_proj": 3, ".*k_proj": 5},
         "alpha_pattern": {".*1.mlp.*": 5, "down_proj": 7, "^model.layers.0.*": 3}}),
    "modules-to-save": (
        "llama", {"target_modules": LINEAR, "modules_to_save": ["lm_head", "input_layernorm"]}),
    "biases": ("llama", {"target_modules": LINEAR, "bias": "all"}),
    "lora-biases": ("llama", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "own-bias": ("llama", {"target_modules": ["q_proj"], "lora_bias": True}),
    "mica": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "mica", "r": 2}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "conv1d-dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "conv1d-rslora-head": ("gpt2", {"target_modules": ["c_proj"], "use_rslora": True}),
    "convolution": ("vit", {"target_modules": ["projection", "query", "q_proj"]}),
    "tied-head": ("llama-tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied-save": (
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
}  # fmt: skip


def new_model(kind: str) -> Any:
    """Return a small model with random weights."""
    torch.manual_seed(3)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).eval()
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            image_size=8, patch_size=4,
        )  # fmt: skip
        return transformers.ViTForImageClassification(config).eval()
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=40, attention_bias=True,
        tie_word_embeddings=kind.endswith("tied"),
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model if kind.endswith("float32") else model.to(torch.bfloat16)


def train(model: Any) -> None:
    """Change all that an adapter trains, as training would."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * noise)
            elif parameter.requires_grad:
                parameter.add_((0.1 * noise).to(parameter.dtype))


def answer(model: Any) -> torch.Tensor:
    """Return a model's output for a fixed input, computed in float32."""
    words = (
        {"pixel_values": PIXELS} if hasattr(model.config, "patch_size") else {"input_ids": WORDS}
    )
    with torch.no_grad():
        logits: torch.Tensor = model.float()(**words).logits
    return logits.contiguous()


def make(folder: Path, kind: str, options: dict[str, Any]) -> None:
    """Write one case."""
    base = new_model(kind)
    base.save_pretrained(folder / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "lora_alpha": 9, **options}))
    train(adapted)
    adapted.save_pretrained(folder / "adapter")

    def loaded() -> Any:
        model = type(base).from_pretrained(folder / "base").eval()
        return peft.PeftModel.from_pretrained(model, folder / "adapter")

    loaded().merge_and_unload().save_pretrained(folder / "merged")
    save_file({"logits": answer(loaded())}, folder / "logits.safetensors")


def main(folder: Path) -> None:
    """Write every case, and let mergekit merge every recipe."""
    for name, (kind, options) in CASES.items():
        make(folder / name, kind, options)
    for recipe in sorted(folder.glob("*.yaml")):
        arguments = [str(recipe), str(recipe.with_suffix("")), "--quiet", "--no-copy-tokenizer"]
        arguments += ["--lora-merge-cache", str(folder / "cache")]
        mergekit_yaml.main(arguments, standalone_mode=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
