"""Making small models of a family, running them, and looking at their layers.

Models are made once a session; nothing may be written into their folders.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from support.families import FAMILIES, IMAGE_TOKEN, VOCABULARY, Family

_folder = Path(tempfile.mkdtemp(prefix="mergeconf-test-families-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)

LENGTH = 12
"""Tokens of the input, more than any window of the families."""


def new_model(name: str, variant: int) -> Any:
    """Return a model with random weights, others for each variant.

    Norms and biases, which start at one and zero, are made random too: what gets lost shows.
    """
    import transformers

    family = FAMILIES[name]
    torch.manual_seed(1)
    config = getattr(transformers, family.config)(**family.settings)
    model = getattr(transformers, family.model)(config).eval()
    generator = torch.Generator().manual_seed(variant)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.to(getattr(torch, family.dtype))


@cache
def made(name: str, variant: int, *, lean: bool = False) -> Path:
    """Return the folder of a small model.

    Args:
        name: of its family.
        variant: models of other variants have other weights.
        lean: its config says no more than the family's settings, as most of the Hub's do; what
            follows from them (a kind for each layer) is left to transformers.
    """
    folder = _folder / f"{name}-{variant}-{lean}"
    with _quiet():
        new_model(name, variant).save_pretrained(folder)
    if lean:
        path = folder / "config.json"
        path.write_text(json.dumps(_lean(json.loads(path.read_text()), FAMILIES[name].settings)))
    return folder


def _lean(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {**settings}
    kept |= {key: config[key] for key in ("model_type", "architectures", "dtype") if key in config}
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            kept[key] = _lean(config[key], value)
    return {key: value for key, value in kept.items() if value is not None}


def load(name: str, folder: Path) -> Any:
    """Load a model; fail where a weight is missing, left over or of another shape, and where
    transformers has a word to say."""
    import transformers

    loader = getattr(transformers, FAMILIES[name].model)
    with _quiet() as said:
        model, found = loader.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    assert not [text for text in said if "not tie" in text or "nitialized" in text], said
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep what transformers logs from standard error, and return it; compute in one thread, as
    more only wait for each other over tensors this small."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logger = logging.getLogger("transformers")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    handlers, logger.handlers = logger.handlers, [handler]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield said
    finally:
        logger.handlers = handlers
        torch.set_num_threads(threads)


def run(name: str, model: Any) -> list[torch.Tensor]:
    """Return all tensors that a model gives for a fixed input, none of which may be infinite."""
    with torch.no_grad(), _quiet():
        output = model(**inputs_of(FAMILIES[name], model))
    found = [value for value in output.to_tuple() if isinstance(value, torch.Tensor)]
    assert found
    assert all(value.isfinite().all() for value in found)
    return found


def write_on(name: str, model: Any) -> None:
    """Let a model that can write tokens write some, with its cache."""
    arguments = inputs_of(FAMILIES[name], model)
    arguments.pop("decoder_input_ids", None)
    if not model.can_generate() or "image_grid_thw" in arguments:
        return
    with torch.no_grad(), _quiet():
        words = model.generate(**arguments, max_new_tokens=3, do_sample=False)
    assert words.shape[0] == 2


def inputs_of(family: Family, model: Any) -> dict[str, torch.Tensor]:
    """Return a model's arguments."""
    words = (torch.arange(2 * LENGTH).reshape(2, LENGTH) * 7) % (VOCABULARY - 12) + 3
    generator = torch.Generator().manual_seed(9)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(getattr(torch, family.dtype))

    inputs: dict[str, torch.Tensor] = {}
    if family.inputs.startswith("words"):
        inputs["input_ids"] = words
    if family.inputs.endswith(">words"):
        inputs["decoder_input_ids"] = words
    if family.inputs == "wave":
        inputs["input_values"] = some(2, 640)
    if family.inputs.startswith("sound"):
        inputs["input_features"] = some(2, 8, 32)
    if family.inputs.endswith("image"):
        inputs["pixel_values"] = some(2, 3, 16, 16)
    if family.inputs.endswith("grid"):
        inputs["pixel_values"] = some(32, 3 * 2 * 4 * 4)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
    if family.inputs.startswith("words+") and hasattr(model.config, "text_config"):
        inputs["input_ids"] = words.clone()
        if not family.model.startswith(("CLIP", "Siglip")):
            inputs["input_ids"][:, 2:6] = IMAGE_TOKEN
        if family.inputs.endswith("grid"):
            inputs["input_ids"][:, 1] = 42
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
    return inputs


def layers_of(name: str, model: Any) -> list[Any]:
    """Return the layers of the stack that is made deeper."""
    family = FAMILIES[name]
    return list(model.get_submodule(family.memory or family.stack))


NUMBERS = {"layer_idx", "layer_id", "layer_index", "block_idx", "layer_number", "num_hidden_layers",
           "attention_layers"}  # fmt: skip
"""Attributes that say which layer it is or how many there are, and so differ between copies."""


def traits(layer: Any) -> dict[str, Any]:
    """Return all that a layer's code may branch on: the plain attributes of all its parts."""
    found: dict[str, Any] = {}
    for path, part in layer.named_modules():
        found[path] = type(part).__name__
        for key, value in vars(part).items():
            if key not in NUMBERS and isinstance(value, (bool, int, float, str, type(None), list)):
                found[f"{path}:{key}"] = value
    return found
