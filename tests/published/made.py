"""Checkpoints for a recipe: every model that it names, where its name points, with tiny weights.

Everything is written by hand: weights, config, tokenizer, adapters in the folders that peft writes.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from published.header import Published
from published.shapes import VOCABULARY, Size

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(16))]
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
RANK = 2
NESTED = {"merge_method", "models", "slices", "modules", "take", "recipe"}


def models_of(document: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield every model that a document names, and the adapter added to it, or None."""
    parts = [document.get("base_model"), document.get("tokenizer_source")]
    tokenizer = document.get("tokenizer") or {}
    parts.append(tokenizer.get("source"))
    for token in (tokenizer.get("tokens") or {}).values():
        source = (token or {}).get("source")
        parts.append(source.get("model") if isinstance(source, dict) else source)
    modules = (document.get("modules") or {}).values()
    for part in (document, *modules):
        parts += [item["model"] if isinstance(item, dict) and "model" in item else item
                  for item in part.get("models") or []]  # fmt: skip
        for piece in part.get("slices") or []:
            parts.append(piece.get("base_model"))
            parts += [source["model"] for source in piece["sources"]]
    for part in parts:
        if part is not None and part not in ("union", "base"):
            yield from _models_in(part)
    for inner in (document.get("definitions") or {}).values():
        yield from models_of(inner)


def _models_in(part: str | Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    if isinstance(part, str):
        model, _, adapter = part.removeprefix("model:").partition("+")
        yield model, adapter or None
    elif NESTED & part.keys():
        yield from models_of(part)
    else:
        adapter = part.get("lora")
        yield _path(part["model"]), None if adapter is None else _path(adapter)


def _path(part: str | Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    return part["path"] + (f"@{part['revision']}" if "revision" in part else "")


def make(recipe: Published, folder: Path, *, exact: bool = False) -> Path:
    """Write a recipe and every model that it names, and return the recipe's path.

    Args:
        recipe: The recipe.
        folder: Where the recipe lies, and where names of models start from.
        exact: Whether weights are float32, and the recipe asks for no other format.
    """
    made = {document["name"] for document in recipe.documents if "name" in document}
    for document in recipe.documents:
        made |= set(document.get("definitions") or {})
        for model, adapter in models_of(document):
            if model in made:
                continue
            _write_model(recipe, folder, model, exact=exact)
            if adapter is not None:
                _write_adapter(recipe, folder / adapter)
    path = folder / "recipe.yaml"
    text = recipe.text
    if exact:
        text = re.sub(r"(\bdtype\"?: *)\"?b?float\d+\"?", r'\1"float32"', text)
        text = re.sub(r"(\bout_dtype\"?: *)\"?b?float\d+\"?", r'\1"float32"', text)
    path.write_text(text)
    return path


def _write_model(recipe: Published, folder: Path, model: str, *, exact: bool) -> None:
    target = folder / model
    if target.exists():
        return
    target.mkdir(parents=True)
    words = [*WORDS, *recipe.vocabulary.get(model, ())]
    names = recipe.shape.names(recipe.depth)
    sizes = {name: _size(size, len(words)) for name, size in names.items()}
    weights = "diffusion_pytorch_model" if "_class_name" in recipe.shape.config else "model"
    (target / f"{weights}.safetensors").write_bytes(_safetensors(sizes, model, exact=exact))
    config = json.loads(json.dumps(recipe.shape.config))
    for stack, count in recipe.depth.items():
        part = config
        *inside, key = recipe.shape.stacks[stack].count or ("",)
        for step in inside:
            part = part[step]
        if key:
            part[key] = count
    if "_class_name" not in config:
        config |= {"vocab_size": len(words), "torch_dtype": "float32" if exact else "bfloat16"}
        _write_tokenizer(target, words)
    (target / "config.json").write_text(json.dumps(config))


def _size(size: Size, rows: int) -> tuple[int, ...]:
    return tuple(rows if part == VOCABULARY else int(part) for part in size)


def _safetensors(sizes: Mapping[str, tuple[int, ...]], model: str, *, exact: bool) -> bytes:
    """Return a weight file: what all models have in common, and a small part of the model's own."""
    total = sum(math.prod(size) for size in sizes.values())
    common, own = (
        np.random.default_rng(seed).standard_normal(total, np.float32)
        for seed in (0, zlib.crc32(model.encode()))
    )
    values = common * np.float32(0.5) + own * np.float32(0.05)
    raw = values.tobytes() if exact else (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    width, dtype = (4, "F32") if exact else (2, "BF16")
    entries, offset = {}, 0
    for name, size in sizes.items():
        end = offset + math.prod(size) * width
        entries[name] = {"dtype": dtype, "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw


def _write_tokenizer(folder: Path, words: list[str]) -> None:
    special = [(index, word) for index, word in enumerate(words) if word.startswith("<")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": index, "content": word, "special": True, **flags} for index, word in special
        ],
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)},
                  "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "<pad>", "unk_token": "<unk>", "chat_template": TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_adapter(recipe: Published, folder: Path) -> None:
    """Write a LoRA adapter of the query and value projections."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    every = recipe.shape.names(recipe.depth)
    sizes: dict[str, tuple[int, ...]] = {}
    for name, size in every.items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            rows, columns = _size(size, 0)
            start = f"base_model.model.{name.removesuffix('.weight')}"
            sizes[f"{start}.lora_A.weight"] = (RANK, columns)
            sizes[f"{start}.lora_B.weight"] = (rows, RANK)
    content = _safetensors(sizes, folder.name, exact=True)
    (folder / "adapter_model.safetensors").write_bytes(content)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 4, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "inference_mode": True, "lora_dropout": 0.0,
        "base_model_name_or_path": "base", "fan_in_fan_out": False, "modules_to_save": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
