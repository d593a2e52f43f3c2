"""What does a config say of each layer, by a list, by the layers' numbers or by a rule?

A model that is put together anew follows no rule any more (every sixth layer, all but the first):
transformers reads a list in its place. The table says which rule a type of model has where its
config writes neither; a test compares it with what transformers derives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


@dataclass(frozen=True, slots=True)
class Cycle:
    """Kinds of layers that come again and again: all are common, but for one in each period."""

    common: str
    other: str
    period: int
    first: bool = False
    """The other kind is the first of its period, not the last."""
    key: str = "sliding_window_pattern"
    """Where a config may say another period."""

    def kinds(self, section: Mapping[str, Any], count: int) -> list[str]:
        """Return the kind of each layer."""
        own = section.get(self.key)
        period = own if isinstance(own, int) else self.period
        if period < 1:
            return [self.common] * count
        position = 0 if self.first else period - 1
        return [self.other if i % period == position else self.common for i in range(count)]


_EVERY = "global_attn_every_n_layers"
_INTERVAL = "full_attention_interval"
CYCLES: dict[str, Cycle] = {
    **dict.fromkeys(
        ("gemma2", "gpt_oss", "t5_gemma_module", "vaultgemma"), Cycle(SLIDING, FULL, 2)
    ),
    **dict.fromkeys(
        ("gemma3_text", "t5gemma2_text", "t5gemma2_decoder"), Cycle(SLIDING, FULL, 6)
    ),
    **dict.fromkeys(("cohere2", "exaone4", "exaone_moe", "olmo3"), Cycle(SLIDING, FULL, 4)),
    "gemma3n_text": Cycle(SLIDING, FULL, 5),
    "afmoe": Cycle(SLIDING, FULL, 4, key=_EVERY),
    **dict.fromkeys(
        ("modernbert", "modernbert-decoder"), Cycle(SLIDING, FULL, 3, first=True, key=_EVERY)
    ),
    **dict.fromkeys(
        ("cwm", "granite_swa", "granitemoe_swa"), Cycle(SLIDING, FULL, 4, first=True)
    ),
    "minimax": Cycle(FULL, LINEAR, 2, key=""),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), Cycle(LINEAR, FULL, 4, key=_INTERVAL)
    ),
}  # fmt: skip
"""By model type: attention of the layers where a config has no `layer_types`."""
NUMBERS = (
    "mlp_only_layers", "cross_attention_layers", "full_attn_idxs", "attn_layer_indices",
    "attention_layers_idx", "moe_layers", "global_attn_indices", "hybrid_layer_ids",
    "fullatt_block_indexes", "rope_scaling_layers", "local_layer_ids",
)  # fmt: skip
"""Keys that list numbers of layers."""
_LETTERS = "hybrid_override_pattern"
"""Key of a text with a letter for each layer (Nemotron-H)."""
_GROUPS = "attention_types"
"""Key of groups of kinds, each with how often it comes: [[["global", "local"], 12]] (GPT-Neo)."""
_NO_LAYERS = re.compile(
    r"architectures$|_tokens?$|_ids?$|^id2label|_sections?$|^(conv|tdnn|out)_|sizes$"
    r"|_(size|limit|pinpoints|ratios|grid|range|mean|std|multipliers)$|^depths$|^pos_att_type$"
)
"""Lists that may have as many items as there are layers by chance."""
_DENSE_BY_LIST = (
    "axk1", "axk2", "deepseek_v32", "exaone_moe", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear",
)  # fmt: skip
"""Types that read `mlp_layer_types` where dense layers are not those in front."""
_ONE_DENSE = ("glm4_moe_lite",)
"""Those of them that have one dense layer in front whatever else the config says."""


def layer_lists(section: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """Return what a config says, item by item for each of its layers, by the key that can say it.

    For numbers of layers, the item is whether the layer is among them.
    """
    found: dict[str, list[Any]] = {}
    for key, value in section.items():
        items = _read(key, value, section, count)
        if items is not None and len(items) == count:
            found[key] = items
    for key, rule in _RULES.items():
        items = None if isinstance(section.get(key), list) else rule(section, count)
        if items is not None:
            found[key] = items
    return found


def write_list(section: dict[str, Any], key: str, items: list[Any]) -> None:
    """Write what `layer_lists` returns under a key into a config."""
    if key in NUMBERS:
        section[key] = [i for i, among in enumerate(items) if among]
    elif key == _LETTERS:
        section[key] = "".join(items)
    elif key == _GROUPS:
        section[key] = [[items, 1]]
    else:
        section[key] = items
    if key == "mlp_only_layers" and "decoder_sparse_step" in section:
        section["decoder_sparse_step"] = 1


def _read(key: str, value: Any, section: Mapping[str, Any], count: int) -> list[Any] | None:
    """Return the items of a list or text that may have one for each layer."""
    if key == _LETTERS and isinstance(value, str):
        return list(value)
    if not isinstance(value, list) or _NO_LAYERS.search(key):
        return None
    if key == "mlp_only_layers":
        return _dense_numbers(section, count)
    if key in NUMBERS:
        return [i in value for i in range(count)]
    if key == _GROUPS:
        return _expanded(value)
    if key == "block_types" and value:
        return [value[i % len(value)] for i in range(count)]
    return value


def _expanded(groups: list[Any]) -> list[Any] | None:
    try:
        return [kind for kinds, times in groups for kind in kinds * times]
    except (TypeError, ValueError):
        return None


def _attention(section: Mapping[str, Any], count: int) -> list[Any] | None:
    cycle = CYCLES.get(str(section.get("model_type")))
    if cycle is None and _is_count(section.get("sliding_window_pattern")):
        cycle = Cycle(SLIDING, FULL, 0)
    if cycle is not None:
        return cycle.kinds(section, count)
    limit = section.get("max_window_layers")
    if not section.get("use_sliding_window") or not isinstance(limit, int):
        return None
    if section.get("model_type") == "qwen2_moe":
        return [SLIDING if i < limit and i % 2 == 0 else FULL for i in range(count)]
    return [SLIDING if i >= limit else FULL for i in range(count)]


def _positions(section: Mapping[str, Any], count: int) -> list[Any] | None:
    if section.get("model_type") not in ("smollm3", "llama4_text"):
        return None
    period = section.get("no_rope_layer_interval") or 4
    return [int((i + 1) % period != 0) for i in range(count)]


def _experts(section: Mapping[str, Any], count: int) -> list[Any] | None:
    if section.get("model_type") != "llama4_text":
        return None
    step = section.get("interleave_moe_layer_step") or 1
    return [(i + 1) % step == 0 for i in range(count)]


def _dense(section: Mapping[str, Any], count: int) -> list[Any] | None:
    kind = section.get("model_type")
    first = 1 if kind in _ONE_DENSE else section.get("first_k_dense_replace")
    if kind not in _DENSE_BY_LIST or not isinstance(first, int):
        return None
    return ["dense" if i < first else "sparse" for i in range(count)]


def _dense_numbers(section: Mapping[str, Any], count: int) -> list[Any]:
    """Return which layers of a mixture of experts have none (Qwen)."""
    numbers = section.get("mlp_only_layers") or []
    by_step = _dense_by_step(section, count) or [False] * count
    return [i in numbers or dense for i, dense in enumerate(by_step)]


def _dense_by_step(section: Mapping[str, Any], count: int) -> list[Any] | None:
    step = section.get("decoder_sparse_step") or 1
    if not str(section.get("model_type")).startswith("qwen"):
        return None
    return [(i + 1) % step != 0 for i in range(count)]


_RULES: dict[str, Callable[[Mapping[str, Any], int], list[Any] | None]] = {
    "layer_types": _attention,
    "no_rope_layers": _positions,
    "moe_layers": _experts,
    "mlp_layer_types": _dense,
    "mlp_only_layers": lambda section, count: (
        _dense_numbers(section, count)
        if str(section.get("model_type")).startswith("qwen")
        else None
    ),
}
"""What a config means that has no such list, by the key of the list."""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
