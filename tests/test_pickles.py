"""Files of torch.save: torch reads them too and is the oracle, merges of them are the same."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeconf.api import merge
from mergeconf.checkpoint import ReadFiles, open_checkpoint
from mergeconf.dtypes import DType
from mergeconf.errors import CheckpointError
from mergeconf.storage.pickles_in import read_pickled
from mergeconf.storage.state_dict import _ALLOWED
from support.models import made, read_model, write_model
from support.pickled import NUMPY_FREE, archive, parts, raw, read, save, wanted

LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, "x")
    return str(caught.value)


def codes(path: Path) -> list[str]:
    return [problem.code for problem in open_checkpoint(path, "x").warnings]


# --- torch is the oracle ----------------------------------------------------------------------


@st.composite
def tensors(draw) -> torch.Tensor:
    """Draw a contiguous tensor of any format, perhaps a part of a larger storage."""
    dtype = NUMPY_FREE[draw(st.sampled_from(sorted(NUMPY_FREE, key=str)))]
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    numel = int(torch.tensor(shape).prod()) if shape else 1
    size = (before + numel + after) * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        content = bytes(byte & 1 for byte in content)
    storage = torch.frombuffer(bytearray(content), dtype=torch.uint8) if size else None
    if storage is None:
        return torch.empty(shape, dtype=dtype)
    return storage.view(dtype)[before : before + numel].view(shape)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), tensors(), max_size=6),
    st.booleans(),
    st.integers(2, 5),
    st.sampled_from([dict, OrderedDict]),
)
@settings(max_examples=60)
def test_what_torch_wrote_is_read(tmp_path_factory, state, legacy, protocol, kind):
    path = save(
        tmp_path_factory.mktemp("p") / "a.bin", kind(state), legacy=legacy, protocol=protocol
    )
    header = read_pickled(path)
    assert read(header) == wanted(state)
    assert header.warnings == ()
    assert all(tensor.stamp == header.stamp for tensor in header.tensors.values())


def test_the_formats_that_were_tried():
    assert set(NUMPY_FREE) == set(DType)


@LEGACY
@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama-tied"])
def test_state_dicts_of_transformers(tmp_path, kind, legacy):
    state = read_model(made(kind))
    model = torch.nn.Module()
    for name, tensor in state.items():
        model.register_parameter(name.replace(".", "_"), torch.nn.Parameter(tensor))
    path = save(tmp_path / "pytorch_model.bin", model.state_dict(), legacy=legacy)
    assert read(read_pickled(path)) == wanted(torch.load(path, weights_only=True))


@LEGACY
def test_parameters_tied_tensors_and_views(tmp_path, legacy):
    big = torch.arange(24.0).reshape(4, 6)
    odd = torch.arange(6.0)
    odd.note = "an attribute"
    noted = torch.nn.Parameter(torch.ones(2))
    noted.note = {"more": [1]}
    state = {
        "whole": big, "tied": big, "rows": big[1:3], "row": big[2], "one": big[3, 5],
        "ones": big[1:2, None].transpose(0, 1), "parameter": torch.nn.Parameter(big[0]),
        "odd": odd, "noted": noted, "grad": torch.ones(3, requires_grad=True),
        "empty": torch.zeros(0, 5).t(),
    }  # fmt: skip
    path = save(tmp_path / "a.pt", state, legacy=legacy)
    header = read_pickled(path)
    assert read(header) == wanted(state)
    found = header.tensors
    assert found["whole"].offset == found["tied"].offset
    assert found["rows"].offset == found["whole"].offset + 24


def test_offsets_do_not_rely_on_alignment(tmp_path):
    state = {"a": torch.arange(5.0), "one": torch.ones(1).bool(), "b": torch.arange(3.0)}
    data, storages = parts(save(tmp_path / "a.bin", state))
    path = archive(tmp_path / "b.bin", data, storages)
    header = read_pickled(path)
    assert any(tensor.offset % 4 for tensor in header.tensors.values())
    assert read(header) == wanted(state)
    assert read(header) == wanted(torch.load(path, weights_only=True))


def test_bytes_that_make_no_whole_element_are_left(tmp_path):
    odd = torch.arange(9, dtype=torch.uint8)[:8].view(torch.int32)
    path = save(tmp_path / "a.bin", {"a": odd})
    assert read(read_pickled(path)) == wanted({"a": odd})


@pytest.mark.parametrize("count", [0, 1])
def test_names_as_python_2_wrote_them(tmp_path, count):
    # what Python 2 wrote: byte strings for names, pairs as the argument of OrderedDict
    data, storages = parts(save(tmp_path / "a.bin", OrderedDict(w=torch.arange(3.0))))
    body = data[data.index(b"X\x01\x00\x00\x00w") : data.rindex(b"s.")]
    body = body.replace(b"X\x01\x00\x00\x00w", b"U\x01w").replace(b"X\x07\x00\x00\x00", b"U\x07")
    start = data[: data.index(b")R")]
    made = start + b"]](" + body + b"ea\x85R."
    assert pickle.PROTO in made
    path = archive(tmp_path / "b.bin", made, storages)
    assert read(read_pickled(path)) == wanted({"w": torch.arange(3.0)})


def test_names_are_those_that_torch_allows_too():
    from torch._weights_only_unpickler import _get_allowed_globals

    theirs = {name.removeprefix("builtins.") for name in _get_allowed_globals()}
    ours = {str(name).removeprefix("builtins.") for name in _ALLOWED}
    assert ours - theirs == set()


# --- what lies around the tensors -------------------------------------------------------------


@LEGACY
@pytest.mark.parametrize("name", ["state_dict", "model", "module", "model_state_dict"])
def test_state_dicts_one_level_deep(tmp_path, name, legacy):
    state = {"a": torch.arange(3.0)}
    optimizer = {"state": {0: {"exp": torch.ones(7, dtype=torch.complex64)}}, "groups": [{}]}
    more = {"epoch": 3, "optimizer": optimizer, "rng": torch.zeros(2), "args": {"lr": 0.1}}
    header = read_pickled(save(tmp_path / "a.ckpt", {**more, name: state}, legacy=legacy))
    assert read(header) == wanted(state)
    (warning,) = header.warnings
    assert warning.code == "unread-entries"
    assert "'epoch', 'optimizer', 'rng', 'args'" in warning.message


def test_entries_that_are_no_tensors_are_named(tmp_path):
    state = {"a": torch.ones(1), "version": 2, "note": b"\xff\0", "none": None, 5: "five",
             "set": {1, 2}, "device": torch.device("cpu"), "dtype": torch.float16,
             "size": torch.Size([1]), "big": 2**70, "float": 0.5, "long": list(range(300)),
             "config": {"model": {"x": 1}}, "model": "llama"}  # fmt: skip
    (tmp_path / "m").mkdir()
    save(tmp_path / "m" / "pytorch_model.bin", state)
    checkpoint = open_checkpoint(tmp_path / "m", "x")
    assert list(checkpoint.tensors) == ["a"]
    (warning,) = checkpoint.warnings
    assert warning.code == "unread-entries"
    assert "'version'" in warning.message
    assert "'a'" not in warning.message


def ones(*shape: int, **more) -> torch.Tensor:
    return torch.ones(*shape, **more)


def sparse() -> torch.Tensor:
    return torch.eye(2).to_sparse()


@LEGACY
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: {"a": ones(2, 3).t()}, "tensor 'a' cannot be read: it is not contiguous"),
        (lambda: {"a": ones(1).expand(4)}, "not contiguous"),
        (lambda: {"a": ones(4)[::2]}, "not contiguous"),
        (lambda: {"a": ones(2, 3).t(), "b": ones(2, 3).t()}, "2 tensors cannot be read"),
        (
            lambda: {"a": ones(2, dtype=torch.complex64)},
            "'a' cannot be read: it has dtype complex64",
        ),
        (lambda: {"a": ones(2, dtype=torch.complex32)}, "complex32"),
        (lambda: {"a": ones(2).to(torch.float8_e4m3fnuz)}, "float8_e4m3fnuz"),
        (lambda: {"a": torch.conj(ones(2, dtype=torch.complex64)).imag}, "negative view"),
        (lambda: {"a": sparse()}, "is sparse"),
        (lambda: {"a": sparse().to_sparse_csr()}, "is sparse"),
        (lambda: {"a": ones(2, device="meta")}, "was on the meta device"),
        (lambda: {"a": {"b": ones(1)}, "c": ones(1)}, "deeper level, under 'a'"),
        (lambda: {"a": {"b": ones(1)}}, "deeper level, under 'a'"),
        (lambda: {"a": [({1: {ones(1)}},)], "b": ones(1)}, "deeper level, under 'a'"),
        (lambda: {"model": {"a": [ones(1)], "b": ones(1)}}, "deeper level, under 'a'"),
        (lambda: {"model": {"a": ones(1)}, "state_dict": {"a": ones(1)}}, "several state dict"),
        (lambda: {0: ones(1)}, "names are not text"),
        (lambda: {"\ud800": ones(1)}, "names are not text"),
        (lambda: [ones(1)], "no dict, not a state dict"),
        (lambda: ones(1), "a single tensor, not a state dict"),
        (lambda: None, "no dict"),
        (lambda: {}, "holds no tensor"),
        (lambda: {"epoch": 1}, "holds no tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_state_dict_or_no_range_of_bytes(tmp_path, make, words, legacy):
    path = save(tmp_path / "a.bin", make(), legacy=legacy)
    message = refusal(path)
    assert words in message
    assert str(path) in message or str(tmp_path) in message


@LEGACY
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_tensors_are_refused(tmp_path, legacy):
    if not hasattr(torch, "quantize_per_tensor"):
        pytest.skip("torch is about to drop them")
    value = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    channels = torch.quantize_per_channel(
        torch.ones(2, 2), torch.ones(2), torch.zeros(2, dtype=torch.int64), 0, torch.qint8
    )
    path = save(tmp_path / "a.bin", {"q": value, "c": channels}, legacy=legacy)
    assert "2 tensors cannot be read, as each is quantized by torch: 'q', 'c'" in refusal(path)


@LEGACY
def test_whole_models_are_refused_by_the_name_of_their_class(tmp_path, legacy):
    message = refusal(save(tmp_path / "a.pt", torch.nn.Linear(2, 2), legacy=legacy))
    assert "torch.nn.modules.linear.Linear" in message
    assert "perhaps a whole model" in message


def test_programs_of_torchscript_are_refused(tmp_path):
    # torch.jit.save is no longer there in every version; this is what marks its files
    data, storages = parts(save(tmp_path / "a.pt", {"a": torch.ones(1)}))
    path = archive(tmp_path / "b.pt", data, storages, more={"archive/constants.pkl": b""})
    assert "TorchScript program" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"GGUF" + bytes(50), "GGUF"),
        (bytes(600), "no file that torch.save wrote"),
        (b"x" * 257 + b"ustar" + bytes(300), "torch 0.1"),
        ((2).to_bytes(8, "little") + b"{}", "safetensors file; give it that ending"),
        (pickle.dumps({"a": 1}), "a Python pickle that torch.save did not write"),
        (pickle.dumps({"a": 1}, protocol=0), "no file that torch.save wrote"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, words):
    (tmp_path / "a.bin").write_bytes(content)
    assert words in refusal(tmp_path / "a.bin")


def test_files_that_cannot_be_opened(tmp_path):
    os.mkfifo(tmp_path / "a.bin")
    assert "not a regular file" in refusal(tmp_path / "a.bin")


# --- which files ------------------------------------------------------------------------------


def write_shards(folder: Path, count: int, *, index: bool = True, value: float = 0) -> None:
    weight_map = {}
    for number in range(1, count + 1):
        name = f"pytorch_model-{number:05d}-of-{count:05d}.bin"
        save(folder / name, {f"w{number}": torch.full((3,), value + number)})
        weight_map[f"w{number}"] = name
    if index:
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(text)


def save_safe(folder: Path, name: str, tensor: str) -> None:
    write_model(folder / "new", {tensor: torch.ones(1)})
    (folder / "new" / "model.safetensors").rename(folder / name)
    (folder / "new").rmdir()


@pytest.mark.parametrize("index", [True, False])
def test_shards_with_and_without_an_index(tmp_path, index):
    write_shards(tmp_path, 3, index=index)
    checkpoint = open_checkpoint(tmp_path, "x")
    assert sorted(checkpoint.tensors) == ["w1", "w2", "w3"]
    assert checkpoint.warnings == ()
    assert len(checkpoint.files) == 3
    if index:
        given_index = open_checkpoint(tmp_path / "pytorch_model.bin.index.json", "x")
        assert given_index.tensors == checkpoint.tensors
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    assert "1 weight file is missing" in refusal(tmp_path)
    assert "name the folder" in refusal(tmp_path / "pytorch_model-00001-of-00003.bin")


def test_stale_shards_are_not_read_but_named(tmp_path):
    write_shards(tmp_path, 3)
    write_shards(tmp_path, 2)
    checkpoint = open_checkpoint(tmp_path, "x")
    assert sorted(checkpoint.tensors) == ["w1", "w2"]
    assert codes(tmp_path) == ["stale-shards"]
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    assert "shards of different layouts (of 2, 3 files)" in refusal(tmp_path)


def test_safetensors_come_before_pickles_and_single_files_before_the_index(tmp_path):
    write_shards(tmp_path, 2)
    save(tmp_path / "pytorch_model.bin", {"single": torch.ones(1)})
    assert list(open_checkpoint(tmp_path, "x").tensors) == ["single"]
    assert codes(tmp_path) == ["two-layouts"]
    save_safe(tmp_path, "model.safetensors", "safe")
    assert list(open_checkpoint(tmp_path, "x").tensors) == ["safe"]
    assert codes(tmp_path) == []


def test_files_of_training_and_of_other_names(tmp_path):
    save(tmp_path / "pytorch_model.bin", {"a": torch.ones(1)})
    for name in ("training_args.bin", "optimizer.pt", "adapter_model.bin", "rng_state.pth"):
        (tmp_path / name).write_bytes(b"never read")
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    assert codes(tmp_path) == []
    checkpoint = open_checkpoint(tmp_path / "pytorch_model.bin", "x")
    assert checkpoint.config == {"model_type": "x"}, "it is the only model of its folder"
    (tmp_path / "other.bin").write_bytes(b"never read")
    save_safe(tmp_path, "consolidated.safetensors", "b")
    (warning,) = open_checkpoint(tmp_path, "x").warnings
    assert "not consolidated.safetensors, other.bin" in warning.message
    assert open_checkpoint(tmp_path / "pytorch_model.bin", "x").config is None


def test_an_index_of_pickles_names_pickles(tmp_path):
    save_safe(tmp_path, "a.safetensors", "a")
    text = json.dumps({"weight_map": {"a": "a.safetensors"}})
    (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert "do not end in .bin: a.safetensors" in refusal(tmp_path)


def test_index_and_shards_that_do_not_fit(tmp_path):
    write_shards(tmp_path, 2)
    save(tmp_path / "pytorch_model-00002-of-00002.bin", {"other": torch.ones(1)})
    assert "1 tensors are not in the file that the index names: w2" in refusal(tmp_path)


# --- whole merges -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base and two models in each of four layouts: `safetensors/base`, `zip/base` and so on."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(3)
    shapes = {"embed.w": (60, 33), "layers.0.w": (40, 31), "layers.1.w": (40, 31), "norm": (31,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = json.dumps({"model_type": "none"})
    for label in ("base", "a", "b"):
        state = {
            name: (tensor + 0.02 * torch.randn(tensor.shape, generator=generator)).bfloat16()
            for name, tensor in base.items()
        }
        write_model(folder / "safetensors" / label, state, config={"model_type": "none"})
        save(folder / "zip" / label / "pytorch_model.bin", state)
        save(folder / "legacy" / label / "pytorch_model.bin", state, legacy=True)
        save(folder / "file" / label / "weights.pt", {"state_dict": state, "epoch": 1})
        names = list(state)
        weight_map = {}
        for number, part in enumerate((names[:1], names[1:]), 1):
            name = f"pytorch_model-{number:05d}-of-00002.bin"
            save(folder / "shards" / label / name, {key: state[key] for key in part})
            weight_map |= dict.fromkeys(part, name)
        text = json.dumps({"weight_map": weight_map})
        (folder / "shards" / label / "pytorch_model.bin.index.json").write_text(text)
        for kind in ("zip", "legacy", "file", "shards"):
            (folder / kind / label / "config.json").write_text(config)
    return folder


@pytest.mark.parametrize("kind", ["zip", "legacy", "file", "shards"])
@pytest.mark.parametrize(
    "method",
    [
        {"merge_method": "linear"},
        {"merge_method": "ties", "parameters": {"density": 0.5, "weight": 1}},
        {"merge_method": "parameter_selection", "parameters": {"resample": "all"}},
        {"take": "base_model"},
    ],
    ids=lambda method: method.get("merge_method", "take"),
)
def test_merges_are_those_of_safetensors_bit_for_bit(tmp_path, models, kind, method):
    outputs = []
    for source in ("safetensors", kind):
        ending = "/weights.pt" if source == "file" else ""
        recipe = {**method, "base_model": f"base{ending}", "models": [f"a{ending}", f"b{ending}"]}
        recipe |= {"seed": 5, "silence": ["unread-entries"]} if source == "file" else {"seed": 5}
        path = models / source / f"{tmp_path.name}.yaml"
        path.write_text(json.dumps(recipe))
        merge(path, tmp_path / source)
        outputs.append((tmp_path / source / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]
    if "take" in method:
        base = read_model(models / "safetensors" / "base")
        assert {name: raw(tensor) for name, tensor in read_model(tmp_path / kind).items()} == {
            name: raw(tensor) for name, tensor in base.items()
        }


@LEGACY
def test_a_file_that_changes_is_noticed(tmp_path, legacy):
    path = save(tmp_path / "a.bin", {"a": torch.ones(4)}, legacy=legacy)
    header = read_pickled(path)
    content = path.read_bytes()
    for change in (content + b"x", content):
        path.write_bytes(change)
        os.utime(path, ns=(0, header.stamp.mtime_ns + 1))
        with pytest.raises(CheckpointError, match="has changed since"), ReadFiles() as files:
            files.read_into(header.tensors["a"], 0, memoryview(bytearray(16)))


@LEGACY
def test_a_thousand_tensors_open_in_well_under_a_second(tmp_path, legacy):
    state = {f"model.layers.{number}.mlp.weight": torch.ones(2, 2) for number in range(1000)}
    path = save(tmp_path / "pytorch_model.bin", state, legacy=legacy)
    start = time.process_time()
    assert len(open_checkpoint(path, "x").tensors) == 1000
    # 0.05 s of one core where it was measured
    assert time.process_time() - start < 0.8


def test_reading_loads_neither_torch_nor_pickle(tmp_path):
    save(tmp_path / "pytorch_model.bin", {"a": torch.ones(4)})
    code = (
        "import sys; from pathlib import Path; from mergeconf.checkpoint import open_checkpoint;"
        "open_checkpoint(Path(sys.argv[1]), 'x');"
        "print([name for name in ('torch', 'numpy', 'pickle', 'zipfile') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- large ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_entries_than_a_plain_zip_can_count(tmp_path):
    state = {f"t{number}": torch.tensor([float(number)]) for number in range(70_000)}
    path = save(tmp_path / "a.bin", state)
    assert read(read_pickled(path)) == wanted(state)


@pytest.mark.slow
def test_storages_beyond_four_gigabytes(tmp_path):
    large = torch.zeros(2**32 + 5, dtype=torch.uint8)
    large[-3:] = 7
    path = save(tmp_path / "a.bin", {"large": large, "after": torch.arange(3.0)})
    tensors = read_pickled(path).tensors
    assert tensors["large"].nbytes == 2**32 + 5
    with ReadFiles() as files:
        end, after = bytearray(4), bytearray(12)
        files.read_into(tensors["large"], 2**32 + 1, memoryview(end))
        files.read_into(tensors["after"], 0, memoryview(after))
    assert end == b"\0\7\7\7"
    assert after == raw(torch.arange(3.0))
