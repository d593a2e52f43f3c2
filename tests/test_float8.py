"""A model in 8-bit floats merges as the same model converted to float32 beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeconf.api import load_recipe, make_plan, merge, run_lock, verify
from mergeconf.checkpoint import ReadFiles
from mergeconf.checkpoint.quantization import Grid, find_grid
from mergeconf.dtypes import DType
from mergeconf.errors import ExecutionError, LockError
from mergeconf.execution.local import Settings
from mergeconf.execution.memory import estimate
from mergeconf.execution.products import fill_blocks, whole_bytes
from mergeconf.graph.gather import gathered
from mergeconf.graph.nodes import Cast, Elementwise, Input, Node, PerBlock
from mergeconf.graph.rows import Rows
from support.adapters import linear, write_adapter
from support.command import call, files_of, model_of
from support.float8 import CONVENTIONS, DEEPSEEK, E4M3, E5M2, Convention, spread
from support.harness import SMALL_TILES, TORCH, assert_same_bits, stream
from support.models import llama_like, load_exactly, read_model, write_model

TILES = (SMALL_TILES, Settings(threads=1, tile=7, chunk=70), Settings(threads=3, tile=1 << 18))
FORMATS = {DType.float8_e4m3fn: E4M3, DType.float8_e5m2: E5M2}
CODES = torch.arange(256, dtype=torch.uint8)
SECTION = {**DEEPSEEK, "weight_block_size": [4, 4]}
Q0 = "model.layers.0.self_attn.q_proj.weight"


def weights(seed: int, **more: Any) -> dict[str, torch.Tensor]:
    """Return tensors whose values fill their formats."""
    generator = torch.Generator().manual_seed(seed)
    like = llama_like(**{"layers": 2, "vocab": 10, **more})
    return {
        name: torch.randn(tensor.shape, generator=generator).to(torch.bfloat16)
        for name, tensor in like.items()
    }


def write_pair(
    folder: Path, name: str, convention: Convention, seed: int, **more: Any
) -> dict[str, torch.Tensor]:
    """Write a quantized model, and beside it the same in float32, called NAME-32."""
    stored, values = convention.model(weights(seed))
    config = {"model_type": "none", "torch_dtype": "bfloat16", "num_hidden_layers": 2}
    quantized = {**config, "quantization_config": dict(convention.section)}
    write_model(folder / name, stored, config=quantized, **more)
    write_model(folder / f"{name}-32", values, config=config)
    return values


def merged(folder: Path, recipe: dict[str, Any], out: str = "out", **more: Any) -> Path:
    path = folder / f"{out}.yaml"
    path.write_text(json.dumps(recipe))
    merge(path, folder / out, force=True, **more)
    return folder / out


def in_float32(recipe: Any, names: str = "xab") -> Any:
    """Return a recipe that names the converted models."""
    if isinstance(recipe, dict):
        return {key: in_float32(value, names) for key, value in recipe.items()}
    if isinstance(recipe, list):
        return [in_float32(item, names) for item in recipe]
    if isinstance(recipe, str) and recipe.partition("+")[0] in names:
        model, plus, adapter = recipe.partition("+")
        return f"{model}-32{plus}{adapter}"
    return recipe


def assert_law(folder: Path, recipe: dict[str, Any], **more: Any) -> dict[str, torch.Tensor]:
    """Fail unless a merge of quantized models is that of the converted ones, bit for bit."""
    got = read_model(merged(folder, recipe, **more))
    want = read_model(merged(folder, in_float32(recipe), "want"))
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert_same_bits(tensor, want[name])
    return got


# --- numbers ----------------------------------------------------------------------------------


def widened(dtype: DType) -> Node:
    return Cast(Input(0, dtype), DType.float32, "stored")


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_code_is_the_number_that_torch_says(dtype):
    codes = CODES.view(FORMATS[dtype])
    got = stream(widened(dtype), [codes], DType.float32).tensor
    assert_same_bits(got, codes.float())
    assert torch.equal(torch.signbit(got[0x80:0x81]), torch.tensor([True])), "the sign of -0"
    assert not got.isinf().any() or dtype is DType.float8_e5m2
    assert (got.abs() < torch.finfo(FORMATS[dtype]).smallest_normal).sum() > 2, "subnormal numbers"


@settings(max_examples=15, deadline=None)
@given(data=st.binary(min_size=1, max_size=3_000), dtype=st.sampled_from(list(FORMATS)))
def test_codes_in_tiles_of_any_size(data, dtype):
    codes = torch.frombuffer(bytearray(data), dtype=FORMATS[dtype])
    for tiles in TILES:
        assert_same_bits(
            stream(widened(dtype), [codes], DType.float32, settings=tiles).tensor, codes.float()
        )


def test_more_codes_than_are_looked_up_at_a_time():
    codes = torch.randint(0, 256, (300_001,), dtype=torch.uint8).view(E4M3)
    got = stream(widened(DType.float8_e4m3fn), [codes], DType.float32, settings=TILES[2]).tensor
    assert_same_bits(got, codes.float())


def test_every_exponent_of_a_scale():
    exponents = CODES[:255]
    want = exponents.view(torch.float8_e8m0fnu).float()
    node = PerBlock(Input(1, DType.uint8), 1, 255, (1, 1), exponents=True)
    codes = torch.ones(255, 1).to(E4M3)
    got = stream(scaled(DType.float8_e4m3fn, node), [codes, exponents], DType.float32).tensor
    assert_same_bits(got[:, 0], want)
    assert want[0] == 2.0**-127


def scaled(dtype: DType, node: PerBlock) -> Node:
    wide = Cast(Input(0, dtype), DType.float32, "f32")
    return Cast(Elementwise("mul", (wide, node), "f32"), DType.float32, "stored")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_values_by_block(data):
    matrices, height, width = (data.draw(st.integers(1, most)) for most in (3, 20, 40))
    block = data.draw(st.integers(1, height + 3)), data.draw(st.integers(1, width + 3))
    down, across = -(-height // block[0]), -(-width // block[1])
    values = torch.rand(matrices, down, across)
    want = spread(values, (matrices, height, width), block).reshape(-1, width)
    rows = None
    if data.draw(st.booleans()):
        numbers = data.draw(st.lists(st.integers(0, matrices * height - 1), min_size=1))
        rows, want = Rows(np.array(numbers)), want[numbers]
    start = data.draw(st.integers(0, want.numel() - 1))
    end = data.draw(st.integers(start + 1, want.numel()))
    node = PerBlock(Input(0, DType.float32), width, height, block, False, rows)
    out = np.empty(end - start, np.float32)
    fill_blocks(values.reshape(-1, across).numpy(), node, start, out)
    assert_same_bits(torch.from_numpy(out), want.flatten()[start:end])


@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(300, 500), (5, 3), (2, 3, 7, 11), (3, 70_000), (1, 9), (4, 0)])
def test_codes_times_their_scales_in_tiles_of_any_size(shape, scale):
    *_, height, width = shape
    codes = torch.randint(0, 256, shape, dtype=torch.uint8).view(E4M3)
    block = (4, 128)
    factors = torch.rand(*shape[:-2], -(-height // 4), -(-width // 128)).to(scale)
    slot = Input(1, DType[str(scale).removeprefix("torch.")])
    node = scaled(DType.float8_e4m3fn, PerBlock(slot, max(1, width), height, block))
    want = codes.float() * spread(factors.float(), shape, block)
    for tiles in TILES[1:2] if codes.numel() < 1_000 else (TILES[0], TILES[2]):
        got = stream(node, [codes, factors], DType.float32, settings=tiles).tensor
        assert_same_bits(got, want)


def test_rows_of_a_quantized_tensor_are_taken_with_their_scales():
    codes = torch.randint(0, 120, (10, 6), dtype=torch.uint8).view(E4M3)
    factors = torch.rand(3, 2)
    node = scaled(DType.float8_e4m3fn, PerBlock(Input(1, DType.float32), 6, 10, (4, 4)))
    numbers = [9, 3, -1, 3, 4, 0, -1]
    moved = gathered(node, Rows(np.array(numbers)), 6)
    got = stream(moved, [codes, factors], DType.float32, shape=(7, 6)).tensor
    want = (codes.float() * spread(factors, (10, 6), (4, 4)))[numbers]
    want[[2, 6]] = 0
    assert_same_bits(got, want)


# --- where blocks lie -------------------------------------------------------------------------

D = (128, 128)
GRIDS: list[tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]], Grid | None]] = [
    ((256, 512), (2, 4), [D], Grid(256, 512, D)),
    ((576, 200), (5, 2), [D], Grid(576, 200, D)),
    ((64, 7168), (1, 56), [D], Grid(64, 7168, (64, 128))),
    ((576, 200), (5, 2), [], None),  # any length from 116 to 143 would do
    ((576, 200), (6, 2), [D], None),
    ((576, 200), (6, 2), [], Grid(576, 200, (96, 100))),
    ((384, 128), (4, 1), [D], None),  # two matrices of 192 rows that were joined
    ((6, 8), (), [], Grid(6, 8, (6, 8))),
    ((6, 8), (1,), [D], Grid(6, 8, (6, 8))),
    ((6, 8), (1, 1), [], Grid(6, 8, (6, 8))),
    ((6, 8), (6, 1), [D], Grid(6, 8, (1, 8))),
    ((6, 8), (6,), [], Grid(6, 8, (1, 8))),
    ((6, 8), (1, 8), [], Grid(6, 8, (6, 1))),
    ((6, 8), (8,), [], None),
    ((6, 8), (6, 4), [(1, 2)], Grid(6, 8, (1, 2))),
    ((6, 8), (6, 4), [D, (1, 2)], Grid(6, 8, (1, 2))),
    ((200, 200), (2, 2), [D, (150, 150)], None),  # both would fit
    ((3, 6, 8), (3, 2, 2), [(4, 4)], Grid(6, 8, (4, 4))),
    ((3, 6, 8), (3, 1, 1), [], Grid(6, 8, (6, 8))),
    ((3, 6, 8), (3,), [], Grid(6, 8, (6, 8))),
    ((3, 6, 8), (3, 1, 8), [], Grid(6, 8, (6, 1))),
    ((3, 6, 8), (2, 2, 2), [(4, 4)], None),
    ((3, 6, 8), (1,), [], Grid(18, 8, (18, 8))),
    ((6, 9), (2, 1, 3, 1), [], Grid(6, 9, (3, 3))),
    ((5,), (1,), [], Grid(1, 5, (1, 5))),
    ((), (), [], Grid(1, 1, (1, 1))),
    ((5,), (5,), [], None),
    ((6, 8), (0, 2), [D], None),
]  # fmt: skip


@pytest.mark.parametrize(("weight", "scale", "declared", "want"), GRIDS)
def test_where_blocks_lie(weight, scale, declared, want):
    assert find_grid(weight, scale, declared) == want


# --- the law ----------------------------------------------------------------------------------

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.3}},
    "ties": {"merge_method": "ties", "base_model": "x", "models": ["a", "b"],
             "parameters": {"density": 0.4, "weight": 0.7}},
    "della": {"merge_method": "della", "base_model": "x", "models": ["a", "b"],
              "parameters": {"density": 0.5, "epsilon": 0.2, "weight": 0.5}},
    "slerp": {"merge_method": "slerp", "base_model": "a", "models": ["b"],
              "parameters": {"t": 0.3}},
    "model_stock": {"merge_method": "model_stock", "base_model": "x", "models": ["a", "b"]},
    "parameter_selection": {"merge_method": "parameter_selection", "base_model": "x",
                            "models": ["a", "b"]},
    "take": {"take": "a", "models": ["a", "b"]},
    "passthrough": {"merge_method": "passthrough", "models": ["a"]},
    "rules": {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.5},
              "rules": [{"match": "*.mlp.*", "take": "b"},
                        {"match": "*.o_proj.*", "merge_method": "multislerp"},
                        {"match": "*layernorm*", "drop": True}]},
    "slices": {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [1, 2]}]}]},
    "nested": {"merge_method": "ties", "base_model": "x", "parameters": {"weight": 0.5},
               "dtype": "float32", "models": [
                   {"model": {"merge_method": "linear", "models": ["a", "b"],
                              "parameters": {"weight": 0.5}}}, "b"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """Three models in DeepSeek's convention, and the same in float32."""
    folder = tmp_path_factory.mktemp("float8")
    for seed, name in enumerate("xab"):
        write_pair(folder, name, CONVENTIONS["deepseek"], seed)
    return folder


@pytest.mark.parametrize("convention", list(CONVENTIONS))
def test_every_convention_stands_for_the_values_that_torch_computes(tmp_path, convention):
    values = write_pair(tmp_path, "a", CONVENTIONS[convention], 1)
    recipe = {"merge_method": "passthrough", "models": ["a"], "out_dtype": "float32"}
    got = read_model(merged(tmp_path, recipe))
    assert got.keys() == values.keys()
    for name, value in values.items():
        assert_same_bits(got[name], value.float())
    write_pair(tmp_path, "b", CONVENTIONS[convention], 2)
    assert_law(tmp_path, {**RECIPES["linear"], "out_dtype": "bfloat16"})


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_merge_is_that_of_the_converted_models(family, recipe, out_dtype):
    assert_law(family, {**RECIPES[recipe], "out_dtype": out_dtype})


def test_transformers_reads_the_same_values():
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    convention = Convention(lambda name: f"{name}_scale_inv", SECTION, (4, 4))
    stored, values = convention.store("w", weights(3, rows=8)[Q0])
    got = module.Fp8Dequantize(None).convert(
        {"weight": stored["w"], "weight_scale_inv": stored["w_scale_inv"]}
    )
    assert_same_bits(got["weight"], values)


def test_merged_with_models_that_are_not_quantized(family):
    write_model(family / "plain", weights(7), config={"torch_dtype": "bfloat16"})
    recipe = {"merge_method": "ties", "base_model": "plain", "models": ["a", "b"]}
    got = assert_law(family, recipe)  # the format is that of the base
    assert {tensor.dtype for tensor in got.values()} == {torch.bfloat16}
    assert_law(family, {**recipe, "base_model": "x", "models": ["a", "plain"],
                        "out_dtype": "bfloat16"})  # fmt: skip


def test_an_adapter_on_a_quantized_model(family):
    write_adapter(family / "adapter", linear("model.layers.0.self_attn.q_proj", 6, 6))
    recipe = {"merge_method": "linear", "models": ["a+adapter", "b"],
              "parameters": {"weight": 0.5}, "out_dtype": "float32"}  # fmt: skip
    got = assert_law(family, recipe)
    plain = read_model(merged(family, {**recipe, "models": ["a", "b"]}))
    assert not torch.equal(got[Q0], plain[Q0])


def test_shards_threads_and_memory_change_nothing(tmp_path):
    stored, _ = CONVENTIONS["deepseek"].model(weights(1, rows=60))
    config = {"quantization_config": SECTION}
    write_model(tmp_path / "a", stored, config=config)
    outputs = []
    names = sorted(stored, key=lambda name: (name.endswith("_scale_inv"), name))
    for shards, threads, memory in ((1, 1, None), (2, 3, 16 << 20), (5, 2, None)):
        write_model(tmp_path / "b", stored, config=config, shards=shards, order=names)
        recipe = {"merge_method": "ties", "base_model": "a", "models": ["b"]}
        out = merged(tmp_path, recipe, threads=threads, memory=memory)
        outputs.append(model_of(files_of(out)))
    assert outputs[0] == outputs[1] == outputs[2]
    index = json.loads((tmp_path / "b/model.safetensors.index.json").read_text())["weight_map"]
    pairs = [(name, f"{name}_scale_inv") for name in index if f"{name}_scale_inv" in index]
    assert any(index[weight] != index[scale] for weight, scale in pairs)


# --- the output -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({}, torch.bfloat16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"text_config": {"dtype": "float32"}}, torch.float32),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"torch_dtype": "float8_e4m3fn"}, torch.bfloat16),
    ],
)
def test_the_format_is_that_of_the_config_or_bfloat16(tmp_path, config, dtype):
    stored, values = CONVENTIONS["deepseek"].model(weights(1))
    write_model(tmp_path / "a", stored, config={**config, "quantization_config": SECTION})
    out = merged(tmp_path, {"merge_method": "passthrough", "models": ["a"]})
    for name, tensor in read_model(out).items():
        assert_same_bits(tensor, values[name].to(dtype if ".layers." in name else torch.bfloat16)
                         if stored[name].dtype is E4M3 else values[name])  # fmt: skip
    said = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in said
    for key in ("dtype", "torch_dtype"):
        assert said.get(key) in (None, str(dtype).removeprefix("torch."))


def test_a_merge_inside_a_merge_hands_on_what_it_would_have_written(family):
    inner = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.5}}
    nested = read_model(merged(family, {"merge_method": "passthrough", "models": [inner]}))
    for name, tensor in read_model(merged(family, inner, "inner")).items():
        assert_same_bits(nested[name], tensor)
        assert tensor.dtype == torch.bfloat16


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("part", [None, "text_config"])
def test_the_config_says_nothing_of_a_quantization(tmp_path, key, part):
    stored, _ = CONVENTIONS["deepseek"].model(weights(1))
    inner = {key: SECTION, "num_hidden_layers": 2}
    config = {"model_type": "none", "dtype": "bfloat16", "vision_config": {"depth": 3}}
    write_model(tmp_path / "a", stored, config=config | ({part: inner} if part else inner))
    recipe = {"merge_method": "linear", "models": ["a"], "parameters": {"weight": 1.0}}
    out = merged(tmp_path, recipe)
    said = json.loads((out / "config.json").read_text())
    rest = {"num_hidden_layers": 2}
    assert said == config | ({part: rest} if part else rest)
    plan = make_plan(load_recipe(tmp_path / "out.yaml"))
    assert [problem.code for problem in plan.warnings] == ["dequantized-weights"]
    assert "8 weights in 8-bit floats" in plan.warnings[0].message
    assert "not quantized" in plan.warnings[0].message
    recipe["silence"] = ["dequantized-weights"]
    merged(tmp_path, recipe)
    assert not make_plan(load_recipe(tmp_path / "out.yaml")).warnings


def test_scales_are_used_and_scales_of_activations_are_left_out(tmp_path):
    stored, _ = CONVENTIONS["compressed, whole"].model(weights(1))
    one = torch.ones
    more = {Q0.replace("weight", end): one(1) for end in ("input_scale", "output_scale")}
    more |= {f"model.layers.1.self_attn.{name}": one(1) for name in ("k_scale", "v_scale")}
    more[Q0.replace("weight", "weight_zero_point")] = torch.zeros(1).to(E4M3)
    section = CONVENTIONS["compressed, whole"].section
    write_model(tmp_path / "a", stored | more, config={"quantization_config": section})
    recipe = {"merge_method": "passthrough", "models": ["a"]}
    got = read_model(merged(tmp_path, recipe))
    assert got.keys() == weights(1).keys()
    plan = make_plan(load_recipe(tmp_path / "out.yaml"))
    used = {stored.name for tensor in plan.tensors for stored in tensor.inputs}
    dropped = {item.name: item.reason for item in plan.dropped}
    assert used | dropped.keys() == stored.keys() | more.keys(), "nothing disappears"
    assert dropped[f"{Q0}_scale"] == f"scale of {Q0}"
    assert "activations" in dropped[Q0.replace("weight", "input_scale")]
    assert "cache" in dropped["model.layers.1.self_attn.k_scale"]
    assert [problem.code for problem in plan.warnings] == ["dequantized-weights", "dropped-scales"]
    assert "5 tensors" in plan.warnings[1].message


def test_a_model_whose_cache_alone_is_quantized(tmp_path):
    section = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}
    tensors = weights(1)
    cache = {"model.layers.0.self_attn.k_scale": torch.ones(1)}
    write_model(tmp_path / "a", tensors | cache, config={"quantization_config": section})
    out = merged(tmp_path, {"merge_method": "passthrough", "models": ["a"]})
    assert read_model(out).keys() == tensors.keys()
    assert json.loads((out / "config.json").read_text()) == {}


def test_names_like_those_of_scales_are_nothing_special_in_other_models(tmp_path):
    tensors = weights(1) | {
        "model.layers.0.k_scale": torch.ones(1), f"{Q0}_scale": torch.ones(6),
        "model.layers.0.norm.scale": torch.ones(6),
    }  # fmt: skip
    write_model(tmp_path / "a", tensors)
    out = merged(tmp_path, {"merge_method": "passthrough", "models": ["a"]})
    assert read_model(out).keys() == tensors.keys()


def test_plan_and_explain_say_how_weights_are_read(family):
    merged(family, {**RECIPES["linear"], "out_dtype": "bfloat16"}, "said")
    planned = call("plan", family / "said.yaml")
    assert "8 weights read through their scales" in planned.out
    assert "left out" not in planned.out, "scales are used"
    explained = call("explain", family / "said.yaml", Q0)
    assert f"{Q0}_scale_inv" in explained.out
    assert "float8_e4m3fn" in explained.out
    assert "perblock" in explained.out
    dropping = {**RECIPES["linear"], "rules": [{"match": Q0, "drop": True}]}
    merged(family, dropping, "dropping")
    planned = call("plan", family / "dropping.yaml")
    assert f"{Q0}_scale_inv  scale of {Q0}\n" in planned.out, "this one is not"
    assert planned.out.count("scale of") == 1
    left = call("explain", family / "said.yaml", f"{Q0}_scale_inv")
    assert f"left out of the output: scale of {Q0}" in left.out


def test_planning_reads_no_weights(family, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a weight is read")

    merged(family, RECIPES["linear"], "planned")
    monkeypatch.setattr(ReadFiles, "read_into", refuse)
    assert make_plan(load_recipe(family / "planned.yaml")).tensors


def test_scales_that_are_kept_whole_are_counted(tmp_path):
    needs = []
    for group in (2, 300):
        name = "model.layers.0.w.weight"
        stored = {
            name: torch.ones(1_000, 300).to(E4M3),
            f"{name}_scale_inv": torch.ones(1_000, 300 // group),
        }
        write_model(tmp_path / "a", stored, config={"quantization_config": DEEPSEEK})
        merged(tmp_path, {"merge_method": "passthrough", "models": ["a"]})
        plan = make_plan(load_recipe(tmp_path / "out.yaml"))
        (scale,) = (s for s in plan.tensors[0].inputs if s.name.endswith("_inv"))
        node = PerBlock(Input(1, scale.dtype), 300, 1_000, (1, group))
        assert whole_bytes([node], plan.tensors[0].inputs) >= 4 * scale.numel
        needs.append(estimate(plan, Settings(threads=1)).reduction_bytes)
    assert needs[0] - needs[1] >= 4 * 1_000 * 149


# --- what is broken ---------------------------------------------------------------------------


def test_nan_among_the_codes_is_kept_as_nan(tmp_path):
    stored, values = CONVENTIONS["deepseek"].model(weights(1))
    stored[Q0].view(torch.uint8)[2, 3] = 0x7F
    values[Q0][2, 3] = torch.nan
    write_model(tmp_path / "a", stored, config={"quantization_config": SECTION})
    got = read_model(merged(tmp_path, {"merge_method": "passthrough", "models": ["a"]}))
    assert_same_bits(got[Q0], values[Q0].to(torch.bfloat16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_scale_is_named(tmp_path, value):
    stored, _ = CONVENTIONS["deepseek"].model(weights(1))
    stored[f"{Q0}_scale_inv"][0, 1] = value
    write_model(tmp_path / "a", stored, config={"quantization_config": SECTION})
    with pytest.raises(ExecutionError, match=r"q_proj\.weight_scale_inv: holds NaN.*the model is"):
        merged(tmp_path, {"merge_method": "passthrough", "models": ["a"]})


def test_values_beyond_the_format_are_an_error(tmp_path):
    stored, _ = CONVENTIONS["deepseek"].model(weights(1))
    stored[f"{Q0}_scale_inv"][0, 0] = 1e38
    write_model(tmp_path / "a", stored, config={"quantization_config": SECTION})
    with pytest.raises(ExecutionError, match=r"q_proj\.weight: element \d+ .*not a finite number"):
        merged(tmp_path, {"merge_method": "passthrough", "models": ["a"]})


def test_a_lock_knows_the_scales(tmp_path):
    write_pair(tmp_path, "a", CONVENTIONS["deepseek"], 1)
    out = merged(tmp_path, {"merge_method": "passthrough", "models": ["a"]})
    assert not verify(out, recompute=None).problems
    stored = read_model(tmp_path / "a")
    stored[f"{Q0}_scale_inv"][0, 0] *= 2
    config = json.loads((tmp_path / "a/config.json").read_text())
    write_model(tmp_path / "a", stored, config=config)
    with pytest.raises(LockError, match=r"q_proj\.weight_scale_inv"):
        run_lock(out / "mergeconf.lock", tmp_path / "again")


# --- a whole model ----------------------------------------------------------------------------


def test_transformers_loads_a_merge_of_deepseek_models(tmp_path):
    import transformers

    config = transformers.DeepseekV3Config(
        vocab_size=40, hidden_size=24, intermediate_size=20, moe_intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, n_shared_experts=1,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, q_lora_rank=10,
        kv_lora_rank=9, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=8,
        first_k_dense_replace=1, max_position_embeddings=32, dtype="bfloat16",
    )  # fmt: skip
    section = {**DEEPSEEK, "weight_block_size": [8, 8]}
    convention = Convention(lambda name: f"{name}_scale_inv", section, (8, 8))
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        made = transformers.DeepseekV3ForCausalLM(config).to(torch.bfloat16)
        made.save_pretrained(tmp_path / name)
        tensors = read_model(tmp_path / name)
        kept = {key for key in tensors if "gate.weight" in key}  # the router is not quantized
        stored, values = convention.model({k: v for k, v in tensors.items() if k not in kept})
        rest = {key: tensors[key] for key in kept}
        said = json.loads((tmp_path / name / "config.json").read_text())
        write_model(tmp_path / f"{name}-32", values | rest, config=said)
        said["quantization_config"] = section
        write_model(tmp_path / name, stored | rest, config=said, shards=3)
        (tmp_path / name / "model.safetensors").unlink()
        assert sum(tensor.dtype is E4M3 for tensor in stored.values()) > 20
    recipe = {"merge_method": "slerp", "base_model": "a", "models": ["b"],
              "parameters": {"t": 0.5}}  # fmt: skip
    got = assert_law(tmp_path, {**recipe, "out_dtype": "bfloat16"})
    model = load_exactly(tmp_path / "out")
    assert model.config.dtype == TORCH[DType.bfloat16]
    assert getattr(model.config, "quantization_config", None) is None
    for name, parameter in model.state_dict().items():
        if name in got:
            assert_same_bits(parameter.to(torch.bfloat16), got[name])
    assert torch.isfinite(model(input_ids=torch.arange(12)[None]).logits).all()
