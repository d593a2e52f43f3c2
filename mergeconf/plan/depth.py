"""What does a config say of the layers, and what has it to say of the output's?

Counts are set, and what is said of each layer follows the layers. What a config says by a rule
(every sixth layer, all up to a number) is written as a list where transformers reads one, and else
a warning.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeconf.errors import Problem
from mergeconf.layers import stacks_of
from mergeconf.plan.layer_kinds import layer_lists, write_list
from mergeconf.plan.sources import Model

COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers",
    "num_encoder_layers", "decoder_layers", "encoder_layers", "depth", "num_blocks",
    "num_hidden_blocks", "num_transformer_layers",
)  # fmt: skip
"""Keys that give the number of layers."""
PERIODS = {
    "decoder_sparse_step": "mlp_only_layers", "interleave_moe_layer_step": "moe_layers",
    "no_rope_layer_interval": "no_rope_layers", "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types", "moe_layer_freq": "mlp_layer_types",
    "attn_layer_period": None, "expert_layer_period": None, "moe_every_n_layers": None,
    "moe_layer_interval": None, "encoder_sparse_step": None,
}  # fmt: skip
"""Keys that tell layers of one kind from others by their number, every n-th, and the list that
can say it in their place."""
DENSE_IN_FRONT = ("first_k_dense_replace", "num_dense_layers")
"""Keys that give the number of layers without experts in front of those with."""
PREDICTION = "num_nextn_predict_layers"
"""Key that gives the number of layers stored behind those that the config counts."""
KINDS = ("layer_types", "layers_block_type", "hybrid_override_pattern")
"""Keys of lists and texts that give the number of layers where no other key does."""

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
    stacks = stacks_of(donor.tensors)
    _split_shared_count(config, tuple(stacks))
    for depth in depths:
        count = stacks.get(depth.stack, 0)
        order = tuple(layer for _, layer in depth.origins)
        found = list(_sections_of(config, depth.stack, stacks))
        for path, section, keys in found:
            _Rewrite(section, path, donor, count, depth, problems).run(keys)
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
    """Yield a config and the configs of parts within it (`text_config`; T5Gemma's `encoder`)."""
    yield path, config
    for key, value in config.items():
        if not isinstance(value, dict) or key == "quantization_config":
            continue
        if key.endswith("_config") or "model_type" in value or any(k in value for k in COUNTS):
            yield from _sections(value, (*path, key))


def _split_shared_count(config: Config, stacks: Sequence[str]) -> None:
    """Write T5's second count, which it leaves out where encoder and decoder are equally deep."""
    sides = {part for stack in stacks for part in stack.split(".")}
    if "num_layers" in config and {"encoder", "decoder"} <= sides:
        config.setdefault("num_decoder_layers", config["num_layers"])


def _sections_of(
    config: Config, stack: str, stacks: Mapping[str, int]
) -> Iterator[tuple[tuple[str, ...], Config, list[str]]]:
    """Yield the parts of a config that speak of a stack, with the keys that give its count."""
    count = stacks.get(stack, 0)
    found = []
    for path, section in _sections(config):
        keys = _count_keys(section, stack, count)
        if keys or any(key in layer_lists(section, count) and key in section for key in KINDS):
            found.append((path, section, keys))
    words = set(stack.split("."))
    others = {part for other in stacks if other != stack for part in other.split(".")}
    named = [item for item in found if words & _words(item[0])]
    kind = [
        item for item in found
        if _kind(".".join(item[0])) == _kind(stack) and not others & _words(item[0])
    ]  # fmt: skip
    yield from named or kind or found


def _words(path: Sequence[str]) -> set[str]:
    """Return the names of parts that a path into a config gives: `encoder`, `qformer`."""
    return {word for key in path for word in (key, key.removesuffix("_config"))}


def _count_keys(section: Config, stack: str, count: int) -> list[str]:
    keys = [key for key in COUNTS if key in section]
    parts = stack.split(".")
    both = any("decoder" in key for key in keys)
    if both and "decoder" in parts:
        keys = [key for key in keys if "decoder" in key]
    elif both:
        keys = [key for key in keys if "decoder" not in key]
    own = {count, count - _prediction_layers(section)}
    return [key for key in keys if section[key] in own and section[key] is not True]


def _prediction_layers(section: Config) -> int:
    extra = section.get(PREDICTION)
    return extra if isinstance(extra, int) and not isinstance(extra, bool) else 0


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
        behind = self._stored_behind(keys)
        own = self.count - behind
        origins = [(m, n) for m, n in self.depth.origins if n < self._count_of(m, behind)]
        if behind:
            self.section[PREDICTION] = len(self.depth.origins) - len(origins)
        for key in keys:
            self.section[key] = len(origins)
        self._dense_in_front(before, origins)
        self._experts_between(before, origins)
        self._lists(before, own, origins)
        self._windows(before, own)
        self._periods(before, origins)

    def _stored_behind(self, keys: Sequence[str]) -> int:
        """Return how many layers are stored behind those that the config counts: such that
        predict further tokens (DeepSeek V3). A config may name them though no file has them."""
        counts = {self.section[key] for key in keys}
        return self.count - min(counts) if counts else 0

    def _section_of(self, model: Model) -> Config:
        section: Any = model.config or {}
        for key in self.path:
            section = section.get(key) if isinstance(section, Mapping) else None
        return section if isinstance(section, dict) else {}

    def _lists(self, before: Config, own: int, origins: Sequence[tuple[Model, int]]) -> None:
        """Write what is said of each layer, where the output's config says something else."""
        said = layer_lists(before, own)
        models = {id(model): model for model, _ in origins}
        behind = self.count - own
        lists = {
            key: layer_lists(self._section_of(model), self._count_of(model, behind))
            for key, model in models.items()
        }
        for key, items in said.items():
            wanted = []
            for model, layer in origins:
                theirs = lists[id(model)].get(key) or items
                wanted.append(theirs[min(layer, len(theirs) - 1)])
            if layer_lists(self.section, len(origins)).get(key) != wanted:
                write_list(self.section, key, wanted)

    def _count_of(self, model: Model, behind: int) -> int:
        """Return the number of a model's layers without those behind."""
        return stacks_of(model.tensors).get(self.depth.stack, self.count) - behind

    def _windows(self, before: Config, old: int) -> None:
        """Keep the number of layers without a window what it says."""
        limit = before.get("max_window_layers")
        if limit is None:
            return
        kinds = self.section.get("layer_types")
        if limit == old:  # no layer has a window: so it stays
            self.section["max_window_layers"] = len(self.depth.origins)
        elif isinstance(kinds, list) and before.get("use_sliding_window"):
            self.section["max_window_layers"] = _leading(kinds, "full_attention")

    def _dense_in_front(
        self, before: Config, origins: Sequence[tuple[Model, int]]
    ) -> None:  # fmt: skip
        """Count the dense layers in front anew, where a model begins with such."""
        for key in DENSE_IN_FRONT:
            first = before.get(key)
            if not isinstance(first, int):
                continue
            dense = [layer < self._section_of(m).get(key, first) for m, layer in origins]
            self.section[key] = _leading(dense, True)
            lists = layer_lists(self.section, len(origins))
            if sum(dense) > _leading(dense, True) and "mlp_layer_types" not in {**before, **lists}:
                self._warn(key, "dense layers stand behind others")

    def _experts_between(
        self, before: Config, origins: Sequence[tuple[Model, int]]
    ) -> None:  # fmt: skip
        """Set the first and the last layer with experts anew (Ernie 4.5)."""
        first, last = before.get("moe_layer_start_index"), before.get("moe_layer_end_index")
        if not isinstance(first, int):
            return
        end = last if isinstance(last, int) and last >= 0 else self.count - 1
        among = [i for i, (_, layer) in enumerate(origins) if first <= layer <= end]
        self.section["moe_layer_start_index"] = among[0] if among else len(origins)
        self.section["moe_layer_end_index"] = among[-1] if among else len(origins) - 1
        if among and len(among) <= among[-1] - among[0]:
            self._warn("moe_layer_start_index", "dense layers stand between others")

    def _periods(self, before: Config, origins: Sequence[tuple[Model, int]]) -> None:
        lists = {**self.section, **layer_lists(self.section, len(origins))}
        for key, instead in PERIODS.items():
            period = before.get(key)
            if not isinstance(period, int) or isinstance(period, bool) or period < 2:
                continue
            if instead is not None and isinstance(lists.get(instead), list):
                continue
            if any((i - layer) % period for i, (_, layer) in enumerate(origins)):
                self._warn(key, f"tells kinds of layers by their number: every {period}th differs")

    def _warn(self, key: str, message: str) -> None:
        where = ".".join(("config.json", *self.path, key))
        hint = "the model may not load: choose ranges that keep the pattern"
        self.problems.append(
            Problem(message, where, hint=hint, severity="warning", code="layer-pattern")
        )


def _leading(items: Sequence[Any], kind: Any) -> int:
    """Return how many items in front are of a kind."""
    return next((i for i, item in enumerate(items) if item != kind), len(items))
