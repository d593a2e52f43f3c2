"""Families of models that transformers can make small, by name."""

from __future__ import annotations

from support.family import IMAGE_TOKEN, VOCABULARY, Family
from support.other_families import ENCODER_DECODERS, ENCODERS, VISION_LANGUAGE
from support.text_families import DECODERS, HYBRIDS, MIXTURES

__all__ = ["FAMILIES", "IMAGE_TOKEN", "VOCABULARY", "Family"]

FAMILIES: dict[str, Family] = {
    **DECODERS, **MIXTURES, **HYBRIDS, **ENCODERS, **ENCODER_DECODERS, **VISION_LANGUAGE,
}  # fmt: skip
