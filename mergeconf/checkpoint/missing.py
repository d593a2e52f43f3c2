"""What is there instead of a model, and what can be done about it? Only words: opens no file."""

from __future__ import annotations

import difflib
from pathlib import Path

from mergeconf.errors import Problem, listed

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that torch.save writes."""
NO_WEIGHTS = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
)
"""Such files that a training leaves beside the weights."""
_OTHERS = {
    ".gguf": "GGUF", ".ggml": "GGML", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX",
    ".npz": "numpy",
}  # fmt: skip
_CONVERT = (
    "convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) writes "
    "safetensors"
)
_ORIGINAL = "download the model's original safetensors files; they lose nothing"


def explain_missing(path: Path) -> Problem:
    """Return what to say of a path that does not exist."""
    parent = path.parent
    if path.is_symlink():
        return _problem(path, "is a link to a file or folder that does not exist")
    if parent.is_file():
        return _problem(path, f"does not exist: {parent} is a file")
    if not parent.is_dir():
        return _problem(path, f"does not exist, and neither does {parent}")
    siblings = sorted(
        sibling.name
        for sibling in parent.iterdir()
        if not sibling.name.startswith(".")
        and (sibling.is_dir() or sibling.suffix in (".safetensors", *PICKLES))
        and sibling.name not in NO_WEIGHTS
    )
    close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    if close:
        return _problem(path, "does not exist", f"did you mean '{parent / close[0]}'?")
    there = f"{parent} holds {listed(siblings)}" if siblings else ""
    return _problem(path, "does not exist", there)


def explain_file(path: Path) -> Problem:
    """Return what to say of a file that is neither safetensors nor of torch.save."""
    if path.suffix in (".pkl", ".pickle"):
        fact = "is a pickle of Python objects, which is not read"
        return _problem(path, fact, _CONVERT.replace("them", "it"))
    if path.suffix in _OTHERS:
        return _problem(path, f"is a {_OTHERS[path.suffix]} file, which is not read", _ORIGINAL)
    return _problem(
        path, "is no weight file", "name a model's folder, or its .safetensors or .bin file"
    )


def explain_folder(folder: Path, adapter: bool) -> Problem:
    """Return what to say of a folder without a model in it that would be read."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return _problem(folder, "is empty")
    if adapter or "adapter_config.json" in names or "adapter_model.bin" in names:
        return _problem(
            folder,
            "holds an adapter (LoRA) and no model",
            f"write it after its model: 'model+{folder.name}'",
        )
    if pickles := [
        name for name in names if Path(name).suffix in PICKLES and name not in NO_WEIGHTS
    ]:
        fact = (
            "holds neither safetensors nor a pytorch_model.bin, but pickles of other names: "
            f"{listed(pickles, most=4)}"
        )
        return _problem(folder, fact, "if one of them is the model, name that file")
    for suffix, kind in _OTHERS.items():
        if files := [name for name in names if name.endswith(suffix)]:
            fact = f"holds {kind} files and no safetensors: {listed(files, most=4)}"
            return _problem(folder, fact, _ORIGINAL)
    parts = sorted(path.parent.name for path in folder.glob("*/*.safetensors"))
    parts = list(dict.fromkeys(parts))
    if "model_index.json" in names and parts:
        return _problem(
            folder,
            "is a diffusers pipeline, which consists of several models",
            f"name one of its parts: {listed([str(folder / part) for part in parts])}",
        )
    hint = f"did you mean '{folder / parts[0]}'?" if parts else ""
    if not hint and "config.json" in names:
        hint = "its weights are not there: an interrupted download is the likely cause"
    return _problem(folder, f"holds no weights, only {listed(names, most=6)}", hint)


def _problem(path: Path, message: str, hint: str = "") -> Problem:
    return Problem(message, where=str(path), hint=hint)
