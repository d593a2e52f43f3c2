"""Layouts: exact, aligned, loadable, and the same whatever the order of the tensors."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from mergeconf.checkpoint import read_header
from mergeconf.dtypes import DType
from mergeconf.errors import OutputError
from mergeconf.storage.layout import OutputTensor, natural_key, plan_layout

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)
TENSORS = st.lists(
    st.builds(
        OutputTensor,
        NAMES,
        st.sampled_from(DType),
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ),
    unique_by=lambda tensor: tensor.name,
    max_size=12,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("layouts")


@given(TENSORS, st.integers(1, 300), st.randoms())
@settings(max_examples=150)
def test_files_are_sound_aligned_and_do_not_depend_on_the_order(scratch, tensors, size, rng):
    layout = plan_layout(tensors, size)
    shuffled = list(tensors)
    rng.shuffle(shuffled)
    assert plan_layout(shuffled, size) == layout
    assert layout.tensors.keys() == {tensor.name for tensor in tensors}
    assert layout.data_bytes == sum(tensor.nbytes for tensor in tensors)
    for number, file in enumerate(layout.files):
        path = scratch / "x.safetensors"
        path.write_bytes(file.header + bytes(file.size - len(file.header)))
        header = read_header(path)
        assert header.metadata == {"format": "pt"}
        assert len(file.header) % 8 == 0
        assert list(header.tensors) == [n for n in layout.tensors if n in header.tensors]
        with safe_open(path, "np") as opened:
            assert set(opened.keys()) == set(file.tensors) == header.tensors.keys()
        for name in file.tensors:
            place, stored = layout.tensors[name], header.tensors[name]
            assert (place.file, place.offset, place.nbytes) == (
                number,
                stored.offset,
                stored.nbytes,
            )
            assert (place.tensor.dtype, place.tensor.shape) == (stored.dtype, stored.shape)
            assert place.offset % stored.dtype.itemsize == 0
        data = sum(layout.tensors[name].nbytes for name in file.tensors)
        assert data <= size or len([n for n in file.tensors if layout.tensors[n].nbytes]) == 1


@given(st.dictionaries(NAMES, st.lists(st.integers(0, 3), max_size=3), max_size=6))
@settings(max_examples=100)
def test_one_format_in_name_order_gives_the_librarys_bytes(shapes):
    names = sorted(shapes, key=lambda name: (natural_key(name), name))
    if names != sorted(shapes, key=str.encode):  # the library sorts numbers as text
        return
    tensors = [OutputTensor(name, DType.float32, tuple(shapes[name])) for name in names]
    (file,) = plan_layout(tensors, 10**9).files
    content = save({name: np.zeros(shapes[name], "f4") for name in names}, {"format": "pt"})
    assert file.header == content[: len(file.header)]
    assert file.size == len(content)


def test_names_and_index_are_those_of_transformers():
    tensors = [OutputTensor(f"layers.{i}.w", DType.bfloat16, (10,)) for i in range(12)]
    random.Random(0).shuffle(tensors)
    single = plan_layout(tensors, 240)
    assert [file.name for file in single.files] == ["model.safetensors"]
    assert (single.index_name, single.index) == (None, b"")
    layout = plan_layout(tensors, 100)
    assert [file.name for file in layout.files] == [
        f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert list(layout.tensors) == [f"layers.{i}.w" for i in range(12)]  # 2 before 10
    assert layout.index_name == "model.safetensors.index.json"
    index = json.loads(layout.index)
    assert index["metadata"] == {"total_size": 240}
    assert index["weight_map"]["layers.11.w"] == "model-00003-of-00003.safetensors"
    assert layout.index.decode() == json.dumps(index, indent=2, sort_keys=True) + "\n"
    assert layout.total_bytes == sum(file.size for file in layout.files) + len(layout.index)


def test_a_tensor_over_the_shard_size_has_its_own_file():
    sizes = {"a": 4, "b": 100, "c": 4, "d": 4}
    layout = plan_layout([OutputTensor(n, DType.uint8, (s,)) for n, s in sizes.items()], 10)
    assert [file.tensors for file in layout.files] == [("a",), ("b",), ("c", "d")]


def test_names_that_no_file_can_hold_are_refused_together():
    bad = [OutputTensor(name, DType.uint8, ()) for name in ("a", "a", "__metadata__", "\ud800")]
    with pytest.raises(OutputError) as caught:
        plan_layout(bad, 10)
    assert len(caught.value.problems) == 3


def test_numbers_of_any_length_sort_by_value():
    names = ["a.10", "a.9", "a.09", "a." + "9" * 5000, "a.b", "a"]
    assert sorted(names, key=lambda name: (natural_key(name), name)) == [
        "a", "a.09", "a.9", "a.10", "a." + "9" * 5000, "a.b",
    ]  # fmt: skip
