"""Quantized models that are not read are refused by the name of their format, once a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeconf.api import load_recipe, make_plan, merge
from mergeconf.errors import CheckpointError, MergeconfError, PlanError
from support.float8 import CONVENTIONS, DEEPSEEK, E4M3
from support.models import llama_like, read_model, write_model

Q0 = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


def several(**tensors: torch.Tensor) -> Tensors:
    """Return what is stored for two modules; `_` stands for a dot."""
    return {
        f"model.layers.{layer}.mlp.up_proj.{name.replace('__', '.')}": tensor.clone()
        for layer in range(2)
        for name, tensor in tensors.items()
    }


def byte(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.uint8)


def small(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int8)


def word(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int32)


def real(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.ones(shape).to(dtype)


GPTQ = several(qweight=word(2, 8), qzeros=word(1, 1), scales=real(1, 8), g_idx=word(16))
AWQ = several(qweight=word(16, 1), qzeros=word(1, 1), scales=real(1, 8))
COMPRESSED = {"quant_method": "compressed-tensors"}
FORMATS: dict[str, tuple[Tensors, dict[str, Any], str, str]] = {
    "gptq": (GPTQ, {"quant_method": "gptq", "bits": 4}, "GPTQ", "name the model"),
    "gptq, told by its tensors": (GPTQ, {}, "GPTQ", "name the model"),
    "gptq, without g_idx": (AWQ, {"quant_method": "gptq"}, "GPTQ", "name the model"),
    "awq": (AWQ, {"quant_method": "awq"}, "AWQ", "name the model"),
    "awq, told by its tensors": (AWQ, {}, "AWQ", "name the model"),
    "auto-round": (GPTQ, {"quant_method": "auto-round"}, "AutoRound", "name the model"),
    "bitsandbytes, 4 bits": (
        several(weight=byte(64, 1), weight__absmax=byte(2), weight__quant_map=real(16),
                weight__nested_absmax=real(1), weight__nested_quant_map=real(256),
                weight__quant_state__bitsandbytes__nf4=byte(80)),
        {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes in 4 bits",
        ".dequantize()"),
    "bitsandbytes, 8 bits": (
        several(weight=small(8, 8), SCB=real(8), weight_format=byte()),
        {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes in 8 bits",
        ".dequantize()"),
    "mxfp4": (
        {"model.layers.0.mlp.experts.down_proj_blocks": byte(2, 8, 2, 16),
         "model.layers.0.mlp.experts.down_proj_scales": byte(2, 8, 2),
         "model.layers.0.mlp.experts.down_proj_bias": real(2, 8)},
        {"quant_method": "mxfp4"}, "MXFP4", "Mxfp4Config(dequantize=True)"),
    "nvfp4, modelopt": (
        several(weight=byte(8, 16), weight_scale=real(8, 2, dtype=E4M3), weight_scale_2=real(),
                input_scale=real()),
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4", "compressed-tensors"),
    "nvfp4, compressed-tensors": (
        several(weight_packed=byte(8, 16), weight_scale=real(8, 2, dtype=E4M3),
                weight_global_scale=real(1)),
        {**COMPRESSED, "format": "nvfp4-pack-quantized"}, "NVFP4", "CompressedTensorsDequantizer"),
    "mxfp4, compressed-tensors": (
        several(weight_packed=byte(8, 16), weight_scale=byte(8, 1)),
        {**COMPRESSED, "format": "mxfp4-pack-quantized"}, "MXFP4", "CompressedTensorsDequantizer"),
    "int4, compressed-tensors": (
        several(weight_packed=word(8, 2), weight_scale=real(8, 1),
                weight_shape=torch.tensor([8, 16])),
        {**COMPRESSED, "format": "pack-quantized"},
        "compressed-tensors, packed integers (pack-quantized)",
        "CompressedTensorsDequantizer"),
    "int8, compressed-tensors": (
        several(weight=small(8, 16), weight_scale=real(8, 1, dtype=torch.bfloat16)),
        {**COMPRESSED, "format": "int-quantized"}, "8-bit integers and their scales (int8, W8A8)",
        "CompressedTensorsDequantizer"),
    "sparse, compressed-tensors": (
        several(compressed=real(20), bitmask=byte(8, 2), shape=torch.tensor([8, 16])),
        {**COMPRESSED, "sparsity_config": {"format": "sparse-bitmask"}}, "sparse-bitmask",
        "CompressedTensorsDequantizer"),
    "hqq": (
        several(W_q=byte(8, 8), scale=real(8, 1), zero=real(8, 1)),
        {"quant_config": {}, "quant_method": "hqq"}, "HQQ", "name the model"),
    "eetq": (
        several(weight=small(16, 8), weight_scales=real(8)), {"quant_method": "eetq"}, "EETQ",
        "name the model"),
    "quanto": (
        several(weight___data=small(8, 8), weight___scale=real(8, 1)), {"quant_method": "quanto"},
        "Quanto", "name the model"),
    "fp4, deepseek": (
        several(weight=small(8, 16), scale=real(8, 1, dtype=torch.float8_e8m0fnu)),
        {**DEEPSEEK}, "4-bit floats (FP4)", "name the model"),
    "bitnet": (
        several(weight=byte(2, 8), weight_scale=real(1)), {"quant_method": "bitnet"}, "BitNet",
        "name the model"),
    "one that nobody has heard of": (
        several(weight=word(2, 8)), {"quant_method": "brand-new"}, "brand-new", "name the model"),
}  # fmt: skip


def refusal(folder: Path, recipe: dict[str, Any]) -> MergeconfError:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    with pytest.raises(MergeconfError) as caught:
        make_plan(load_recipe(path))
    return caught.value


def write(folder: Path, tensors: Tensors, section: dict[str, Any] | None = None) -> None:
    """Write a model that holds these tensors beside others."""
    config: dict[str, Any] = {"model_type": "none", "torch_dtype": "bfloat16"}
    if section:
        config["quantization_config"] = section
    rest = {name: t for name, t in llama_like().items() if name not in tensors}
    write_model(folder, rest | tensors, config=config)


@pytest.mark.parametrize("kind", list(FORMATS))
def test_packed_weights_are_refused_by_name_before_anything_else(tmp_path, kind):
    tensors, section, name, hint = FORMATS[kind]
    write(tmp_path / "packed", tensors, section)
    write_model(tmp_path / "plain", llama_like(layers=5))  # does not fit at all
    error = refusal(tmp_path, {"merge_method": "linear", "models": ["packed", "plain"]})
    assert isinstance(error, CheckpointError)
    (problem,) = error.problems
    assert problem.where == "packed"
    assert f"quantized with {name}" in problem.message or f"{name})" in problem.message
    assert hint in problem.hint
    assert problem.location is not None


def test_each_packed_model_has_a_message_of_its_own(tmp_path):
    for name in ("gptq", "awq"):
        write(tmp_path / name, *FORMATS[name][:2])
    error = refusal(
        tmp_path, {"merge_method": "slerp", "base_model": "gptq", "models": ["awq"],
                   "parameters": {"t": 0.5}},
    )  # fmt: skip
    assert [problem.where for problem in error.problems] == ["gptq", "awq"]


def test_packed_weights_inside_a_nested_merge_and_under_an_adapter(tmp_path):
    write(tmp_path / "gptq", *FORMATS["gptq"][:2])
    inner = {"merge_method": "passthrough", "models": ["gptq"]}
    error = refusal(tmp_path, {"merge_method": "passthrough", "models": [inner]})
    assert "GPTQ" in str(error)
    error = refusal(tmp_path, {"merge_method": "passthrough", "models": ["gptq+nothing"]})
    assert "GPTQ" in str(error)


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.num_blocks": word(1)},
        {"model.position_ids": torch.arange(9)},
        {"model.relative_position_scales": word(3), "model.tables_blocks": word(3)},
        {"batch_norm.num_batches_tracked": torch.tensor(3)},
        {"model.mask_weight": torch.ones(3, dtype=torch.bool)},
    ],
)
def test_whole_numbers_that_are_no_weights_are_let_pass(tmp_path, tensors):
    write(tmp_path / "a", tensors)
    (tmp_path / "recipe.yaml").write_text("merge_method: passthrough\nmodels: [a]\n")
    merge(tmp_path / "recipe.yaml", tmp_path / "out")
    assert tensors.keys() < read_model(tmp_path / "out").keys()


def test_a_config_that_names_a_method_for_plain_weights_stays_as_it_is(tmp_path):
    section = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    write(tmp_path / "a", {}, section)
    (tmp_path / "recipe.yaml").write_text("merge_method: passthrough\nmodels: [a]\n")
    merge(tmp_path / "recipe.yaml", tmp_path / "out")
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["quantization_config"] == section


def test_gguf_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model-Q4_K_M.gguf").write_bytes(b"GGUF")
    for name in ("a", "a/model-Q4_K_M.gguf"):
        error = refusal(tmp_path, {"merge_method": "passthrough", "models": [name]})
        assert "GGUF" in str(error)
        assert "original" in str(error)


# --- 8-bit floats -----------------------------------------------------------------------------


def quantized(**changes: Any) -> Tensors:
    stored, _ = CONVENTIONS["deepseek"].model(llama_like())
    for name, tensor in changes.items():
        key = f"{Q0}.{name}"
        stored.pop(key, None)
        if tensor is not None:
            stored[key] = tensor
    return stored


SECTION = {**DEEPSEEK, "weight_block_size": [4, 4]}
BROKEN: dict[str, tuple[Tensors, dict[str, Any], tuple[str, ...]]] = {
    "a missing scale": (
        quantized(weight_scale_inv=None), SECTION,
        ("1 tensor holds 8-bit floats without their scale", f"{Q0}.weight",
         "looked for", f"{Q0}.weight_scale_inv")),
    "no scale at all": (
        {name: t for name, t in quantized().items() if "scale" not in name}, SECTION,
        ("12 tensors hold 8-bit floats without their scale", "and 9 more")),
    "no scale at all, and a method of another kind": (
        {name: t for name, t in quantized().items() if "scale" not in name},
        {"quant_method": "torchao"}, ("12 tensors hold 8-bit floats without their scale",)),
    "a scale of another shape": (
        quantized(weight_scale_inv=torch.ones(3, 2)), SECTION,
        (f"{Q0}.weight [6, 6] with float32 [3, 2]", "weight_block_size")),
    "blocks of unknown size": (
        quantized(weight_scale_inv=torch.ones(4, 2)), DEEPSEEK,
        (f"{Q0}.weight [6, 6] with float32 [4, 2]", "weight_block_size")),
    "two scales": (
        quantized(weight_scale=torch.ones(1)), SECTION,
        (f"{Q0}.weight_scale_inv, {Q0}.weight_scale",)),
    "a scale of whole numbers": (
        quantized(weight_scale_inv=byte(2, 2)), SECTION,
        (f"{Q0}.weight [6, 6] with uint8 [2, 2]",)),
    "a scale without codes": (
        quantized(weight=torch.ones(6, 6)), SECTION,
        ("1 tensor of its quantization", f"{Q0}.weight_scale_inv")),
    "an order of columns": (
        quantized(weight_g_idx=word(6)), SECTION, (f"{Q0}.weight_g_idx",)),
    "a zero point": (
        quantized(weight_zero_point=torch.ones(1)), SECTION,
        (f"{Q0}.weight_zero_point", "symmetric")),
    "weights that were only prepared": (
        {**llama_like(), f"{Q0}.weight_scale": torch.ones(1)},
        {**COMPRESSED, "quantization_status": "frozen"}, (f"{Q0}.weight_scale",)),
}  # fmt: skip


@pytest.mark.parametrize("what", list(BROKEN))
def test_eight_bit_floats_that_cannot_be_read(tmp_path, what):
    tensors, section, words = BROKEN[what]
    write_model(tmp_path / "a", tensors, config={"quantization_config": section})
    error = refusal(tmp_path, {"merge_method": "linear", "models": ["a"]})
    assert isinstance(error, CheckpointError)
    (problem,) = error.problems
    assert problem.where == "a"
    assert problem.location is not None
    for part in words:
        assert part in str(problem)


def test_plain_eight_bit_floats_are_copied_and_never_merged(tmp_path):
    """Without scales and without a word of the config nobody can tell what they stand for."""
    codes = {name: tensor.to(E4M3) for name, tensor in llama_like().items()}
    for name in "ab":
        write_model(tmp_path / name, codes)
    recipe = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.5}}
    error = refusal(tmp_path, recipe)
    assert isinstance(error, PlanError)
    (problem,) = error.problems
    assert "a float8_e4m3fn, b float8_e4m3fn" in problem.message
    assert "without their scale" in problem.hint
    assert "take" in problem.hint
    recipe = {"take": "a", "models": ["a", "b"]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    merge(tmp_path / "recipe.yaml", tmp_path / "out")
    got = read_model(tmp_path / "out")
    for name, tensor in codes.items():
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8))
