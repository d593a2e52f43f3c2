"""Opening models: every arrangement of files that loaders read, and what is said of the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergeconf.checkpoint import open_checkpoint
from mergeconf.dtypes import DType
from mergeconf.errors import CheckpointError
from mergeconf.storage.layout import OutputTensor, plan_layout

NAMES = ["a.0.w", "a.1.w", "a.2.w", "norm"]


def write_file(path: Path, names=NAMES, value: int = 0) -> Path:
    """Write a safetensors file of small tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [OutputTensor(name, DType.bfloat16, (2, 3)) for name in names]
    (file,) = plan_layout(tensors, 10**9).files
    path.write_bytes(file.header + bytes([value]) * (file.size - len(file.header)))
    return path


def write_shards(folder: Path, count: int = 2, names=NAMES, index: bool = True) -> Path:
    """Write shards, and an index over them."""
    weight_map = {}
    for number in range(count):
        part = names[number::count]
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        write_file(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    if index:
        write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object, name: str = "model") -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(content))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, "x")
    return str(caught.value)


def codes(path: Path) -> list[str]:
    return [problem.code for problem in open_checkpoint(path, "x").warnings]


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model", "diffusion_pytorch_model", "sdxl-turbo", "model-00001-of-00001", "my.model.fp16"],
)
def test_a_single_file_of_any_name(tmp_path, name):
    path = write_file(tmp_path / f"{name}.safetensors")
    for given in (tmp_path, path):
        checkpoint = open_checkpoint(given, "x")
        assert sorted(checkpoint.tensors) == NAMES
        assert checkpoint.folder == tmp_path
        assert checkpoint.config is None
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.warnings == ()


@pytest.mark.parametrize("index", [True, False])
def test_shards_with_and_without_an_index(tmp_path, index):
    write_shards(tmp_path, 3, index=index)
    checkpoint = open_checkpoint(tmp_path, "x")
    assert sorted(checkpoint.tensors) == NAMES
    assert [tensor.file.name[6:11] for tensor in checkpoint.tensors.values()] == [
        "00001", "00001", "00002", "00003",
    ]  # fmt: skip
    assert len(checkpoint.files) == 3
    assert checkpoint.warnings == ()
    if index:
        by_index = open_checkpoint(tmp_path / "model.safetensors.index.json", "x")
        assert by_index.tensors == checkpoint.tensors


def test_single_file_before_index_as_transformers_does(tmp_path):
    write_shards(tmp_path)
    write_file(tmp_path / "model.safetensors", ["only"])
    checkpoint = open_checkpoint(tmp_path, "x")
    assert list(checkpoint.tensors) == ["only"]
    assert [problem.code for problem in checkpoint.warnings] == ["two-layouts"]


def test_index_before_single_file_as_diffusers_does(tmp_path):
    stem = "diffusion_pytorch_model"
    write_file(tmp_path / f"{stem}.safetensors", ["only"])
    write_file(tmp_path / f"{stem}-00001-of-00001.safetensors", ["a"])
    write_index(tmp_path, {"a": f"{stem}-00001-of-00001.safetensors"}, stem)
    assert list(open_checkpoint(tmp_path, "x").tensors) == ["a"]
    assert codes(tmp_path) == ["stale-shards"]


def test_an_index_over_the_single_file_is_no_second_layout(tmp_path):
    write_file(tmp_path / "model.safetensors", ["a"])
    write_index(tmp_path, {"a": "model.safetensors"})
    assert codes(tmp_path) == []


def test_stale_shards_are_not_read_but_named(tmp_path):
    write_shards(tmp_path, 3, [*NAMES, "old"])
    write_shards(tmp_path, 2)
    checkpoint = open_checkpoint(tmp_path, "x")
    assert sorted(checkpoint.tensors) == NAMES
    assert {tensor.file.name[15:20] for tensor in checkpoint.tensors.values()} == {"00002"}
    (warning,) = checkpoint.warnings
    assert warning.code == "stale-shards"
    assert "model-00003-of-00003.safetensors" in str(warning)


def test_tensors_that_the_index_does_not_know_are_named(tmp_path):
    write_file(tmp_path / "w.safetensors", ["a", "b"])
    write_index(tmp_path, {"a": "w.safetensors"})
    assert list(open_checkpoint(tmp_path, "x").tensors) == ["a"]
    assert codes(tmp_path) == ["unindexed-tensors"]


def test_other_weights_beside_the_model_are_named(tmp_path):
    write_shards(tmp_path)
    write_file(tmp_path / "consolidated.safetensors")
    write_file(tmp_path / "adapter_model.safetensors")
    assert codes(tmp_path) == ["unread-weights"]


def test_the_hubs_cache_of_links_is_read_whole(tmp_path):
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    write_file(blobs / "1.safetensors").rename(blobs / "1")
    (blobs / "2").write_text("{}")
    for blob, name in (("1", "model.safetensors"), ("2", "config.json")):
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    checkpoint = open_checkpoint(snapshot, "x")
    assert sorted(checkpoint.tensors) == NAMES
    assert [sidecar.name for sidecar in checkpoint.sidecars] == ["config.json"]
    assert checkpoint.warnings == ()


def test_fingerprint_follows_the_weights_not_the_folder(tmp_path):
    write_shards(tmp_path / "a")
    first = open_checkpoint(tmp_path / "a", "x").fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_checkpoint(tmp_path / "b", "y").fingerprint == first
    os.utime(tmp_path / "b" / "model-00002-of-00002.safetensors", ns=(0, 1))
    assert open_checkpoint(tmp_path / "b", "x").fingerprint != first


# --- what is refused --------------------------------------------------------------------------


def test_all_missing_shards_are_listed(tmp_path):
    write_shards(tmp_path / "i", 4)
    write_shards(tmp_path / "n", 4, index=False)
    for folder in (tmp_path / "i", tmp_path / "n"):
        for number in (2, 4):
            (folder / f"model-{number:05d}-of-00004.safetensors").unlink()
        message = refusal(folder)
        assert "2 weight files are missing" in message
        assert "model-00002-of-00004.safetensors, model-00004-of-00004.safetensors" in message


def test_all_damaged_shards_are_listed(tmp_path):
    write_shards(tmp_path, 3)
    for number in (1, 3):
        path = tmp_path / f"model-{number:05d}-of-00003.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path, "x")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "name", ["../w.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "C:x", "a\0"]
)
def test_an_index_cannot_leave_its_folder(tmp_path, name):
    write_file(tmp_path / "w.safetensors")
    write_index(tmp_path / "m", {"a": name})
    message = refusal(tmp_path / "m")
    assert "outside its folder" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no sound JSON"),
        ("[" * 100_000, "no sound JSON"),
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "not a name"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "do not end in .safetensors"),
    ],
)
def test_broken_indexes(tmp_path, content, words):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert words in refusal(tmp_path)


def test_index_and_shards_that_do_not_fit(tmp_path):
    write_file(tmp_path / "a.safetensors", ["x", "y"])
    write_file(tmp_path / "b.safetensors", ["z"])
    write_index(tmp_path, {"x": "a.safetensors", "y": "b.safetensors", "q": "b.safetensors"})
    message = refusal(tmp_path)
    assert "2 tensors are not in the file that the index names" in message
    assert "y (in b.safetensors)" in message


def test_a_tensor_in_two_shards(tmp_path):
    for number in (1, 2):
        write_file(tmp_path / f"model-0000{number}-of-00002.safetensors", ["same", f"{number}"])
    message = refusal(tmp_path)
    assert "same tensor is in two files" in message
    assert "model-00001-of-00002.safetensors and model-00002-of-00002.safetensors" in message


def test_shards_of_two_layouts_without_an_index(tmp_path):
    write_shards(tmp_path, 2, index=False)
    write_shards(tmp_path, 3, index=False)
    assert "of 2, 3 files" in refusal(tmp_path)


def test_one_shard_is_no_model(tmp_path):
    write_shards(tmp_path, 2)
    message = refusal(tmp_path / "model-00001-of-00002.safetensors")
    assert f"name the folder: {tmp_path}" in message


def test_several_models_in_one_folder(tmp_path):
    for name in ("one", "two"):
        write_file(tmp_path / f"{name}.safetensors")
    assert "one.safetensors, two.safetensors; name one" in refusal(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "one.safetensors", "x")
    assert checkpoint.sidecars == ()  # whose they would be is unknown


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "is empty"),
        (["pytorch_model.bin", "config.json"], "pytorch_model.bin: is empty"),
        (["model-00001-of-00003.bin"], "pickles of other names"),
        (["model.pt"], "name that file"),
        (["a.Q4_K_M.gguf"], "holds GGUF files"),
        (["tf_model.h5"], "TensorFlow"),
        (["config.json", "training_args.bin"], "an interrupted download"),
        (["unet/a.safetensors", "vae/a.safetensors", "model_index.json"], "diffusers pipeline"),
        (["sub/model.safetensors"], "did you mean"),
        (["adapter_model.safetensors", "adapter_config.json"], "adapter"),
        (["adapter_model.bin", "adapter_config.json"], "adapter"),
        (["notes.md"], "holds no weights, only notes.md"),
    ],
)
def test_folders_without_a_model(tmp_path, files, words):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    message = refusal(folder)
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.bin", "is empty"), ("a.pkl", "pickle"), ("a.gguf", "GGUF"), ("a.yaml", "no weight file")],
)
def test_files_that_are_no_model(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"")
    assert words in refusal(tmp_path / name)


def test_paths_that_do_not_exist(tmp_path):
    (tmp_path / "llama-3-8b").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    assert "did you mean" in refusal(tmp_path / "llama3-8b")
    assert "llama-3-8b" in refusal(tmp_path / "llama3-8b")
    assert "holds llama-3-8b" in refusal(tmp_path / "zzz")
    assert "neither does" in refusal(tmp_path / "none" / "llama")
    assert "link" in refusal(tmp_path / "link")
    assert "does not exist" in refusal(Path("a\0b"))


def test_a_model_without_tensors(tmp_path):
    write_file(tmp_path / "model.safetensors", [])
    assert "holds no tensor" in refusal(tmp_path)


# --- config and small files -------------------------------------------------------------------


def test_config_is_read_leniently_and_broken_json_is_a_problem(tmp_path):
    write_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": NaN, "b": 1, "b": 2}')
    assert open_checkpoint(tmp_path, "x").config["b"] == 2
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        assert "config.json" in refusal(tmp_path)


COPIED = {
    "config.json": "config",
    "generation_config.json": "generation",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "special_tokens_map.json": "tokenizer",
    "added_tokens.json": "tokenizer",
    "vocab.json": "tokenizer",
    "vocab.txt": "tokenizer",
    "merges.txt": "tokenizer",
    "tokenizer.model": "tokenizer",
    "tokenizer.model.v3": None,
    "spiece.model": "tokenizer",
    "sentencepiece.bpe.model": "tokenizer",
    "source.spm": "tokenizer",
    "qwen.tiktoken": "tokenizer",
    "bpe.codes": "tokenizer",
    "tekken.json": "tokenizer",
    "prophetnet.tokenizer": "tokenizer",
    "chat_template.jinja": "chat_template",
    "chat_template.json": "chat_template",
    "additional_chat_templates/tool_use.jinja": "chat_template",
    "preprocessor_config.json": "processor",
    "processor_config.json": "processor",
    "video_preprocessor_config.json": "processor",
    "modules.json": "other",
    "sentence_bert_config.json": "other",
    "config_sentence_transformers.json": "other",
    "1_Pooling/config.json": "module",
    "2_Dense/config.json": "module",
    "2_Dense/model.safetensors": "module",
    "modeling_new.py": "code",
    "LICENSE": "license",
    "NOTICE.txt": "license",
    "USE_POLICY.md": "license",
    "README.md": None,
    "readme.txt": None,
    ".gitattributes": None,
    ".hidden.json": None,
    ".git/config": None,
    "training_args.bin": None,
    "trainer_state.json": None,
    "optimizer.pt": None,
    "scheduler.pt": None,
    "rng_state.pth": None,
    "all_results.json": None,
    "pytorch_model.bin.index.json": None,
    "model.safetensors.index.json": None,
    "adapter_config.json": None,
    "quantize_config.json": None,
    "mergekit_config.yml": None,
    "mergeconf.lock": None,
    "run.log": None,
    "picture.png": None,
    "onnx/config.json": None,
    "checkpoint-100/config.json": None,
    "runs/events.out.tfevents.1": None,
}


def test_small_files_that_belong_to_the_model(tmp_path):
    for name in COPIED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    write_index(tmp_path, dict.fromkeys(NAMES, "model.safetensors"))
    write_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"auto_map": {}}')
    modules = ["", "1_Pooling", "2_Dense", "../../etc", "/etc"]
    (tmp_path / "modules.json").write_text(json.dumps([{"path": path} for path in modules]))
    checkpoint = open_checkpoint(tmp_path, "x")
    found = {sidecar.name: sidecar.kind for sidecar in checkpoint.sidecars}
    assert found == {name: kind for name, kind in COPIED.items() if kind}
    assert [problem.code for problem in checkpoint.warnings] == ["module-weights"]
    assert [sidecar.name for sidecar in checkpoint.sidecars_of("config", "generation")] == [
        "config.json", "generation_config.json",
    ]  # fmt: skip
    (tmp_path / "config.json").write_text("{}")
    assert not open_checkpoint(tmp_path, "x").sidecars_of("code")


def test_links_that_leave_the_folder_are_not_copied(tmp_path):
    folder = write_file(tmp_path / "m" / "model.safetensors").parent
    (tmp_path / "secret.json").write_text("{}")
    (folder / "vocab.json").symlink_to("../secret.json")
    (folder / "real.json").write_text("{}")
    (folder / "merges.txt").symlink_to("real.json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jinja").write_text("")
    (folder / "additional_chat_templates").symlink_to("../other")
    checkpoint = open_checkpoint(folder, "x")
    assert {sidecar.name for sidecar in checkpoint.sidecars} == {"real.json", "merges.txt"}
    (warning,) = checkpoint.warnings
    assert warning.code == "link-outside"
    assert "vocab.json" in warning.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders(tmp_path):
    path = write_file(tmp_path / "m" / "model.safetensors")
    path.chmod(0)
    assert "permission denied" in refusal(tmp_path / "m")
    (tmp_path / "m").chmod(0)
    try:
        assert "permission denied" in refusal(tmp_path / "m")
    finally:
        (tmp_path / "m").chmod(0o700)


def test_importing_loads_neither_torch_nor_numpy():
    code = (
        "import sys, mergeconf.checkpoint, mergeconf.storage.output;"
        "print([name for name in ('torch', 'numpy', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
