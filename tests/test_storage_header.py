"""The header reader: equal to the safetensors library where both read, never a foreign error."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mergeconf.checkpoint import Header, read_header
from mergeconf.dtypes import DType
from mergeconf.errors import CheckpointError

NUMPY = ["float64", "float32", "float16", "int64", "int32", "int16", "int8",
         "uint64", "uint32", "uint16", "uint8", "bool"]  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
ONE = {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}

STRICTER = {
    "a name twice": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "metadata twice": b'{"__metadata__":{"a":"b","a":"c"}}',
    "an unknown field": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}',
    "an entry as a list": b'{"t":["F32",[2],[0,8]]}',
    "an unknown format": b'{"t":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}',
    "65 dimensions": b'{"t":{"dtype":"F32","shape":[%s2],"data_offsets":[0,8]}}' % (b"1," * 64),
    "a huge product beside a zero": b'{"t":{"dtype":"F32","shape":[0,9223372036854775807,2],'
    b'"data_offsets":[0,0]}}',
    "a dimension over 2^63": b'{"t":{"dtype":"F32","shape":[9223372036854775808,0],'
    b'"data_offsets":[0,0]}}',
}
"""Where we refuse what the library takes: each has its reason in `safetensors_in`."""

REFUSED = {
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "NaN": b'{"t":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
    "deep": b'{"t":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep objects": b'{"t":' * 20000 + b"1" + b"}" * 20000,
    "a huge number": b'{"t":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % (b"9" * 9000),
    "minus zero": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}',
    "a fraction": b'{"t":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
    "a truth value": b'{"t":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}',
    "negative": b'{"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
    "negative offsets": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}',
    "reversed offsets": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
    "three offsets": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}',
    "too few bytes": b'{"t":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}',
    "overlap": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"u":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    "a hole": b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    "bytes left": b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "beyond the end": b'{"t":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "empty inside another": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"z":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}',
    "no dtype": b'{"t":{"shape":[2],"data_offsets":[0,8]}}',
    "dtype as a list": b'{"t":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}}',
    "a field twice": b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"dtype":"F32"}}',
    "entry null": b'{"t":null}',
    "half a surrogate pair": b'{"t\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "metadata a number": b'{"__metadata__":{"a":1}}',
    "metadata a list": b'{"__metadata__":[]}',
    "trailing text": b"{} x",
}


def file_of(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def ours(path: Path) -> Header | None:
    try:
        return read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return None


def theirs(path: Path) -> dict[str, tuple[str, list[int], bytes]] | None:
    """Return what the library finds; float8 has no numpy type, so values come as raw slices."""
    try:
        with safe_open(path, "np") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118 - the library's object is no dict
                part = file.get_slice(name)
                found[name] = (part.get_dtype(), list(part.get_shape()))
            return found
    except (SafetensorError, OSError):
        return None


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers") / "x.safetensors"


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    result = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        count = int(np.prod(shape)) * 8
        content = draw(st.binary(min_size=count, max_size=count))
        dtype = np.dtype(draw(st.sampled_from(NUMPY)))
        raw = np.frombuffer(content, np.uint8)[: int(np.prod(shape)) * dtype.itemsize]
        if dtype == np.bool_:
            raw = raw & 1
        result[name] = raw.view(dtype).reshape(shape)
    return result


@given(arrays(), st.none() | st.dictionaries(NAMES, st.text("aé\n"), max_size=3))
@settings(max_examples=150)
def test_reads_what_the_library_writes(scratch, tensors, metadata):
    content = save(tensors, metadata or None)  # 0.8 writes broken JSON for {} and {}
    scratch.write_bytes(content)
    header = read_header(scratch)
    assert header.metadata == (metadata or {})
    assert header.tensors.keys() == tensors.keys()
    position = 8 + struct.unpack_from("<Q", content)[0]
    for name, stored in header.tensors.items():
        assert stored.name == name
        assert stored.shape == tensors[name].shape
        assert stored.numel == tensors[name].size
        assert stored.dtype.itemsize == tensors[name].itemsize
        assert stored.offset == position  # in file order
        position += stored.nbytes
        assert content[stored.offset : position] == tensors[name].tobytes()


def entries(codes: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    small = st.integers(-1, 20) | st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 10**30])
    shape = st.lists(st.integers(0, 3), max_size=3) | st.lists(small, max_size=3)
    return st.fixed_dictionaries(
        {"dtype": codes, "shape": shape, "data_offsets": st.lists(small, min_size=2, max_size=2)}
    )


@given(
    st.dictionaries(
        NAMES, entries(st.sampled_from([dtype.code for dtype in DType] + ["F31", ""])), max_size=3
    ),
    st.integers(0, 40),
)
@settings(max_examples=400)
def test_handmade_headers_mean_what_the_library_says(scratch, header, length):
    scratch.write_bytes(file_of(json.dumps(header).encode(), bytes(length)))
    found, expected = ours(scratch), theirs(scratch)
    if expected is None:
        assert found is None
    elif found is None:  # stricter only where numbers pass 2^63
        assert any(dim >= 2**31 for entry in header.values() for dim in entry["shape"])
    else:
        assert {
            name: (tensor.dtype.code, list(tensor.shape)) for name, tensor in found.tensors.items()
        } == expected


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10**6) | st.none(),
)
@example([(0, 255)], None)
@settings(max_examples=500)
def test_damage_is_an_error_or_read_as_the_library_reads_it(scratch, flips, cut):
    tensors = {"a.weight": np.ones((2, 3), "f4"), "é": np.arange(4, dtype="u1"), "e": np.ones(0)}
    content = bytearray(save(tensors, {"format": "pt"}))
    for position, value in flips:
        content[position % len(content)] = value
    if cut is not None:
        del content[cut % len(content) :]
    scratch.write_bytes(content)
    found, expected = ours(scratch), theirs(scratch)
    if expected is None:
        assert found is None
    elif found is not None:
        assert found.tensors.keys() == expected.keys()


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_random_bytes_are_refused_in_our_words(scratch, content):
    scratch.write_bytes(content)
    if theirs(scratch) is None:
        assert ours(scratch) is None


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_the_library_refuses(tmp_path, case):
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(REFUSED[case], bytes(8)))
    assert theirs(path) is None
    with pytest.raises(CheckpointError):
        read_header(path)


@pytest.mark.parametrize("case", STRICTER)
def test_refuses_with_a_written_reason_what_the_library_takes(tmp_path, case):
    path = tmp_path / "x.safetensors"
    header = STRICTER[case]
    path.write_bytes(file_of(header, bytes(8 if b"[0,8]" in header else 0)))
    assert theirs(path) is not None
    with pytest.raises(CheckpointError):
        read_header(path)


@pytest.mark.parametrize("space", [b"", b" ", b"\n  "])
def test_spaces_around_the_header_are_fine(tmp_path, space):
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(space + json.dumps(ONE).encode() + space, bytes(8)))
    assert list(read_header(path).tensors) == ["t"]


def test_a_truncated_file_says_what_is_missing(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {
        "whole": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "cut": {"dtype": "F32", "shape": [100], "data_offsets": [8, 408]},
    }
    path.write_bytes(file_of(json.dumps(header).encode(), bytes(100)))
    with pytest.raises(CheckpointError, match=r"308 bytes are missing, from tensor 'cut'.*downl"):
        read_header(path)
    path.write_bytes(file_of(json.dumps(header).encode(), b"")[:30])
    with pytest.raises(CheckpointError, match=r"at least .* bytes are missing.*download"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"GGUF" + bytes(60), "no safetensors file|truncated"),
        (b"PK\x03\x04" + b"\xff" * 60, "zip archive"),
        (b"<!DOCTYPE html><html>" + b" " * 50, "web page"),
        (b"", "has 0 bytes"),
        (b"\xff" * 8, "limit of 100 MB"),
    ],
)
def test_other_files_are_named(tmp_path, content, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_header(path)


def test_other_things_than_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none", Path("a\0b")):
        with pytest.raises(CheckpointError):
            read_header(path)


def test_twenty_thousand_tensors_in_under_half_a_second(tmp_path):
    header = {
        f"model.layers.{i // 300}.mlp.experts.{i % 300}.up_proj.weight": {
            "dtype": "BF16", "shape": [1, 1], "data_offsets": [2 * i, 2 * i + 2]
        }
        for i in range(20_000)
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(json.dumps(header).encode(), bytes(40_000)))
    seconds = []
    for _ in range(3):  # other work on the machine
        start = time.process_time()
        assert len(read_header(path).tensors) == 20_000
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
