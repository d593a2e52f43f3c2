"""What does a config say of the layers, and what has it to say of the output's?

Counts are set, lists with one item a layer follow the layers, lists of layers' numbers are
renumbered. What a config says by a rule (every sixth layer, all up to a number) is rewritten as a
list where transformers reads one, or else a warning.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeconf.errors import Problem
from mergeconf.layers import stacks_of
from mergeconf.plan.sources import Model

COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers",
    "num_encoder_layers", "decoder_layers", "encoder_layers", "depth", "num_blocks",
    "num_hidden_blocks", "num_transformer_layers",
)  # fmt: skip
"""Keys that give the number of layers."""
NUMBERS = (
    "mlp_only_layers", "cross_attention_layers", "full_attn_idxs", "attn_layer_indices",
    "attention_layers_idx", "moe_layers", "global_attn_indices",
)  # fmt: skip
"""Keys that list numbers of layers."""
PERIODS = (
    "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", "attn_layer_period",
    "expert_layer_period", "no_rope_layer_interval", "global_attn_every_n_layers",
    "full_attention_interval", "moe_every_n_layers",
)  # fmt: skip
"""Keys that tell layers of one kind from others by their number: every n-th."""
PREDICTION = "num_nextn_predict_layers"
"""Key that gives the number of layers stored behind those that the config counts."""
SLIDING_PERIODS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
"""Every n-th layer of these types has full attention where the config does not say otherwise."""
_NO_LAYERS = re.compile(r"architectures$|_token_ids?$|_tokens?_ids?$|^id2label|_sections?$")
"""Lists that may have as many items as there are layers by chance."""

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Depth:
    """A stack of the output that is made of slices."""

    stack: str
    origins: tuple[tuple[Model, int], ...]
    """For each output layer, the model and layer that decide what the config says of it: the
    base's of its slice, or else the first source's."""


def layer_counts(config: Config | None) -> Iterator[int]:
    """Yield every number of layers that a config gives for itself or its text part."""
    for path, section in _sections(config or {}):
        if _kind(".".join(path)) == "text":
            yield from (section[key] for key in COUNTS if isinstance(section.get(key), int))


def deepen(
    donor: Model, depths: Sequence[Depth]
) -> tuple[Config | None, list[Problem]]:  # fmt: skip
    """Return the donor's config with the output's layers, and what it cannot say."""
    if donor.config is None:
        return None, []
    config = copy.deepcopy(donor.config)
    problems: list[Problem] = []
    for depth in depths:
        count = stacks_of(donor.tensors).get(depth.stack, 0)
        order = tuple(layer for _, layer in depth.origins)
        found = list(_sections_of(config, depth.stack, count))
        for path, section, keys in found:
            _Rewrite(section, path, donor, count, depth, problems).run(keys)
            _set_prediction_layers(section, count, depth)
        if not found and order != tuple(range(count)):
            problems.append(
                Problem(
                    f"the config does not say that {depth.stack} has {count} layers, "
                    f"so it is not told that there are {len(order)} now",
                    where="config.json",
                    hint="correct it by hand",
                    severity="warning",
                    code="depth-not-in-config",
                )
            )
    return config, problems


def _sections(
    config: Config, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Config]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            yield from _sections(value, (*path, key))


def _sections_of(
    config: Config, stack: str, count: int
) -> Iterator[tuple[tuple[str, ...], Config, list[str]]]:
    """Yield the parts of a config that speak of a stack, with the keys that give its count."""
    found = []
    for path, section in _sections(config):
        keys = _count_keys(section, stack, count)
        if keys:
            found.append((path, section, keys))
    own = [item for item in found if _kind(".".join(item[0])) == _kind(stack)]
    yield from own or found


def _count_keys(section: Config, stack: str, count: int) -> list[str]:
    keys = [key for key in COUNTS if key in section]
    parts = stack.split(".")
    both = any("decoder" in key for key in keys)
    if both and "decoder" in parts:
        keys = [key for key in keys if "decoder" in key]
    elif both:
        keys = [key for key in keys if "decoder" not in key]
    extra = section.get(PREDICTION)
    own = {count, count - extra} if isinstance(extra, int) else {count}
    return [key for key in keys if section[key] in own and section[key] is not True]


def _set_prediction_layers(section: Config, count: int, depth: Depth) -> None:
    """Count the layers behind the model's own that predict further tokens (DeepSeek V3)."""
    extra = section.get(PREDICTION)
    if not isinstance(extra, int) or isinstance(extra, bool) or extra < 1:
        return
    kept = sum(layer >= count - extra for _, layer in depth.origins)
    section[PREDICTION] = kept
    for key in COUNTS:
        if key in section and section[key] == len(depth.origins):
            section[key] -= kept


def _kind(text: str) -> str:
    for kind, words in (("vision", r"vision|visual|vit|image"), ("audio", r"audio|speech")):
        if re.search(words, text):
            return kind
    return "text"


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """One section of the config, rewritten in place for one stack."""

    section: Config
    path: tuple[str, ...]
    donor: Model
    count: int
    """The donor's number of layers."""
    depth: Depth
    problems: list[Problem]

    def run(self, keys: Sequence[str]) -> None:
        """Set counts and lists."""
        before = dict(self.section)
        total = len(self.depth.origins)
        for key in keys:
            self.section[key] = total
        for key, value in before.items():
            if key in NUMBERS and isinstance(value, list):
                self.section[key] = self._numbers(key, value)
            elif self._is_per_layer(key, value):
                origins = self.depth.origins
                self.section[key] = [self._item(key, value, *origin) for origin in origins]
        self._windows(before)
        self._first_dense(before)
        self._periods(before)

    def _is_per_layer(self, key: str, value: object) -> bool:
        fits = isinstance(value, list) and len(value) == self.count
        return fits and not _NO_LAYERS.search(key)

    def _section_of(self, model: Model) -> Config:
        section: Any = model.config or {}
        for key in self.path:
            section = section.get(key) if isinstance(section, Mapping) else None
        return section if isinstance(section, dict) else {}

    def _item(self, key: str, value: list[Any], model: Model, layer: int) -> Any:
        """Return what a model's own config says of a layer, or else the donor's."""
        own = self._section_of(model).get(key)
        if isinstance(own, list) and len(own) == stacks_of(model.tensors).get(self.depth.stack):
            return own[layer]
        return value[min(layer, len(value) - 1)]

    def _numbers(self, key: str, value: list[Any]) -> list[int]:
        found = []
        for index, (model, layer) in enumerate(self.depth.origins):
            own = self._section_of(model).get(key, value)
            if isinstance(own, list) and layer in own:
                found.append(index)
        return found

    def _windows(self, before: Config) -> None:
        """Keep each layer's kind of attention where the config gives it by a rule."""
        old, total = self.count, len(self.depth.origins)
        limit = before.get("max_window_layers")
        if limit == old:  # no layer has a window: so it stays
            self.section["max_window_layers"] = total
        if isinstance(before.get("layer_types"), list):
            kinds = self.section["layer_types"]
            if limit is not None and limit != old and before.get("use_sliding_window"):
                self.section["max_window_layers"] = _leading(kinds, "full_attention")
            return
        kinds = [_attention(self._section_of(model), layer) for model, layer in self.depth.origins]
        if all(kind is not None for kind in kinds):
            derived = [_attention(self.section, index) for index in range(total)]
            if kinds != derived:
                self.section["layer_types"] = kinds
                if limit is not None and before.get("use_sliding_window"):
                    self.section["max_window_layers"] = _leading(kinds, "full_attention")

    def _first_dense(self, before: Config) -> None:
        """Count the dense layers in front anew, where a model begins with such."""
        first = before.get("first_k_dense_replace")
        if not isinstance(first, int):
            return
        dense = [
            layer < self._section_of(model).get("first_k_dense_replace", first)
            for model, layer in self.depth.origins
        ]
        self.section["first_k_dense_replace"] = _leading(dense, True)
        if sum(dense) > _leading(dense, True):
            self._warn("first_k_dense_replace", "dense layers stand behind others")

    def _periods(self, before: Config) -> None:
        for key in PERIODS:
            period = before.get(key)
            if not isinstance(period, int) or isinstance(period, bool) or period < 2:
                continue
            if any((i - layer) % period for i, (_, layer) in enumerate(self.depth.origins)):
                self._warn(key, f"tells kinds of layers by their number: every {period}th differs")

    def _warn(self, key: str, message: str) -> None:
        where = ".".join(("config.json", *self.path, key))
        hint = "the model may not load: choose ranges that keep the pattern"
        self.problems.append(
            Problem(message, where, hint=hint, severity="warning", code="layer-pattern")
        )


def _attention(section: Config, layer: int) -> str | None:
    """Return a layer's kind of attention as transformers derives it, or None where it does not."""
    period = section.get("sliding_window_pattern")
    if not isinstance(period, int):
        period = SLIDING_PERIODS.get(str(section.get("model_type")))
    if period is not None and period > 0:
        return "sliding_attention" if (layer + 1) % period else "full_attention"
    limit = section.get("max_window_layers")
    if section.get("use_sliding_window") and isinstance(limit, int):
        return "sliding_attention" if layer >= limit else "full_attention"
    return None


def _leading(items: Sequence[Any], kind: Any) -> int:
    """Return how many items in front are of a kind."""
    return next((i for i, item in enumerate(items) if item != kind), len(items))
