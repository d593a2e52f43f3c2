"""Which weight files make up a model, and do they fit together?

As transformers and diffusers choose: `model.safetensors` before `model.safetensors.index.json`;
for other stems, such as `diffusion_pytorch_model`, the index before the single file. Without an
index, shards that are numbered `-00001-of-00003` and complete make up a model too.

Weight files may be links to files elsewhere (the Hub's cache consists of them): what they hold is
read as tensors and nothing else. Names in an index may not leave the folder.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from mergeconf.checkpoint.missing import explain_file, explain_folder, explain_missing
from mergeconf.errors import CheckpointError, Problem, listed
from mergeconf.storage.safetensors_in import FileStamp, Header, StoredTensor, read_header

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_PREFERRED = ("model", "diffusion_pytorch_model")
"""Stems that loaders look for, in this order."""
_NOT_A_MODEL = ("adapter_model",)
"""Stems of files that belong to a model but are none."""
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})")


@dataclass(slots=True)
class Weights:
    """The weight files of one model, and what their headers say."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    files: list[FileStamp] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class _Stem:
    """The files of a folder whose names start alike."""

    single: bool = False
    index: bool = False
    families: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    """For each number of shards in the names, the file of each number."""
    names: set[str] = field(default_factory=set)
    """All its weight files."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What of a folder is read."""

    names: tuple[str, ...]
    """Weight files, in the order of the tensors."""
    weight_map: Mapping[str, str] | None = None
    """File of each tensor, where an index says so."""
    warnings: tuple[Problem, ...] = ()


def read_weights(path: Path) -> tuple[Path, Weights, bool]:
    """Return a model's folder, its weights' headers, and whether the folder is this model's own.

    Args:
        path: a folder, an index file or one .safetensors file.

    Raises:
        CheckpointError: all that is missing, damaged or not understood.
    """
    try:
        if path.is_dir():
            return path, _read_choice(path, _choose(path)), True
        if not path.exists():
            raise CheckpointError(explain_missing(path))
        if path.name.endswith(INDEX_SUFFIX):
            return path.parent, _read_choice(path.parent, _follow_index(path)), True
        if path.suffix != SUFFIX:
            raise CheckpointError(explain_file(path))
        shard = _SHARD.fullmatch(path.stem)
        if shard and int(shard["count"]) > 1:
            _refuse(
                path,
                f"is one of {int(shard['count'])} shards of a model",
                f"name the folder: {path.parent}",
            )
        weights = _read_choice(path.parent, _Choice((path.name,)))
        others = [name for name in _names(path.parent) if name.endswith(SUFFIX)]
        return path.parent, weights, others == [path.name]
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        _refuse(path, f"cannot be read: {(reason or str(error)).lower()}")


def _refuse(path: Path, message: str, hint: str = "") -> NoReturn:
    raise CheckpointError(Problem(message, where=str(path), hint=hint)) from None


def _names(folder: Path) -> list[str]:
    """Return the names of a folder's files that could be weights or an index."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# --- choosing ---------------------------------------------------------------------------------


def _choose(folder: Path) -> _Choice:
    names = _names(folder)
    stems = _stems(names)
    models = [stem for stem in stems if stem not in _NOT_A_MODEL]
    if not models:
        raise CheckpointError(explain_folder(folder, adapter=bool(stems)))
    indexed = [stem for stem in models if stems[stem].index]
    chosen = next((stem for stem in _PREFERRED if stem in models), None)
    if chosen is None and len(models) > 1 and len(indexed) != 1:
        _refuse(
            folder,
            f"holds several models: {listed([stem + SUFFIX for stem in models])}",
            "name one of the files",
        )
    chosen = chosen or (indexed or models)[0]
    choice = _choose_files(folder, chosen, stems[chosen])
    own = stems[chosen].names
    others = [name for name in names if name.endswith(SUFFIX) and name not in choice.names]
    others = [name for name in others if name.removesuffix(SUFFIX) not in _NOT_A_MODEL]
    warnings = list(choice.warnings)
    stale = [name for name in others if name in own]
    if stale and not warnings:
        warnings.append(
            _warning(
                "stale-shards",
                folder,
                f"{chosen}{INDEX_SUFFIX} does not name {listed(stale)}; they are not read",
                "remove the weights of the earlier layout",
            )
        )
    if unread := [name for name in others if name not in own]:
        warnings.append(
            _warning(
                "unread-weights",
                folder,
                f"only the model in {listed(choice.names, most=2)} is read, not {listed(unread)}",
                "move what does not belong to the model out of its folder",
            )
        )
    return _Choice(choice.names, choice.weight_map, tuple(warnings))


def _stems(names: Iterable[str]) -> dict[str, _Stem]:
    stems: dict[str, _Stem] = defaultdict(_Stem)
    for name in names:
        if name.endswith(INDEX_SUFFIX):
            stems[name.removesuffix(INDEX_SUFFIX)].index = True
        elif name.endswith(SUFFIX):
            stem = name.removesuffix(SUFFIX)
            if shard := _SHARD.fullmatch(stem):
                family = stems[shard["stem"]].families[int(shard["count"])]
                family[int(shard["number"])] = name
                stems[shard["stem"]].names.add(name)
            else:
                stems[stem].single = True
                stems[stem].names.add(name)
    return dict(stems)


def _choose_files(folder: Path, stem: str, found: _Stem) -> _Choice:
    single, index = stem + SUFFIX, folder / (stem + INDEX_SUFFIX)
    if found.single and (stem == "model" or not found.index):
        if not found.families and (not found.index or _index_names(index) == {single}):
            return _Choice((single,))
        warning = _warning(
            "two-layouts",
            folder,
            f"holds {single} and shards or an index beside it; the single file is read, as "
            "transformers does",
            "remove the weights of the earlier layout",
        )
        return _Choice((single,), None, (warning,))
    if found.index:
        return _follow_index(index)
    if len(found.families) > 1:
        counts = listed([str(count) for count in sorted(found.families)])
        _refuse(
            folder,
            f"holds shards of different layouts (of {counts} files) and no index that says which "
            "count",
            "remove the shards of the earlier layout",
        )
    ((count, family),) = found.families.items()
    if missing := sorted(set(range(1, count + 1)) - family.keys()):
        names = [f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}" for number in missing[:50]]
        _refuse_missing(folder, names, len(missing), f"the names say {count} shards")
    return _Choice(tuple(family[number] for number in sorted(family)))


def _refuse_missing(folder: Path, names: Sequence[str], count: int, source: str) -> NoReturn:
    _refuse(
        folder,
        f"{count} weight {'file is' if count == 1 else 'files are'} missing "
        f"({source}): {listed(names, most=50)}",
        "an interrupted download is the likely cause; download them",
    )


def _warning(code: str, where: Path, message: str, hint: str) -> Problem:
    return Problem(message, where=str(where), hint=hint, severity="warning", code=code)


# --- index ------------------------------------------------------------------------------------


def _index_names(index: Path) -> set[str]:
    """Return the files that an index names; none where it cannot be read: it is not used then."""
    try:
        return set(_read_index(index).values())
    except CheckpointError:
        return set()


def _follow_index(index: Path) -> _Choice:
    weight_map = _read_index(index)
    names = dict.fromkeys(sorted(weight_map.values()))
    pickles = [name for name in names if not name.endswith(SUFFIX)]
    if pickles:
        _refuse(index, f"names files that are no safetensors: {listed(pickles)}")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        _refuse_missing(index.parent, missing, len(missing), f"{index.name} names them")
    return _Choice(tuple(names), weight_map)


def _read_index(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        _refuse(index, f"is no sound JSON: {error}", "download it again")
    except OSError as error:
        _refuse(index, f"cannot be read: {(error.strerror or str(error)).lower()}")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "has no weight_map that says in which file each tensor lies")
    outside = []
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            _refuse(index, f"tensor {tensor!r}: its file is {name!r}, not a name")
        if not name or name in (".", "..") or any(sign in name for sign in "/\\\0:"):
            outside.append(name)
    if outside:
        _refuse(
            index,
            f"names files outside its folder: {listed([repr(name) for name in outside])}",
            "an index may name files beside it only; do not trust this model",
        )
    return weight_map


# --- headers ----------------------------------------------------------------------------------


def _read_choice(folder: Path, choice: _Choice) -> Weights:
    weights = Weights(warnings=list(choice.warnings))
    headers: dict[str, Header] = {}
    problems: list[Problem] = []
    for name in choice.names:
        try:
            headers[name] = read_header(folder / name)
        except CheckpointError as error:
            problems.extend(error.problems)
    if problems:
        raise CheckpointError(problems)
    twice: dict[str, list[str]] = defaultdict(list)
    for name, header in headers.items():
        weights.files.append(header.stamp)
        weights.metadata.update(header.metadata)
        for tensor in header.tensors.values():
            if (first := weights.tensors.get(tensor.name)) is not None:
                twice[tensor.name].append(f"{first.file.name} and {name}")
            weights.tensors[tensor.name] = tensor
    if twice:
        names = [f"{tensor} (in {files[0]})" for tensor, files in twice.items()]
        _refuse(
            folder,
            f"the same tensor is in two files: {listed(names, most=5)}",
            "shards of two layouts are mixed; remove those of the earlier one",
        )
    if choice.weight_map is not None:
        _keep_indexed(folder, weights, choice.weight_map)
    if not weights.tensors:
        _refuse(folder, f"holds no tensor in {listed(choice.names)}")
    return weights


def _keep_indexed(folder: Path, weights: Weights, weight_map: Mapping[str, str]) -> None:
    tensors = weights.tensors
    absent = [
        f"{name} (in {file})"
        for name, file in weight_map.items()
        if name not in tensors or tensors[name].file.name != file
    ]
    if absent:
        _refuse(
            folder,
            f"{len(absent)} tensors are not in the file that the index names: "
            f"{listed(absent, most=5)}",
            "index and shards are not of one model; download it again",
        )
    if surplus := [name for name in tensors if name not in weight_map]:
        weights.warnings.append(
            _warning(
                "unindexed-tensors",
                folder,
                f"{len(surplus)} tensors are in the shards but not in the index, and are not "
                f"read: {listed(surplus, most=5)}",
                "index and shards are not of one model; download it again",
            )
        )
        weights.tensors = {name: tensors[name] for name in tensors if name in weight_map}
