"""Several documents in one file, by `mergekit-multi` 0.1.5 and by mergeconf.

Skipped unless `MERGECONF_MERGEKIT` names mergekit's environment. mergekit writes what lies in
between to a folder; here nothing is written, and the bits are the same.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergeconf.api import merge
from parity.compare import distance
from parity.test_methods_parity import mergekit_python
from support import deep_models as deep
from support.models import load_exactly, read_model

pytestmark = pytest.mark.parity

CLASSIC = [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.5}]
FLOAT = {"dtype": "float32"}
CASES: dict[str, list[dict[str, Any]]] = {
    "average-then-ties": [
        {"name": "mean", "merge_method": "linear", "models": ["A", "B"],
         "parameters": {"weight": 0.5}},
        {"merge_method": "task_arithmetic", "base_model": "A", "models": ["mean", "C"],
         "parameters": {"weight": 0.7}},
    ],
    "forward-reference": [
        {"merge_method": "slerp", "base_model": "left", "models": ["left", "right"],
         "parameters": {"t": 0.4}},
        {"name": "right", "merge_method": "linear", "models": ["B", "C"],
         "parameters": {"weight": 0.5}},
        {"name": "left", "merge_method": "linear", "models": ["A", "C"],
         "parameters": {"weight": 0.5}},
    ],
    "chain-of-three": [
        {"name": "one", "merge_method": "linear", "models": ["A", "B"],
         "parameters": {"weight": [0.2, 0.8]}},
        {"name": "two", "merge_method": "slerp", "base_model": "one", "models": ["one", "C"],
         "parameters": {"t": CLASSIC}},
        {"merge_method": "task_arithmetic", "base_model": "one", "models": ["two", "C"],
         "parameters": {"weight": 0.5, "normalize": False}},
    ],
    "stack-of-merges": [
        {"name": "mean", "merge_method": "linear", "models": ["A", "B"],
         "parameters": {"weight": 0.5}},
        {"merge_method": "passthrough", "slices": [
            {"sources": [{"model": "mean", "layer_range": [0, 3]}]},
            {"sources": [{"model": "C", "layer_range": [1, 4]}]},
        ]},
    ],
    "merge-of-stacks": [
        {"name": "deep", "merge_method": "passthrough", "slices": [
            {"sources": [{"model": "A", "layer_range": [0, 3]}]},
            {"sources": [{"model": "A", "layer_range": [1, 4]}]},
        ]},
        {"name": "deeper", "merge_method": "passthrough", "slices": [
            {"sources": [{"model": "B", "layer_range": [0, 4]}]},
            {"sources": [{"model": "B", "layer_range": [2, 4]}]},
        ]},
        {"merge_method": "slerp", "base_model": "deep", "models": ["deep", "deeper"],
         "parameters": {"t": [0, 1]}},
    ],
    "bfloat16-between": [
        {"name": "mean", "merge_method": "linear", "models": ["A", "B"], "dtype": "float32",
         "out_dtype": "bfloat16", "parameters": {"weight": 0.5}},
        {"merge_method": "linear", "models": ["mean", "C"], "parameters": {"weight": 0.5}},
    ],
}  # fmt: skip


WORKER = """
import sys
from mergekit.scripts.multimerge import main
folder, *cases = sys.argv[1:]
for case in cases:
    path = f"{folder}/{case}"
    main([f"{path}.yaml", "--out-path", path, "-I", f"{path}.between", "--quiet",
          "--no-copy-tokenizer"], standalone_mode=False)
"""


def documents(case: str, models: Path) -> str:
    """Return a file's text, with `dtype: float32` and the models' folders."""
    found = []
    for document in CASES[case]:
        found.append(yaml.safe_dump(_placed({**FLOAT, **document}, models)))
    return "---\n".join(found)


def _placed(value: Any, models: Path) -> Any:
    if isinstance(value, dict):
        found = {key: _placed(item, models) for key, item in value.items()}
        listed = found.get("models")
        if isinstance(listed, list):  # mergekit does not know the short form
            found["models"] = [m if isinstance(m, dict) else {"model": m} for m in listed]
        return found
    if isinstance(value, list):
        return [_placed(item, models) for item in value]
    return str(models / value) if value in ("A", "B", "C") else value


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run mergekit once for all cases."""
    python = mergekit_python()
    if python is None:
        pytest.skip("MERGECONF_MERGEKIT does not name an environment with mergekit")
    folder = tmp_path_factory.mktemp("documents")
    for variant, name in enumerate("ABC"):
        deep.save("llama", variant, folder / name)
    for case in CASES:
        (folder / f"{case}.yaml").write_text(documents(case, folder))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [python, "-c", WORKER, folder, *CASES]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_every_tensor(case: str, merged: Path, tmp_path: Path) -> None:
    merge(merged / f"{case}.yaml", tmp_path / "out")
    got, want = read_model(tmp_path / "out"), read_model(merged / case)
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert tensor.dtype == want[name].dtype, name
        found = distance(tensor, want[name], [])
        assert found.ulps <= 4 or found.relative < 2e-7, (name, found)
    load_exactly(tmp_path / "out")
