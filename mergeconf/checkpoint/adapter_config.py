"""What does an adapter's config say of its weights, and what of it is not known here?

Follows peft 0.21. An option that changes what the weights mean is either followed or refused by
its name; one that only concerned the training is passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeconf.errors import CheckpointError, Problem, listed

_MERGE_FIRST = (
    "merge it into its model with peft (merge_and_unload, save_pretrained), and name that folder"
)
_NO_WEIGHTS = "it changes what a model is fed, not its weights: there is nothing to merge"
_PROMPTS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT",
    "CPT", "CARTRIDGE",
}  # fmt: skip

_REFUSED = {
    "alora_invocation_tokens": "peft cannot merge it either: it acts after certain tokens only",
    "arrow_config": "it chooses among several adapters while the model runs",
    "kasa_config": _MERGE_FIRST,
    "layer_replication": "build the deeper model first with slices, and adapt its layers",
    "megatron_config": _MERGE_FIRST,
    "monteclora_config": _MERGE_FIRST,
    "target_parameters": _MERGE_FIRST,
    "trainable_token_indices": _MERGE_FIRST,
    "use_bdlora": _MERGE_FIRST,
    "use_qalora": _MERGE_FIRST,
}
"""Options that change what the weights mean in a way that is not followed."""
_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that also change the base's weights: the adapter then fits those, not the base."""
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "enable_lora", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core", "merge_weights",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
    "velora_config",
}  # fmt: skip
"""Options that are followed, or that only concerned the training."""


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What of an adapter's config decides how its weights are merged."""

    rank: int
    """Rank of a product, where no pattern names another."""
    alpha: float
    """Numerator of the scale, where no pattern names another."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Regular expressions on the ends of modules' names, and their ranks; the first that fits."""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    rslora: bool = False
    """Whether the scale is alpha / √rank; else it is alpha / rank."""
    dora: bool = False
    """Whether rows are scaled to a length of their own."""
    fan_in_fan_out: bool = False
    """Whether weights are thought to be stored as (in, out); shapes say it better."""
    tied: bool = False
    """Whether what it adds to an embedding and to the head tied to it is one and the same."""
    base_name: str = ""
    """The model that it was trained on, as its config names it."""

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's product, as peft finds it."""
        return next((r for key, r in self.rank_pattern if _fits(key, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """Return what a module's product is multiplied by, as peft finds it."""
        alpha = next((a for key, a in self.alpha_pattern if _fits(key, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _fits(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def parse_settings(config: Mapping[str, Any], path: Path) -> tuple[AdapterSettings, list[Problem]]:
    """Return what a config says, and warnings.

    Raises:
        CheckpointError: all that is wrong with it or not known.
    """
    reader = _Reader(config, str(path))
    reader.check_kind()
    settings = AdapterSettings(
        rank=reader.rank("r", config.get("r", 8), 8),
        alpha=reader.number("lora_alpha", config.get("lora_alpha", 8), 8.0),
        rank_pattern=tuple(
            (key, reader.rank(f"rank_pattern: {key}", value, 8))
            for key, value in reader.pattern("rank_pattern")
        ),
        alpha_pattern=tuple(
            (key, reader.number(f"alpha_pattern: {key}", value, 8.0))
            for key, value in reader.pattern("alpha_pattern")
        ),
        rslora=reader.flag("use_rslora"),
        dora=reader.flag("use_dora"),
        fan_in_fan_out=reader.flag("fan_in_fan_out"),
        tied=reader.flag("ensure_weight_tying"),
        base_name=str(config.get("base_model_name_or_path") or ""),
    )
    if reader.problems:
        raise CheckpointError(reader.problems)
    return settings, reader.warnings()


class _Reader:
    """Reads options and collects what is wrong with them."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where
        self.problems: list[Problem] = []

    def check_kind(self) -> None:
        """Note a kind of adapter, or an option of it, that is not followed."""
        kind = self.config.get("peft_type")
        if kind != "LORA":
            name = kind if isinstance(kind, str) else "an unknown kind"
            hint = _NO_WEIGHTS if name in _PROMPTS else _MERGE_FIRST
            self._note(f"is an adapter of kind {name}; only LORA is read (DoRA, rsLoRA too)", hint)
            return
        for option, hint in _REFUSED.items():
            if self.config.get(option):
                self._note(f"{option} is not supported", hint)
        start = self.config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_REWRITES_BASE):
            self._note(
                f"init_lora_weights is {start}: the adapter was trained beside weights that were "
                "changed at the start, and does not fit the base as it is",
                "save it again with peft's save_pretrained(folder, "
                "path_initial_model_for_weight_conversion=...), which makes it a plain LoRA",
            )

    def flag(self, option: str) -> bool:
        """Return a truth value; left out it is false."""
        value = self.config.get(option)
        if value is None or isinstance(value, bool):
            return bool(value)
        self._note(f"{option} is {value!r}, not true or false")
        return False

    def rank(self, option: str, value: object, instead: int) -> int:
        """Return a whole number of at least 1."""
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self._note(f"{option} is {value!r}, not a whole number above 0")
        return instead

    def number(self, option: str, value: object, instead: float) -> float:
        """Return a finite number."""
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        self._note(f"{option} is {value!r}, not a number")
        return instead

    def pattern(self, option: str) -> list[tuple[str, object]]:
        """Return pairs of a regular expression and its value."""
        value = self.config.get(option) or {}
        if not isinstance(value, dict):
            self._note(f"{option} is {value!r}, not a mapping of names to numbers")
            return []
        for key in value:
            try:
                re.compile(f"({key})$")
            except re.error as error:
                self._note(f"{option}: {key!r} is no regular expression: {error}")
                return []
        return list(value.items())

    def warnings(self) -> list[Problem]:
        """Return a warning for options that may mean something that is not known here."""
        known = _KNOWN | _REFUSED.keys()
        unknown = sorted(key for key, value in self.config.items() if value and key not in known)
        if not unknown:
            return []
        return [
            Problem(
                f"options that are not known are passed over: {listed(unknown)}",
                where=self.where,
                hint="if one of them changes what the weights mean, merge the adapter with the "
                "tool that wrote it",
                severity="warning",
                code="adapter-option",
            )
        ]

    def _note(self, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message, where=self.where, hint=hint))
