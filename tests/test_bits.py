"""The same bytes whatever the threads, the tiles, the pieces of work and the processor.

How it is run must not show in the result: here for every method, on tensors of several blocks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergeconf.dtypes import DType
from mergeconf.execution.local import Settings
from mergeconf.graph.geometry import BLOCK
from mergeconf.methods import all_methods
from support import digests

TESTS = Path(__file__).parent
METHODS = list(all_methods())
WHOLE = 1 << 21
SETTINGS = [
    Settings(threads=1, tile=1000, chunk=BLOCK),
    Settings(threads=2, tile=4096, chunk=BLOCK),
    Settings(threads=4, tile=BLOCK, chunk=BLOCK),
    Settings(threads=4, tile=4096, chunk=3 * BLOCK),
    Settings(threads=2, tile=2 * BLOCK, chunk=2 * BLOCK),
    Settings(threads=3, tile=77, chunk=BLOCK),
    Settings(threads=2, tile=4096, chunk=BLOCK, room=0),
    Settings(threads=2, tile=1000, chunk=BLOCK, room=30_000),
    Settings(threads=2, tile=WHOLE, chunk=WHOLE),
]
# numpy 2.4 and later name groups of features; the versions before name single ones.
FEATURES = [
    "X86_V4 AVX512_ICL AVX512_SPR AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL",
    "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL "
    "AVX2 FMA3 F16C",
]


@pytest.mark.parametrize("name", METHODS)
def test_threads_tiles_and_pieces(name: str) -> None:
    method = all_methods()[name]
    for shape, dtype in (((613, 331), DType.bfloat16), ((70_001,), DType.float32)):
        tensors = digests.inputs_of(method, shape, dtype)
        values = digests.parameters_of(method, len(tensors) - 1)
        call = (method, shape, dtype, tensors, values)
        want = digests.run(*call, Settings(threads=1, tile=WHOLE, chunk=WHOLE))
        for settings in SETTINGS:
            assert digests.run(*call, settings) == want, settings


def run_digests(kind: str, **environment: str) -> dict[str, str]:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.digests", kind],
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", **environment},
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, str] = json.loads(result.stdout)
    return found


@cache
def here(kind: str) -> dict[str, str]:
    return run_digests(kind)


def dispatched() -> list[str]:
    """Return the features that this numpy has code for and this processor has."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kind", ["kernels", "streaming"])
def test_numpy_without_vector_extensions(features: str, kind: str) -> None:
    disabled = [name for name in features.split() if name in dispatched()]
    if not disabled:
        pytest.skip("this processor or numpy has none of them")
    found = run_digests(kind, NPY_DISABLE_CPU_FEATURES=" ".join(disabled))
    want = here(kind)
    assert found.keys() == want.keys()
    assert len(found) > 40
    assert {name for name in found if found[name] != want[name]} == set()


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_torch_with_any_vector_extensions(capability: str) -> None:
    """The oracle, too, gives the same bits everywhere, and they are the executor's."""
    order = ["DEFAULT", "AVX2", "AVX512"]
    here_best = torch.backends.cpu.get_cpu_capability()
    if here_best in order and order.index(capability.upper()) > order.index(here_best):
        pytest.skip(f"this processor has {here_best} at most")  # torch would die of SIGILL
    found = run_digests("eager", ATEN_CPU_CAPABILITY=capability)
    want = here("streaming")
    assert found.keys() == want.keys()
    assert {name for name in found if found[name] != want[name]} == set()


def test_features_can_be_switched_off() -> None:
    """Were the names unknown to numpy, the tests above would compare a thing with itself."""
    disabled = [name for name in FEATURES[-1].split() if name in dispatched()]
    if not disabled:
        pytest.skip("this processor or numpy has none of them")
    code = "from numpy._core._multiarray_umath import __cpu_features__ as f; print(f)"
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(disabled)}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    features: dict[str, Any] = json.loads(
        shown.stdout.replace("'", '"').replace("True", "true").replace("False", "false")
    )
    assert not any(features[name] for name in disabled)


def test_result_depends_on_what_it_should() -> None:
    """A digest that never changed would pass every test above."""
    found = here("streaming")
    assert len(found) == len(METHODS) * len(digests.SHAPES) * len(digests.FORMATS)
    assert len(set(found.values())) > 0.9 * len(found)
    assert np.frombuffer(bytes.fromhex("".join(found.values())), np.uint8).std() > 50
