"""What configs say of each layer: read as transformers reads it, and written for other layers."""

import json
from types import SimpleNamespace

import pytest

from mergeconf.api import load_recipe, make_plan
from mergeconf.plan.layer_kinds import CYCLES, FULL, LINEAR, SLIDING, layer_lists, write_list
from support.models import llama_like, write_model

COUNT = 13


def derived_by_transformers(model_type, **settings):
    """Return the config that transformers makes of settings, as it would write it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {model_type}")
    config = CONFIG_MAPPING[model_type](num_hidden_layers=COUNT, **settings)
    return config.to_dict()


# --- rules, compared with transformers --------------------------------------------------------


def test_the_table_names_enough_types():
    assert len(CYCLES) > 15
    assert {cycle.other for cycle in CYCLES.values()} == {FULL, LINEAR}


@pytest.mark.parametrize("model_type", CYCLES)
def test_attention_by_a_type_of_model(model_type):
    found = layer_lists({"model_type": model_type}, COUNT)["layer_types"]
    assert found == derived_by_transformers(model_type)["layer_types"]


RULES = [
    ("gemma3_text", {"sliding_window_pattern": 3}, "layer_types"),
    ("cohere2", {"sliding_window_pattern": 2}, "layer_types"),
    ("exaone4", {"sliding_window_pattern": 3, "sliding_window": 8}, "layer_types"),
    ("modernbert", {"global_attn_every_n_layers": 4}, "layer_types"),
    ("qwen3_next", {"full_attention_interval": 3}, "layer_types"),
    ("qwen3_5_text", {"full_attention_interval": 2}, "layer_types"),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 5}, "layer_types"),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 5}, "layer_types"),
    ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 5}, "layer_types"),
    ("smollm3", {}, "no_rope_layers"),
    ("smollm3", {"no_rope_layer_interval": 3}, "no_rope_layers"),
    ("llama4_text", {"no_rope_layer_interval": 5}, "no_rope_layers"),
    ("glm4_moe_lite", {"first_k_dense_replace": 3}, "mlp_layer_types"),
    ("deepseek_v32", {"first_k_dense_replace": 4}, "mlp_layer_types"),
    ("exaone_moe", {"first_k_dense_replace": 2}, "mlp_layer_types"),
    ("kimi_linear", {"first_k_dense_replace": 2}, "mlp_layer_types"),
    ("axk1", {"first_k_dense_replace": 2}, "mlp_layer_types"),
]


@pytest.mark.parametrize(("model_type", "settings", "key"), RULES)
def test_what_follows_from_a_rule(model_type, settings, key):
    found = layer_lists({"model_type": model_type, **settings}, COUNT)
    assert found[key] == derived_by_transformers(model_type, **settings)[key]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_which_layers_have_experts(step):
    wanted = derived_by_transformers("llama4_text", interleave_moe_layer_step=step)["moe_layers"]
    found = layer_lists({"model_type": "llama4_text", "interleave_moe_layer_step": step}, COUNT)
    assert [i for i, among in enumerate(found["moe_layers"]) if among] == wanted


@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe", "qwen3_next"])
def test_which_layers_of_qwen_have_no_experts(model_type):
    """The model's code decides: transformers makes the layers."""
    import transformers

    names = {"qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe", "qwen3_next": "Qwen3Next"}
    settings = {"decoder_sparse_step": 2, "mlp_only_layers": [3, 4]}
    small = {
        "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": COUNT,
        "num_attention_heads": 1, "num_key_value_heads": 1, "num_experts": 2,
        "num_experts_per_tok": 1, "moe_intermediate_size": 8, "head_dim": 8,
        "shared_expert_intermediate_size": 8,
    }  # fmt: skip
    config = getattr(transformers, f"{names[model_type]}Config")(**small, **settings)
    model = getattr(transformers, f"{names[model_type]}Model")(config)
    dense = [not hasattr(layer.mlp, "experts") for layer in model.layers]
    assert layer_lists({"model_type": model_type, **settings}, COUNT)["mlp_only_layers"] == dense
    written = {"model_type": model_type, **settings}
    write_list(written, "mlp_only_layers", dense)
    assert written["decoder_sparse_step"] == 1
    assert layer_lists(written, COUNT)["mlp_only_layers"] == dense


# --- what only looks like a list of layers ----------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["begin_suppress_tokens", "suppress_tokens", "eos_token_id", "conv_dim", "conv_stride",
     "conv_kernel", "tdnn_kernel", "hidden_sizes", "depths", "image_size", "time_step_limit",
     "ssm_multipliers", "image_grid_pinpoints", "supported_aspect_ratios", "pos_att_type",
     "mrope_section", "architectures", "bad_words_ids", "out_features"],
)  # fmt: skip
def test_lists_that_are_as_long_by_chance(key):
    assert layer_lists({key: [1, 2, 3]}, 3) == {}


# --- configs ----------------------------------------------------------------------------------


def depth(tmp_path, config, *ranges, layers=4, name="model.layers", module=None, tensors=()):
    """Return the config of layers put together anew, and the codes of warnings."""
    stored = {
        key.replace("model.layers", name): value
        for key, value in llama_like(0, layers=layers).items()
    }
    for other in tensors:
        stored[other] = next(iter(stored.values())).clone()
    folder = write_model(tmp_path / "m", stored, config=config)
    slices = [{"sources": [{"model": str(folder), "layer_range": list(r)}]} for r in ranges]
    recipe = {"merge_method": "passthrough"}
    recipe |= {"slices": slices} if module is None else {
        "modules": {module: {"slices": slices}}, "base_model": str(folder),
        "rules": [{"match": f"re:(?!{name}\\.).*", "take": "base_model"}],
    }  # fmt: skip
    plan = make_plan(load_recipe(recipe))
    content = plan.sidecars["config.json"]
    text = content if isinstance(content, bytes) else content.read_text()
    return SimpleNamespace(config=json.loads(text), codes=[p.code for p in plan.warnings])


def test_a_rule_becomes_a_list_only_where_it_no_longer_holds(tmp_path):
    config = {"model_type": "gemma2", "num_hidden_layers": 4}
    kept = depth(tmp_path / "kept", config, (0, 4), (2, 4))
    assert kept.config == {**config, "num_hidden_layers": 6}
    broken = depth(tmp_path / "broken", config, (0, 1), (2, 4))
    assert broken.config == {
        **config, "num_hidden_layers": 3, "layer_types": [SLIDING, SLIDING, FULL]
    }  # fmt: skip
    assert kept.codes == broken.codes == []


def test_layers_that_predict_further_tokens_count_only_where_they_are_stored(tmp_path):
    """transformers names them in the config and writes none."""
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    found = depth(tmp_path / "none", config, (0, 2), (1, 4)).config
    assert found == {"num_hidden_layers": 5, "num_nextn_predict_layers": 1}
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "layer_types": ["a", "b", "c"]}
    found = depth(tmp_path / "one", config, (0, 2), (1, 4)).config
    assert found == {
        "num_hidden_layers": 4, "num_nextn_predict_layers": 1, "layer_types": ["a", "b", "b", "c"],
    }  # fmt: skip
    found = depth(tmp_path / "cut", config, (0, 2), (0, 3)).config
    assert (found["num_hidden_layers"], found["num_nextn_predict_layers"]) == (5, 0)


def test_dense_layers_behind_others(tmp_path):
    config = {"model_type": "glm4_moe_lite", "num_hidden_layers": 4, "first_k_dense_replace": 1}
    found = depth(tmp_path / "list", config, (0, 2), (0, 2))
    assert found.config["mlp_layer_types"] == ["dense", "sparse", "dense", "sparse"]
    assert found.codes == []
    config["model_type"] = "deepseek_v3"
    found = depth(tmp_path / "warning", config, (0, 2), (0, 2))
    assert (found.config["first_k_dense_replace"], found.codes) == (1, ["layer-pattern"])


def test_experts_between_a_first_and_a_last_layer(tmp_path):
    config = {"num_hidden_layers": 4, "moe_layer_start_index": 1, "moe_layer_end_index": 2}
    found = depth(tmp_path / "one", config, (0, 3), (1, 4))
    assert (found.config["moe_layer_start_index"], found.config["moe_layer_end_index"]) == (1, 4)
    assert found.codes == []
    found = depth(tmp_path / "two", {**config, "moe_layer_end_index": -1}, (0, 4), (1, 4))
    assert (found.config["moe_layer_start_index"], found.config["moe_layer_end_index"]) == (1, 6)
    assert depth(tmp_path / "gap", config, (0, 2), (0, 2)).codes == ["layer-pattern"]


def test_letters_and_groups_of_kinds(tmp_path):
    config = {"num_hidden_layers": 4, "hybrid_override_pattern": "ME*-"}
    found = depth(tmp_path / "letters", config, (0, 2), (1, 4)).config
    assert found == {"num_hidden_layers": 5, "hybrid_override_pattern": "MEE*-"}
    config = {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    found = depth(tmp_path / "groups", config, (0, 2), (1, 4)).config
    kinds = ["global", "local", "local", "global", "local"]
    assert found == {"num_layers": 5, "attention_types": [[kinds, 1]]}


def test_kinds_alone_say_how_many_layers_there_are(tmp_path):
    found = depth(tmp_path, {"layers_block_type": ["a", "b", "c", "d"]}, (0, 2), (1, 4))
    assert found.config == {"layers_block_type": ["a", "b", "b", "c", "d"]}
    assert found.codes == []


def test_an_encoder_and_a_decoder_share_one_number(tmp_path):
    """T5 leaves out the second where both are equal."""
    other = "encoder.block.3.layer.weight"
    found = depth(tmp_path / "decoder", {"num_layers": 4}, (0, 2), (1, 4),
                  name="decoder.block", module="decoder", tensors=[other]).config  # fmt: skip
    assert found == {"num_layers": 4, "num_decoder_layers": 5}
    other = "decoder.block.3.layer.weight"
    found = depth(tmp_path / "encoder", {"num_layers": 4}, (0, 2), (1, 4),
                  name="encoder.block", module="encoder", tensors=[other]).config  # fmt: skip
    assert found == {"num_layers": 5, "num_decoder_layers": 4}


def test_parts_of_a_config_are_told_apart_by_their_names(tmp_path):
    """T5Gemma's parts, and BLIP-2's, are equally deep."""
    config = {"encoder": {"num_hidden_layers": 4}, "decoder": {"num_hidden_layers": 4}}
    other = "model.decoder.layers.3.w.weight"
    found = depth(tmp_path / "sides", config, (0, 3), name="model.encoder.layers",
                  module="encoder", tensors=[other]).config  # fmt: skip
    assert found == {"encoder": {"num_hidden_layers": 3}, "decoder": {"num_hidden_layers": 4}}
    config = {"qformer_config": {"num_hidden_layers": 4}, "text_config": {"num_hidden_layers": 4}}
    other = "qformer.encoder.layer.3.weight"
    found = depth(tmp_path / "text", config, (0, 3), name="language_model.layers",
                  module="text_decoder", tensors=[other]).config  # fmt: skip
    assert found == {"qformer_config": {"num_hidden_layers": 4},
                     "text_config": {"num_hidden_layers": 3}}  # fmt: skip
