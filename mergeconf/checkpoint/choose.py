"""Which weight files of a folder make up its model? Reads names and indexes only.

As transformers and diffusers choose: safetensors before the `.bin` files of torch.save,
`model.safetensors` before `model.safetensors.index.json`; for other stems, such as
`diffusion_pytorch_model`, the index before the single file. Without an index, shards that are
numbered `-00001-of-00003` and complete make up a model too. Files of torch.save are chosen by the
names that loaders look for only: many a program calls something else `.bin`.

Names in an index may not leave the folder.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NoReturn

from mergeconf.checkpoint.missing import NO_WEIGHTS, PICKLES, explain_folder
from mergeconf.errors import CheckpointError, Problem, listed


@dataclass(frozen=True, slots=True)
class Format:
    """How the weight files of one format are called."""

    suffix: str
    preferred: tuple[str, ...]
    """Stems that loaders look for, in this order; of the first, a single file before the index."""

    @property
    def index_suffix(self) -> str:
        """Ending of the file that says in which shard each tensor lies."""
        return f"{self.suffix}.index.json"


SAFETENSORS = Format(".safetensors", ("model", "diffusion_pytorch_model"))
PICKLED = Format(".bin", ("pytorch_model", "diffusion_pytorch_model"))
_NOT_A_MODEL = ("adapter_model",)
"""Stems of files that belong to a model but are none."""
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})")
"""The stem of one of several files of a model."""


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
class Choice:
    """What of a folder is read."""

    names: tuple[str, ...]
    """Weight files, in the order of the tensors."""
    weight_map: Mapping[str, str] | None = None
    """File of each tensor, where an index says so."""
    warnings: tuple[Problem, ...] = ()


def refuse(path: Path, message: str, hint: str = "") -> NoReturn:
    """Raise a problem of a file or folder."""
    raise CheckpointError(Problem(message, where=str(path), hint=hint)) from None


# --- choosing ---------------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    """Return the names of a folder's files that could be weights or an index."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def holds_weights(name: str) -> bool:
    """Whether a file is, by its name, pickled weights and no other pickle of a training."""
    stem, _, suffix = name.rpartition(".")
    return f".{suffix}" in PICKLES and name not in NO_WEIGHTS and stem not in _NOT_A_MODEL


def choose(folder: Path) -> Choice:
    """Return which files of a folder make up its model.

    Raises:
        CheckpointError: there is none, there are several, or files are missing.
        OSError: the folder cannot be read.
    """
    names = names_in(folder)
    stems = _stems(names, SAFETENSORS)
    models = [stem for stem in stems if stem not in _NOT_A_MODEL]
    chosen = next((stem for stem in SAFETENSORS.preferred if stem in models), None)
    if chosen is None:
        pickled = _stems(names, PICKLED)
        if stem := next((stem for stem in PICKLED.preferred if stem in pickled), None):
            return _choice(folder, names, PICKLED, stem, pickled[stem])
    if not models:
        raise CheckpointError(explain_folder(folder, adapter=bool(stems)))
    indexed = [stem for stem in models if stems[stem].index]
    if chosen is None and len(models) > 1 and len(indexed) != 1:
        refuse(
            folder,
            f"holds several models: {listed([stem + SAFETENSORS.suffix for stem in models])}",
            "name one of the files",
        )
    chosen = chosen or (indexed or models)[0]
    return _choice(folder, names, SAFETENSORS, chosen, stems[chosen])


def _choice(folder: Path, names: list[str], kind: Format, chosen: str, found: _Stem) -> Choice:
    """Return which files of a stem are read, with warnings of those that are not."""
    choice = _choose_files(folder, kind, chosen, found)
    others = [
        name
        for name in names
        if name not in choice.names
        and (
            name.endswith(SAFETENSORS.suffix)
            or (kind is PICKLED and name.endswith(kind.suffix) and holds_weights(name))
        )
        and name.rpartition(".")[0] not in _NOT_A_MODEL
    ]
    warnings = list(choice.warnings)
    stale = [name for name in others if name in found.names]
    if stale and not warnings:
        warnings.append(
            as_warning(
                "stale-shards",
                folder,
                f"{chosen}{kind.index_suffix} does not name {listed(stale)}; they are not read",
                "remove the weights of the earlier layout",
            )
        )
    if unread := [name for name in others if name not in found.names]:
        warnings.append(
            as_warning(
                "unread-weights",
                folder,
                f"only the model in {listed(choice.names, most=2)} is read, not {listed(unread)}",
                "move what does not belong to the model out of its folder",
            )
        )
    return Choice(choice.names, choice.weight_map, tuple(warnings))


def _stems(names: Iterable[str], kind: Format) -> dict[str, _Stem]:
    stems: dict[str, _Stem] = defaultdict(_Stem)
    for name in names:
        if name.endswith(kind.index_suffix):
            stems[name.removesuffix(kind.index_suffix)].index = True
        elif name.endswith(kind.suffix):
            stem = name.removesuffix(kind.suffix)
            if shard := SHARD.fullmatch(stem):
                family = stems[shard["stem"]].families[int(shard["count"])]
                family[int(shard["number"])] = name
                stems[shard["stem"]].names.add(name)
            else:
                stems[stem].single = True
                stems[stem].names.add(name)
    return dict(stems)


def _choose_files(folder: Path, kind: Format, stem: str, found: _Stem) -> Choice:
    single, index = stem + kind.suffix, folder / (stem + kind.index_suffix)
    if found.single and (stem == kind.preferred[0] or not found.index):
        if not found.families and (not found.index or _index_names(index) == {single}):
            return Choice((single,))
        warning = as_warning(
            "two-layouts",
            folder,
            f"holds {single} and shards or an index beside it; the single file is read, as "
            "transformers does",
            "remove the weights of the earlier layout",
        )
        return Choice((single,), None, (warning,))
    if found.index:
        return follow_index(index, kind)
    if len(found.families) > 1:
        counts = listed([str(count) for count in sorted(found.families)])
        refuse(
            folder,
            f"holds shards of different layouts (of {counts} files) and no index that says which "
            "count",
            "remove the shards of the earlier layout",
        )
    ((count, family),) = found.families.items()
    # a name may promise any number of shards, so that they are not listed one by one
    if missing := count - sum(1 <= number <= count for number in family):
        first = islice((n for n in range(1, count + 1) if n not in family), 50)
        names = [f"{stem}-{number:05d}-of-{count:05d}{kind.suffix}" for number in first]
        _refuse_missing(folder, names, missing, f"the names say {count} shards")
    return Choice(tuple(family[number] for number in sorted(family)))


def _refuse_missing(folder: Path, names: Sequence[str], count: int, source: str) -> NoReturn:
    more = f" and {count - 50} more" if count > 50 else ""
    refuse(
        folder,
        f"{count} weight {'file is' if count == 1 else 'files are'} missing "
        f"({source}): {listed(names[:50], most=50)}{more}",
        "an interrupted download is the likely cause; download them",
    )


def as_warning(code: str, where: Path, message: str, hint: str) -> Problem:
    """Return what was found in a place and does not stand in the way."""
    return Problem(message, where=str(where), hint=hint, severity="warning", code=code)


# --- index ------------------------------------------------------------------------------------


def _index_names(index: Path) -> set[str]:
    """Return the files that an index names; none where it cannot be read: it is not used then."""
    try:
        return set(_read_index(index).values())
    except CheckpointError:
        return set()


def follow_index(index: Path, kind: Format) -> Choice:
    """Return the files that an index names.

    Raises:
        CheckpointError: it is no sound index, or files are missing.
    """
    weight_map = _read_index(index)
    names = dict.fromkeys(sorted(weight_map.values()))
    if others := [name for name in names if not name.endswith(kind.suffix)]:
        refuse(
            index,
            f"names files that do not end in {kind.suffix}: {listed(others)}",
            "an index and its files have the same format; download it again",
        )
    if missing := [name for name in names if not (index.parent / name).exists()]:
        _refuse_missing(index.parent, missing, len(missing), f"{index.name} names them")
    return Choice(tuple(names), weight_map)


def _read_index(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        refuse(index, f"is no sound JSON: {error}", "download it again")
    except OSError as error:
        refuse(index, f"cannot be read: {(error.strerror or str(error)).lower()}")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        refuse(index, "has no weight_map that says in which file each tensor lies")
    outside = []
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            refuse(index, f"tensor {tensor!r}: its file is {name!r}, not a name")
        if not name or name in (".", "..") or any(sign in name for sign in "/\\\0:"):
            outside.append(name)
    if outside:
        refuse(
            index,
            f"names files outside its folder: {listed([repr(name) for name in outside])}",
            "an index may name files beside it only; do not trust this model",
        )
    return weight_map
