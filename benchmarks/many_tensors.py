"""Times a merge of very many very small tensors: what a tensor costs beside its bytes.

    python -m benchmarks.many_tensors [--tensors 20000] [--method ties]

Mixture-of-experts models have tens of thousands of tensors; planning and scheduling them must not
grow faster than their number. Prints seconds for a tenth of the tensors and for all of them.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = (8, 16)
MODELS = 4


def write_model(folder: Path, tensors: int, seed: int) -> None:
    """Write a model of that many bfloat16 tensors with random content."""
    size = 2 * SHAPE[0] * SHAPE[1]
    header = {
        f"model.layers.{i // 200}.experts.{i % 200}.weight": {
            "dtype": "BF16", "shape": SHAPE, "data_offsets": (i * size, (i + 1) * size),
        }
        for i in range(tensors)
    }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(seed).standard_normal(tensors * size // 2, dtype=np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    folder.mkdir()
    content = struct.pack("<Q", len(text)) + text + bits.tobytes()
    (folder / "model.safetensors").write_bytes(content)


def seconds_for(tensors: int, method: str) -> float:
    """Return the wall time of one whole run, start-up included, in seconds."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for model in range(MODELS):
            write_model(work / f"m{model}", tensors, model)
        recipe = f"merge_method: {method}\nbase_model: m0\nmodels: [m1, m2, m3]\n"
        if method in ("ties", "dare_ties", "dare_linear"):
            recipe += "parameters: {density: 0.3}\n"
        (work / "recipe.yaml").write_text(recipe)
        command = [sys.executable, "-m", "mergeconf", "run", str(work / "recipe.yaml"), "--quiet"]
        begun = time.perf_counter()
        subprocess.run([*command, "-o", str(work / "out")], check=True)
        return time.perf_counter() - begun


def main() -> None:
    """Time a tenth of the tensors, and all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=20_000)
    parser.add_argument("--method", default="ties")
    options = parser.parse_args()
    for tensors in (options.tensors // 10, options.tensors):
        print(f"{tensors:,} tensors: {seconds_for(tensors, options.method):.1f} s")


if __name__ == "__main__":
    main()
