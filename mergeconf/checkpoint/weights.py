"""What do the weight files of a model hold, and do they fit together?

Weight files may be links to files elsewhere (the Hub's cache consists of them): what they hold is
read as tensors and nothing else. `choose` says which files of a folder make up its model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeconf.checkpoint.choose import (
    PICKLED,
    SAFETENSORS,
    SHARD,
    Choice,
    as_warning,
    choose,
    follow_index,
    holds_weights,
    names_in,
    refuse,
)
from mergeconf.checkpoint.missing import PICKLES, explain_file, explain_missing
from mergeconf.errors import CheckpointError, Problem, listed
from mergeconf.storage.pickles_in import read_pickled
from mergeconf.storage.safetensors_in import FileStamp, Header, StoredTensor, read_header


@dataclass(slots=True)
class Weights:
    """The weight files of one model, and what their headers say."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    files: list[FileStamp] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def read_weights(path: Path) -> tuple[Path, Weights, bool]:
    """Return a model's folder, its weights' headers, and whether the folder is this model's own.

    Args:
        path: a folder, an index file, one .safetensors file, or one file of torch.save.

    Raises:
        CheckpointError: all that is missing, damaged or not understood.
    """
    try:
        if path.is_dir():
            return path, _read_choice(path, choose(path)), True
        if not path.exists():
            raise CheckpointError(explain_missing(path))
        for kind in (SAFETENSORS, PICKLED):
            if path.name.endswith(kind.index_suffix):
                return path.parent, _read_choice(path.parent, follow_index(path, kind)), True
        if path.suffix != SAFETENSORS.suffix and path.suffix not in PICKLES:
            raise CheckpointError(explain_file(path))
        shard = SHARD.fullmatch(path.stem)
        if shard and int(shard["count"]) > 1:
            refuse(
                path,
                f"is one of {int(shard['count'])} shards of a model",
                f"name the folder: {path.parent}",
            )
        weights = _read_choice(path.parent, Choice((path.name,)))
        return path.parent, weights, _is_alone(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        refuse(path, f"cannot be read: {(reason or str(error)).lower()}")


def _is_alone(path: Path) -> bool:
    """Whether a file is the only weights of its format in its folder."""
    names = names_in(path.parent)
    if path.suffix == SAFETENSORS.suffix:
        return [name for name in names if name.endswith(SAFETENSORS.suffix)] == [path.name]
    return [name for name in names if holds_weights(name)] == [path.name]


def _read_file(path: Path) -> Header:
    return read_header(path) if path.suffix == SAFETENSORS.suffix else read_pickled(path)


def _read_choice(folder: Path, choice: Choice) -> Weights:
    weights = Weights(warnings=list(choice.warnings))
    headers: dict[str, Header] = {}
    problems: list[Problem] = []
    for name in choice.names:
        try:
            headers[name] = _read_file(folder / name)
        except CheckpointError as error:
            problems.extend(error.problems)
    if problems:
        raise CheckpointError(problems)
    twice: dict[str, list[str]] = defaultdict(list)
    for name, header in headers.items():
        weights.files.append(header.stamp)
        weights.metadata.update(header.metadata)
        weights.warnings.extend(header.warnings)
        for tensor in header.tensors.values():
            if (first := weights.tensors.get(tensor.name)) is not None:
                twice[tensor.name].append(f"{first.file.name} and {name}")
            weights.tensors[tensor.name] = tensor
    if twice:
        names = [f"{tensor} (in {files[0]})" for tensor, files in twice.items()]
        refuse(
            folder,
            f"the same tensor is in two files: {listed(names, most=5)}",
            "shards of two layouts are mixed; remove those of the earlier one",
        )
    if choice.weight_map is not None:
        _keep_indexed(folder, weights, choice.weight_map)
    if not weights.tensors:
        refuse(folder, f"holds no tensor in {listed(choice.names)}")
    return weights


def _keep_indexed(folder: Path, weights: Weights, weight_map: Mapping[str, str]) -> None:
    tensors = weights.tensors
    absent = [
        f"{name} (in {file})"
        for name, file in weight_map.items()
        if name not in tensors or tensors[name].file.name != file
    ]
    if absent:
        refuse(
            folder,
            f"{len(absent)} tensors are not in the file that the index names: "
            f"{listed(absent, most=5)}",
            "index and shards are not of one model; download it again",
        )
    if surplus := [name for name in tensors if name not in weight_map]:
        weights.warnings.append(
            as_warning(
                "unindexed-tensors",
                folder,
                f"{len(surplus)} tensors are in the shards but not in the index, and are not "
                f"read: {listed(surplus, most=5)}",
                "index and shards are not of one model; download it again",
            )
        )
        weights.tensors = {name: tensors[name] for name in tensors if name in weight_map}
