"""Hostile and damaged files of torch.save: nothing runs, nothing but a CheckpointError escapes."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mergeconf.checkpoint import open_checkpoint
from mergeconf.errors import CheckpointError
from mergeconf.storage.pickles_in import read_pickled
from mergeconf.storage.safetensors_in import Header
from mergeconf.storage.state_dict import is_allowed
from mergeconf.storage.unpickle import MAX_INSTRUCTIONS, UnsoundPickle, unpickle
from support.pickled import archive, parts, read, saved, wanted

STATE = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.arange(5, dtype=torch.int16))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pickled(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable(), "a name in a file must not reach the terminal as it is"
    assert len(message) < 2000
    return message


def tried(path: Path, content: bytes) -> Header | None:
    """Return what is read of a file, or None where it is refused."""
    path.write_bytes(content)
    try:
        header = read_pickled(path)
    except CheckpointError as error:
        assert error.problems
        return None
    for tensor in header.tensors.values():
        assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(content)
        assert tensor.nbytes == tensor.numel * tensor.dtype.itemsize
    return header


# --- code -------------------------------------------------------------------------------------


def text(value: bytes) -> bytes:
    """Return the instruction that makes a text."""
    return b"X" + struct.pack("<I", len(value)) + value


class Wants:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Builds:
    """Pickles as an object whose attributes a call makes."""

    def __init__(self, attack) -> None:
        self.attack = attack


def attacks(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make a file where Python's own unpickler reads them, and what they name."""
    command = f"touch '{marker}'"
    code = f"open({str(marker)!r}, 'w').close()"
    system = Wants(os.system, command)
    found = {}
    for protocol in range(2, 6):
        found[f"system {protocol}"] = (pickle.dumps(system, protocol), f"{os.name}.system")
        found[f"eval {protocol}"] = (pickle.dumps(Wants(eval, code), protocol), "builtins.eval")
    for name, value in {
        "exec": Wants(exec, code),
        "mkdir": Wants(os.mkdir, str(marker)),
        "in a list": [1, [system]],
        "as a tensor": {"w": system},
        "as a key": [(system,)],
        "nested state dict": {"state_dict": {"w": system}},
        "beside a state dict": {"state_dict": {}, "optimizer": system},
        "in a size": Wants(torch.Size, system),
        "in a dict's pairs": Wants(OrderedDict, [("a", system)]),
        "as attributes": Builds(system),
        "through getattr": Wants(getattr(builtins, "exec"), code),  # noqa: B009
        "as the argument of a tensor": Wants(torch._utils._rebuild_tensor, system, 0, (), ()),
    }.items():
        found[name] = (pickle.dumps(value, 2), "")
    found["by an instance"] = (b"(" + text(command.encode()) + b"ios\nsystem\n.", "os.system")
    found["protocol 0"] = (b"cos\nsystem\n(S" + repr(command).encode() + b"\ntR.", "os.system")
    found["new object"] = (
        b"\x80\x02cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n]"
        + text(command.encode())
        + b"at\x81tR.",
        "builtins.map, os.system",
    )
    found["stack global"] = (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text(command.encode()) + b"\x85R.",
        "os.system",
    )
    found["then damaged"] = (pickle.dumps(system, 2)[:-1] + b"\xff", f"{os.name}.system")
    found["then cut"] = (pickle.dumps(system, 2)[:-1], f"{os.name}.system")
    return found


def files_with(attack: bytes) -> dict[str, bytes]:
    """Files that hold a pickle wherever a pickle can stand."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", attack)
        file.writestr("a/data/0", bytes(24))
    files = {"zip": buffer.getvalue(), "bare": attack}
    legacy = saved(STATE, legacy=True)
    for number, start in enumerate([0, *ends_of_pickles(legacy)[:4]]):
        files[f"legacy {number}"] = legacy[:start] + attack + legacy[start:]
    return files


def ends_of_pickles(content: bytes) -> list[int]:
    """Return where each of the five pickles of an old file ends."""
    ends = [0]
    for _ in range(5):
        ends.append(unpickle(content, is_allowed, ends[-1]).end)
    return ends[1:]


NAMES = sorted(attacks(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_and_what_would_is_named(tmp_path, name):
    marker = tmp_path / "it ran"
    attack, named = attacks(marker)[name]
    for where, content in files_with(attack).items():
        path = tmp_path / f"{where}.bin"
        path.write_bytes(content)
        message = refusal(path)
        assert not marker.exists(), (name, where)
        if attack.startswith(b"\x80") or where == "zip":
            assert "wants to run code" in message, (where, message)
            assert named in message
            assert "as safetensors" in message
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "zip.bin", "x")
    assert not marker.exists()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("then")])
def test_the_attacks_are_real(tmp_path, name):
    marker = tmp_path / "it ran"
    attack, _ = attacks(marker)[name]
    try:  # what follows the call may fail: by then it has been made
        pickle.loads(attack)
    except Exception as error:
        print(error)
    assert marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("argparse", "Namespace"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch", "load"),
        ("torch", "hub.load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_import_dotted_name"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections.OrderedDict", ""),
        ("copyreg", "_reconstructor"),
        ("", ""),
        ("\x1b[31m", "red"),
    ],
)
@pytest.mark.parametrize("form", [b"c%s\n%s\n)R.", b"\x8c%c%s\x8c%c%s\x93)R."])
def test_names_that_no_state_dict_needs(tmp_path, module, name, form):
    values = (module.encode(), name.encode())
    if form.startswith(b"\x8c"):
        values = (len(values[0]), values[0], len(values[1]), values[1])
    message = refusal(archive(tmp_path / "a.bin", b"\x80\x04" + form % values))
    assert "wants to run code" in message
    if module.isprintable():
        assert f"{module}.{name}" in message


# --- bombs ------------------------------------------------------------------------------------


def nested_tuples(depth: int) -> bytes:
    # each holds the one before twice: Python's own hash of it takes 2^depth steps
    return b")" + b"".join(b"q\x000h\x00h\x00\x86" for _ in range(depth))


STORAGE = (
    b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x06tQ"
)
DEPTH = 20_000
LIMIT = 200_000
"""Instructions that are carried out in these tests."""
BOMBS = {
    "a place in the memo of 2^32": b"}r\xff\xff\xff\xff.",
    "text of 2^60 bytes": b"\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "bytes of 2^60 bytes": b"\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "a byte array of 2^60 bytes": b"\x96" + struct.pack("<Q", 2**60) + b"x.",
    "text of 2^31 bytes": b"X\xff\xff\xff\x7fx.",
    "a frame of 2^60 bytes": b"\x95" + struct.pack("<Q", 2**60) + b"x.",
    "a number of 2^31 bytes": b"\x8b\xff\xff\xff\x7f1.",
    "a number of 256 bytes": b"\x8b\x00\x01\x00\x00" + b"\x01" * 256 + b".",
    "a number of negative length": b"\x8b\xff\xff\xff\xff.",
    "tuples in tuples as a key": b"}" + nested_tuples(60) + b"Ns.",
    "tuples in tuples as a name": b"}" + nested_tuples(60) + b"q\x01h\x01s.",
    "tuples in tuples as a member of a set": b"\x8f(" + nested_tuples(60) + b"\x90.",
    "tuples in tuples as a storage": nested_tuples(60) + b"Q.",
    "tuples in tuples beside a tensor": b"}(" + text(b"a") + nested_tuples(60) + text(b"b")
    + nested_tuples(60) + b"u.",
    "a list in itself": b"}" + text(b"a") + b"]q\x00h\x00as.",
    "a dict in itself": b"}q\x00" + text(b"a") + b"h\x00s.",
    "lists in each other": b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
    "calls in each other": b"ctorch\nSize\nq\x00)R" + b"q\x010h\x00h\x01\x85R" * DEPTH + b".",
    "parameters in each other": b"}" + text(b"a") + b"ctorch._utils\n_rebuild_parameter\nq\x00)R"
    + b"q\x010h\x00h\x01\x89N\x87R" * DEPTH + b"s.",
    "a list that is copied and copied": b"(" + b"NN\x86" * 2000 + b"\x91q\x000"
    + b"ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R0" * 10_000 + b"N.",
    "one list under many names": b"}q\x00(" + b"N" * DEPTH + b"\x91q\x020h\x00("
    + b"".join(text(b"%d" % number) + b"h\x02" for number in range(DEPTH)) + b"u.",
    "more instructions than are carried out": b"N0" * (LIMIT // 2) + b"N.",
    "more marks than are carried out": b"(" * (LIMIT + 1),
    "a name of a million letters": b"c" + b"x" * 1_000_000 + b"\ny\n.",
    "a name without an end": b"cos",
    "an entry of a long name": b"}(" + text(b"x" * 100_000) + b"N" + text(b"a") + b"N" + b"u.",
    "an attribute of a function":
    b"ctorch._utils\n_rebuild_tensor_v2\n}" + text(b"__code__") + b"Nsb.",
    "an attribute of a storage": STORAGE + b"}b.",
    "an empty stack": b"0.",
    "a value below a mark": b"N(0.",
    "a tuple from below a mark": b"NN(\x86.",
    "no mark": b"Nt.",
    "what was never stored": b"h\x07.",
    "a call of a text": text(b"os.system") + b")R.",
    "a call with a list": b"ctorch\nSize\n]R.",
    "an odd number of entries": b"}(Nu.",
    "entries of a list": b"](NNu.",
    "members of a dict": b"}(NNe.",
    "text that is not UTF-8": b"X\x01\x00\x00\x00\xff.",
    "protocol 9": b"\x80\x09N.",
    "a registered extension": b"\x82\x01.",
    "a buffer outside": b"\x97.",
    "nothing": b"",
}  # fmt: skip
HARMLESS = (
    "a dict in itself", "a list in itself", "an entry of a long name", "one list under many names",
    "tuples in tuples beside a tensor", "tuples in tuples as a key", "tuples in tuples as a name",
    "a place in the memo of 2^32",
)  # fmt: skip
"""Those that describe something odd, without a tensor, that is left out."""


@pytest.fixture
def limit(monkeypatch) -> None:
    monkeypatch.setattr("mergeconf.storage.unpickle.MAX_INSTRUCTIONS", LIMIT)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_do_no_harm(tmp_path, name, legacy):
    path = tmp_path / "a.bin"
    if legacy:
        content = saved(STATE, legacy=True)
        path.write_bytes(content[: ends_of_pickles(content)[2]] + BOMBS[name])
    else:
        archive(path, BOMBS[name], {"0": bytes(24)})
    start = time.process_time()
    if legacy or name not in HARMLESS:
        refusal(path)
    else:
        assert not read_pickled(path).tensors
    assert time.process_time() - start < 10  # it is 0.2 s at most where it was measured


@pytest.mark.slow
@pytest.mark.parametrize("instruction", [b"]", b"}", b"(", b")", b"N0", b"]0", b"]q\x00"])
def test_the_worst_that_fits_into_the_limits(tmp_path, instruction):
    times = MAX_INSTRUCTIONS + 1
    path = archive(tmp_path / "a.bin", instruction * times)
    start = time.process_time()
    assert "instructions" in refusal(path)
    assert time.process_time() - start < 60
    tracemalloc.start()
    try:
        refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 30
    finally:
        tracemalloc.stop()


def test_a_pickle_over_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("mergeconf.storage.pickles_in.MAX_PICKLE_BYTES", 100)
    monkeypatch.setattr("mergeconf.storage.pickles_in._WINDOW", 100)
    (tmp_path / "a.bin").write_bytes(saved(STATE))
    assert "over the limit of 100 B" in refusal(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(saved(STATE, legacy=True))
    assert "more than 100 B" in refusal(tmp_path / "a.bin")


def test_an_old_file_whose_pickle_is_longer_than_the_first_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mergeconf.storage.pickles_in._WINDOW", 7)
    (tmp_path / "a.bin").write_bytes(saved(STATE, legacy=True))
    assert read(read_pickled(tmp_path / "a.bin")) == wanted(STATE)


# --- tensors and storages that lie ------------------------------------------------------------


def a_tensor(offset: bytes, shape: bytes, strides: bytes, storage: bytes = STORAGE) -> bytes:
    """A state dict of one tensor."""
    return (
        b"\x80\x02}" + text(b"w") + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage + offset + shape + strides + b"\x89}tRs."
    )  # fmt: skip


LARGE = b"\x8a\x09" + (2**64).to_bytes(9, "little")
LIES = {
    "past the end": (b"K\x01", b"K\x06\x85", b"K\x01\x85", STORAGE, "reaches beyond"),
    "longer": (b"K\x00", b"K\x07\x85", b"K\x01\x85", STORAGE, "reaches beyond"),
    "a far offset": (b"J\xff\xff\xff\x7f", b"K\x01\x85", b"K\x01\x85", STORAGE, "reaches beyond"),
    "a negative offset": (b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85", STORAGE, "no form"),
    "a negative size": (b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85", STORAGE, "no form"),
    "a size of 2^64": (b"K\x00", LARGE + b"\x85", b"K\x01\x85", STORAGE, "no form"),
    "sizes whose product is over 2^63": (
        b"K\x00", b"K\x00J\xff\xff\xff\x7fq\x05h\x05\x87" + b"0" + b"(K\x00h\x05h\x05h\x05t",
        b"(K\x01K\x01K\x01K\x01t", STORAGE, "reaches beyond"),
    "a truth value as a size": (b"K\x00", b"\x88\x85", b"K\x01\x85", STORAGE, "no form"),
    "fewer strides": (b"K\x00", b"K\x02K\x03\x86", b"K\x01\x85", STORAGE, "no form"),
    "65 dimensions": (b"K\x00", b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x01" * 65 + b"t", STORAGE,
                      "no form"),
    "a stride of 0": (b"K\x00", b"K\x06\x85", b"K\x00\x85", STORAGE, "not contiguous"),
    "no storage": (b"K\x00", b"K\x06\x85", b"K\x01\x85", b"N", "no form"),
    "a storage that is absent": (b"K\x00", b"K\x06\x85", b"K\x01\x85",
                                 STORAGE.replace(text(b"0"), text(b"1")), "lacks storage '1'"),
    "a storage outside": (b"K\x00", b"K\x06\x85", b"K\x01\x85",
                          STORAGE.replace(text(b"0"), text(b"../data.pkl")), "lacks storage"),
    "a storage that says too much": (b"K\x00", b"K\x06\x85", b"K\x01\x85",
                                     STORAGE.replace(b"K\x06", b"K\x07"), "24 bytes for storage"),
    "a storage that says too little": (b"K\x00", b"K\x04\x85", b"K\x01\x85",
                                       STORAGE.replace(b"K\x06", b"K\x04"), "24 bytes for storage"),
    "a storage of a negative size": (b"K\x00", b"K\x06\x85", b"K\x01\x85",
                                     STORAGE.replace(b"K\x06", b"J\xff\xff\xff\xff"), "no storage"),
    "a storage of a function": (b"K\x00", b"K\x06\x85", b"K\x01\x85",
                                STORAGE.replace(b"torch\nFloatStorage", b"torch\nSize"),
                                "no storage"),
    "a module for a storage": (b"K\x00", b"K\x06\x85", b"K\x01\x85",
                               STORAGE.replace(text(b"storage"), text(b"module")), "no storage"),
    "one storage of two formats": (
        b"K\x00", b"K\x06\x85", b"K\x01\x85",
        STORAGE.replace(b"FloatStorage", b"IntStorage") + b"0" + STORAGE, "in two ways"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LIES))
def test_tensors_and_storages_that_lie(tmp_path, name):
    offset, shape, strides, storage, words = LIES[name]
    path = archive(
        tmp_path / "a.bin", a_tensor(offset, shape, strides, storage), {"0": bytes(range(24))}
    )
    assert words in refusal(path)


def test_the_tensor_that_the_lies_are_made_from_is_sound(tmp_path):
    data = a_tensor(b"K\x01", b"K\x05\x85", b"K\x01\x85")
    path = archive(tmp_path / "a.bin", data, {"0": bytes(range(24))})
    assert read(read_pickled(path)) == wanted(torch.load(path, weights_only=True))


def test_a_name_twice(tmp_path):
    data = a_tensor(b"K\x01", b"K\x05\x85", b"K\x01\x85")
    data = data.replace(b"}" + text(b"w"), b"}" + text(b"w") + b"Ns" + text(b"w"), 1)
    assert "holds 'w' twice" in refusal(archive(tmp_path / "a.bin", data, {"0": bytes(24)}))


# --- zip archives -----------------------------------------------------------------------------


def patched(content: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in content
    return content.replace(old, new, count)


@pytest.fixture
def sound(tmp_path) -> Path:
    """An archive of Python's writer, and of no tensor that is at risk."""
    (tmp_path / "torch.bin").write_bytes(saved(STATE))
    path = archive(tmp_path / "sound.bin", *parts(tmp_path / "torch.bin"))
    assert read(read_pickled(path)) == wanted(STATE)
    return path


def test_compressed_entries_are_refused(tmp_path, sound):
    path = archive(tmp_path / "a.bin", *parts(sound), compression=zipfile.ZIP_DEFLATED)
    message = refusal(path)
    assert "is compressed, which torch.save never does" in message
    assert "without compression" in message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_a_name_are_refused(tmp_path, sound):
    with zipfile.ZipFile(sound, "a") as file:
        file.writestr("archive/data/0", bytes(24))
    assert "two entries called 'archive/data/0'" in refusal(sound)


def test_entries_that_overlap_are_refused(sound):
    content = bytearray(sound.read_bytes())
    with zipfile.ZipFile(sound) as file:
        first, second = file.getinfo("archive/data/0"), file.getinfo("archive/data/1")
    at = content.rindex(b"archive/data/1")
    struct.pack_into("<L", content, at - 4, first.header_offset)
    sound.write_bytes(content)
    assert "archive/data/" in refusal(sound)
    # an entry that holds another whole, its own header and all
    struct.pack_into("<L", content, at - 4, second.header_offset)
    at = content.rindex(b"archive/data/0")
    size = second.header_offset - first.header_offset
    struct.pack_into("<2L", content, at - 26, size, size)
    at = content.index(b"archive/data/0")
    struct.pack_into("<2L", content, at - 12, size, size)
    sound.write_bytes(content)
    assert "overlap: 'archive/data/0' and 'archive/data/1'" in refusal(sound)


@pytest.mark.parametrize("where", ["directory", "header"])
def test_sizes_that_differ_are_refused(sound, where):
    content = bytearray(sound.read_bytes())
    name = b"archive/data/0"
    at = content.index(name) - 12 if where == "header" else content.rindex(name) - 26
    struct.pack_into("<2L", content, at, 20, 20)
    sound.write_bytes(content)
    assert "size that differs from the zip directory" in refusal(sound)


def test_names_that_differ_are_refused(sound):
    content = sound.read_bytes()
    sound.write_bytes(patched(content, b"archive/data/1", b"archive/data/2", 1))
    assert "has a header that differs from the zip directory" in refusal(sound)


def test_encrypted_entries_are_refused(sound):
    content = bytearray(sound.read_bytes())
    content[content.rindex(b"archive/data/0") - 38] |= 1
    sound.write_bytes(content)
    assert "is encrypted" in refusal(sound)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content + b"x", "bytes after the end of its zip archive"),
        (lambda content: content[:-1], "zip archive"),
        (lambda content: b"PK\x03\x04" + content, "damaged zip directory"),
        (lambda content: content[:200], "is truncated"),
        (lambda content: b"PK\x03\x04", "is truncated"),
        (lambda content: b"PK\x03\x04" + bytes(18) + b"PK\x05\x06" + bytes(18), "directory"),
        (lambda content: content[: content.rindex(b"PK\x05\x06")], "is truncated"),
    ],
)
@pytest.mark.parametrize("writer", ["torch", "python"])
def test_archives_that_are_cut_or_padded(tmp_path, sound, change, words, writer):
    content = sound.read_bytes() if writer == "python" else saved(STATE)
    (tmp_path / "a.bin").write_bytes(change(content))
    assert words in refusal(tmp_path / "a.bin")


def test_a_comment_at_the_end_is_no_harm(sound):
    with zipfile.ZipFile(sound, "a") as file:
        file.comment = b"a comment"
    assert read(read_pickled(sound)) == wanted(STATE)


def test_zip64_without_need_is_read(tmp_path, sound):
    data, storages = parts(sound)
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {
            "data.pkl": data,
            **{f"data/{k}": v for k, v in storages.items()},
        }.items():
            with file.open(f"archive/{name}", "w", force_zip64=True) as entry:
                entry.write(content)
    assert read(read_pickled(path)) == wanted(STATE)


def test_zip64_sizes_that_are_missing_or_false(sound):
    content = bytearray(sound.read_bytes())
    at = content.rindex(b"archive/data/0")
    struct.pack_into("<2L", content, at - 26, 0xFFFFFFFF, 0xFFFFFFFF)
    sound.write_bytes(content)
    assert "lacks its ZIP64 sizes" in refusal(sound)


def test_an_archive_without_its_pickle(tmp_path):
    assert "it has no data.pkl" in refusal(archive(tmp_path / "a.bin", None))
    assert "data.pkl" in refusal(archive(tmp_path / "b.bin", None, more={"data.pkl": b"N."}))
    with zipfile.ZipFile(tmp_path / "c.bin", "w"):
        pass
    assert "no file that torch.save wrote" in refusal(tmp_path / "c.bin")


@pytest.mark.parametrize("order", [b"big", b"", b"little ", b"\x1b[31m", b"x" * 10_000])
def test_byte_orders_other_than_little_are_refused(tmp_path, order):
    (tmp_path / "torch.bin").write_bytes(saved(STATE))
    data, storages = parts(tmp_path / "torch.bin")
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as file:
        file.writestr("x/data.pkl", data)
        file.writestr("x/byteorder", order)
        for key, content in storages.items():
            file.writestr(f"x/data/{key}", content)
    message = refusal(tmp_path / "a.bin")
    assert "byte order" in message
    assert "only little is read" in message


def test_big_endian_files_of_old_are_refused(tmp_path):
    content = saved(STATE, legacy=True)
    key = text(b"little_endian") + b"q\x02"
    (tmp_path / "a.bin").write_bytes(patched(content, key + b"\x88", key + b"\x89"))
    assert "byte order 'big'" in refusal(tmp_path / "a.bin")


# --- old files --------------------------------------------------------------------------------


def test_old_files_whose_storages_do_not_fit(tmp_path):
    content = saved({"a": torch.arange(6.0)}, legacy=True)
    path = tmp_path / "a.bin"
    for change, words in (
        (content + b"x", "1 bytes after its last storage"),
        (content[:-1], "it ends within storage"),
        (content[:-32] + (7).to_bytes(8, "little") + content[-24:], "another size for storage"),
        (patched(content, b"M\xe9\x03.", b"M\xea\x03.", 1), "version of torch's format"),
    ):
        path.write_bytes(change)
        assert words in refusal(path)
    keys = ends_of_pickles(content)
    path.write_bytes(content[: keys[3]] + b"\x80\x02]." + content[keys[4] :])
    assert "other storages than its pickle refers to" in refusal(path)
    for wrong in (b"N.", b"]Na.", b"]" * 100_000 + b"a" * 99_999 + b".", b"]q\x00h\x00a."):
        path.write_bytes(content[: keys[3]] + b"\x80\x02" + wrong + content[keys[4] :])
        assert "no list of its storages" in refusal(path)


def test_old_storages_that_are_views_are_refused(tmp_path):
    content = saved({"a": torch.arange(6.0)}, legacy=True)
    body = content.rindex(b"NtQ") if b"NtQ" in content else content.rindex(b"Nt")
    view = b"(" + text(b"1") + b"K\x00K\x06t"
    (tmp_path / "a.bin").write_bytes(content[:body] + view + content[body + 1 :])
    assert "views of others" in refusal(tmp_path / "a.bin")


# --- damage -----------------------------------------------------------------------------------

SMALL = {"a": torch.arange(3.0)}
FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@FORMATS
def test_files_that_end_early_anywhere(tmp_path, legacy):
    path = tmp_path / "a.bin"
    path.write_bytes(saved(SMALL, legacy=legacy))
    for end in reversed(range(path.stat().st_size)):
        os.truncate(path, end)
        with pytest.raises(CheckpointError):
            read_pickled(path)


@FORMATS
def test_every_byte_wrong(tmp_path, legacy):
    content = saved(SMALL, legacy=legacy)
    path = tmp_path / "a.bin"
    taken = 0
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8 if position % 3 else 0xFF
        taken += tried(path, bytes(changed)) is not None
    assert 0 < taken < len(content)


@FORMATS
def test_what_is_taken_of_damaged_files_is_what_torch_takes(tmp_path, legacy):
    content = saved(STATE, legacy=legacy)
    path = tmp_path / "a.bin"
    compared = 0
    start = content.index(b"\x80\x02ccollections")
    for position in range(start, min(start + 400, len(content))):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 7
        header = tried(path, bytes(changed))
        if header is None:
            continue
        try:
            theirs = torch.load(io.BytesIO(bytes(changed)), weights_only=True)
        except Exception:  # torch is stricter in places, and its errors are of many kinds
            continue
        theirs = {name: value for name, value in theirs.items() if isinstance(value, torch.Tensor)}
        assert read(header) == wanted(theirs), position
        compared += 1
    assert compared > 10


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=6)), min_size=1, max_size=6),
    st.integers(0, 3),
)
@settings(max_examples=100)
def test_random_changes(tmp_path_factory, legacy, changes, cut):
    content = bytearray(saved(STATE, legacy=legacy))
    for position, new in changes:
        position %= len(content)
        content[position : position + max(0, len(new) - cut)] = new
    tried(tmp_path_factory.getbasetemp() / "random.bin", bytes(content))


CODES = st.sampled_from(
    [
        *b"N\x88\x89)]\x8f}(0t\x85\x86\x87\x91ae\x90sub\x93R\x81Q\x94.",
        *(bytes([code, argument]) for code in b"KqhU\x8a" for argument in range(4)),
        text(b"a"), text(b"storage"), text(b"0"), text(b"torch"), text(b"cpu"), STORAGE,
        b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n",
        b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nTensor\n", b"ctorch\nuint16\n",
        b"ctorch\nFloatStorage\n", b"(K\x00K\x06\x85K\x01\x85\x89}t", b"K\x06\x85",
    ]
)  # fmt: skip


@given(st.lists(CODES, max_size=30))
@example([b"(", b"]", b"."])
@settings(max_examples=150)
def test_random_programs(tmp_path_factory, codes):
    program = b"".join(bytes([code]) if isinstance(code, int) else code for code in codes) + b"."
    path = tmp_path_factory.getbasetemp() / "program.bin"
    archive(path, b"\x80\x02" + program, {"0": bytes(24)})
    tried(path, path.read_bytes())
    body = b"}" + text(b"w") + program[:-1] + b"s."
    archive(path, b"\x80\x02" + body, {"0": bytes(24)})
    tried(path, path.read_bytes())


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_random_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.bin"
    for start in (b"", b"PK\x03\x04", b"\x80\x02"):
        tried(path, start + content)
    with contextlib.suppress(UnsoundPickle):
        unpickle(content, is_allowed)


@pytest.mark.slow
def test_many_values_of_every_byte_of_the_pickle(tmp_path):
    (tmp_path / "a.bin").write_bytes(saved(STATE))
    data, storages = parts(tmp_path / "a.bin")
    for position in range(len(data)):
        for value in range(position % 5, 256, 5):
            changed = data[:position] + bytes([value]) + data[position + 1 :]
            path = archive(tmp_path / "b.bin", changed, storages)
            tried(path, path.read_bytes())
