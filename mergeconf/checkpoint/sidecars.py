"""Which small files belong to a model beside its weights?

A rule, not a list, so that a tokenizer file of tomorrow is copied too: at the top of the folder,
every text-like file (by its ending) that is neither weights nor a trace of training nor a text
about the model, and whatever stands in for a vocabulary; below it, the folders that
sentence-transformers' `modules.json` names, and additional chat templates. Python files count only
where a config refers to them (`auto_map`); they are copied, never run.

A link that leaves the folder is not followed: a downloaded model could otherwise put a private
file of the user's into the output. Only the Hub's cache, where every file is a link into `blobs`,
is known and trusted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from mergeconf.errors import Problem, listed

SidecarKind = Literal[
    "config", "generation", "tokenizer", "chat_template", "processor", "module", "code", "license",
    "other",
]  # fmt: skip
"""What a file is for. `module` is a part of a sentence-transformers model."""

MAX_BYTES = 256 * 2**20
"""Largest small file, in bytes; the largest tokenizers have about 40 MB."""

_ENDINGS = {
    ".json", ".txt", ".model", ".jinja", ".jinja2", ".spm", ".tiktoken", ".vocab", ".bpe", ".codes",
    ".tokenizer", ".tsv", ".py", ".fst",
}  # fmt: skip
_TRACE = re.compile(
    r"(trainer_state|training_args|training_config|train_results|eval_results|test_results"
    r"|predict_results|all_results|optimizer|scheduler|rng_state|global_step|events\.out|latest$"
    r"|zero_to_fp32|log_history|wandb|dataset_infos?|quantiz|quant_|hf_quant|adapter_|requirements"
    r"|mergekit|mergeconf|modelcard|params\.json|pytorch_model|tf_model|flax_model"
    r"|generated_predictions|readme|changelog|citation)"
)
_KINDS: tuple[tuple[SidecarKind, re.Pattern[str]], ...] = (
    ("config", re.compile(r"config\.json")),
    ("generation", re.compile(r"generation_config\.json")),
    ("chat_template", re.compile(r"(chat_template|additional_chat_templates/).*")),
    ("processor", re.compile(r".*(processor|feature_extractor)(_config)?\.json|audio_tokenizer.*")),
    ("license", re.compile(r"(license|licence|notice|copying|use_policy|copyright).*")),
    (
        "tokenizer",
        re.compile(
            r"(tokenizer|vocab|merges|special_tokens|added_tokens|sentencepiece|spiece|spm|tekken|bpe"
            r"|dict|emoji|normalizer|byte_maps|entity_vocab|source\.|target\.).*"
            r"|.*\.(model|spm|tiktoken|vocab|bpe|codes|tokenizer)"
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A small file that belongs to a model."""

    name: str
    """Path relative to the model's folder, with `/`: `1_Pooling/config.json`."""
    path: Path
    """Where it lies."""
    kind: SidecarKind
    size: int
    """Length in bytes."""


def is_tokenizer_file(name: str) -> bool:
    """Tell by its name whether a file is part of a tokenizer, its code and chat templates
    included."""
    if name.startswith("tokenization") and name.endswith(".py"):
        return True
    return _kind(name, False, ()) in ("tokenizer", "chat_template")


def find_sidecars(folder: Path) -> tuple[list[Sidecar], list[Problem]]:
    """Return the small files that belong to the model in a folder, by name, and warnings.

    Raises:
        OSError: the folder cannot be read.
    """
    found: list[Sidecar] = []
    outside: list[str] = []
    modules = _modules(folder)
    code = _refers_to_code(folder)
    for name in sorted(_candidates(folder, modules)):
        path = folder / name
        kind = _kind(name, code, modules)
        if kind is None or not path.is_file():
            continue
        if not _stays_inside(path, folder):
            outside.append(name)
        elif (size := path.stat().st_size) <= MAX_BYTES:
            found.append(Sidecar(name, path, kind, size))
    warnings = []
    if outside:
        warnings.append(
            Problem(
                f"links that leave the folder are not copied: {listed(outside)}",
                where=str(folder),
                hint="put the files themselves into the folder",
                severity="warning",
                code="link-outside",
            )
        )
    if weights := [file.name for file in found if file.name.endswith((".safetensors", ".bin"))]:
        warnings.append(
            Problem(
                f"weights of further modules are copied, not merged: {listed(weights)}",
                where=str(folder),
                severity="warning",
                code="module-weights",
            )
        )
    return found, warnings


def _candidates(folder: Path, modules: tuple[str, ...]) -> Iterator[str]:
    for path in folder.iterdir():
        yield path.name
    for part in ("additional_chat_templates", *modules):
        base = folder / part
        for parent, _, names in os.walk(base):  # does not follow links to folders
            for name in names:
                yield PurePosixPath(parent, name).relative_to(folder).as_posix()


def _kind(name: str, code: bool, modules: tuple[str, ...]) -> SidecarKind | None:
    """Return what a file is for, or None where it is not copied."""
    lower = name.lower()
    if any(part.startswith(".") for part in PurePosixPath(name).parts):
        return None
    if name.startswith(tuple(f"{module}/" for module in modules)):
        return "module"
    kind = next((kind for kind, pattern in _KINDS if pattern.fullmatch(lower)), None)
    if kind == "license":
        return kind
    suffix = PurePosixPath(lower).suffix
    if suffix not in _ENDINGS or lower.endswith(".index.json") or _TRACE.match(lower):
        return None
    if suffix == ".py":
        return "code" if code else None
    return kind or "other"


def _modules(folder: Path) -> tuple[str, ...]:
    """Return the folders that sentence-transformers' list of modules names."""
    content = _load(folder / "modules.json")
    if not isinstance(content, list):
        return ()
    names = [entry.get("path") for entry in content if isinstance(entry, dict)]
    paths = [PurePosixPath(name) for name in names if isinstance(name, str) and name]
    return tuple(
        str(path)
        for path in paths
        if path.parts and not path.is_absolute() and ".." not in path.parts
    )


def _refers_to_code(folder: Path) -> bool:
    """Whether a config names Python classes that lie in the folder."""
    configs = ("config.json", "tokenizer_config.json", "processor_config.json",
               "preprocessor_config.json")  # fmt: skip
    contents = (_load(folder / name) for name in configs)
    return any(isinstance(content, dict) and "auto_map" in content for content in contents)


def _load(path: Path) -> object:
    """Return a JSON file's content, or None where there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _stays_inside(path: Path, folder: Path) -> bool:
    home, real = folder.resolve(), path.resolve()
    if home in real.parents:
        return True
    if home.parent.name == "snapshots":  # the Hub's cache: models--x--y/{blobs,snapshots/COMMIT}
        return home.parent.parent / "blobs" in real.parents
    return False
