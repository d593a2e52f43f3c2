"""Which small files belong to the output, and what do they say?

Everything but the weights is the donor's: the base's, or the first model's. The config is written
anew where the merge changes what it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeconf.checkpoint import Checkpoint
from mergeconf.dtypes import DType
from mergeconf.recipe import Recipe

RECIPE_NAME = "recipe.yaml"
"""The recipe, in the output folder."""
_DTYPE_KEYS = ("dtype", "torch_dtype")


def output_files(
    recipe: Recipe,
    donor: Checkpoint,
    config: Mapping[str, Any] | None,
    out_dtype: DType | None,
    *,
    unties: bool,
) -> dict[str, bytes | Path]:
    """Return the output's small files by name: content, or the file to copy.

    Args:
        recipe: Is copied into the output, unchanged.
        donor: The model whose files are taken.
        config: The donor's config with the output's number of layers, or None where it has none.
        out_dtype: Format of all weights, or None where each keeps its own.
        unties: Whether the output has a head of its own though the donor's config ties it.
    """
    files: dict[str, bytes | Path] = {sidecar.name: sidecar.path for sidecar in donor.sidecars}
    if config is not None:
        changed = _config(config, out_dtype, unties=unties)
        if changed != donor.config:
            files["config.json"] = (json.dumps(changed, indent=2, sort_keys=True) + "\n").encode()
    files[RECIPE_NAME] = recipe.text.encode()
    return files


def _config(config: Mapping[str, Any], out_dtype: DType | None, *, unties: bool) -> dict[str, Any]:
    changed = dict(config)
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            changed[key] = _config(value, out_dtype, unties=unties)
    if out_dtype is not None:
        for key in _DTYPE_KEYS:
            if key in config:
                changed[key] = out_dtype.name
    if unties and "tie_word_embeddings" in config:
        changed["tie_word_embeddings"] = False
    return changed
