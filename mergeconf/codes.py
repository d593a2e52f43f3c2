"""Which warnings are there, and what does each mean? The one list of their codes.

A recipe silences a warning by its code: `silence: [duplicate-model]`. The tests hold this list
against the code that warns, and against the README's table.
"""

from __future__ import annotations

from collections.abc import Mapping

WARNINGS: Mapping[str, str] = {
    # the recipe by itself
    "base-not-merged": "the method merges the listed models only; the base gives the small files",
    "base-parameters": "parameters of the base have no effect",
    "case-never-used": "earlier cases decide every tensor that this one fits",
    "duplicate-model": "a model is listed twice and counts twice",
    "ignored-key": "a key that mergekit accepts and that does nothing",
    "ignored-parameter": "a parameter that mergekit accepts and that does nothing here",
    "override-architecture": "there are no architecture tables to override",
    "substring-filter": "a filter cuts a number in two: `layers.1` also fits `layers.10`",
    "unknown-code": "`silence` names a warning that there is not",
    "unused-definition": "no model is given by the name of a definition",
    "unused-document": "no other document uses this one",
    # values against formats and sizes
    "density-keeps-nothing": "a density leaves no element of a tensor's delta",
    "dtype-loses-range": "values of a wider range are written as float16",
    "weight-swallowed": "a weight so small that rounding hides what the model contributes",
    # models against each other
    "identical-models": "two models, or a model and the base, hold the same weights",
    "license-conflict": "licenses that cannot both hold, or `metadata.license` promises too much",
    "self-merge": "a model is merged with itself, which gives it back",
    "tokenizers-differ": "embeddings are merged row by row, but rows stand for different tokens",
    # a look at the weights: check --deep
    "not-finite": "weights hold NaN or infinity",
    "not-of-the-base": "a model is as far from the base as unrelated weights are",
    "outlier-model": "a model lies far further from the base than the others",
    "rounding-swallows": "most of the change to the base is lost when the output is rounded",
    # tokenizers
    "lost-token-id": "a config names a token that the output does not have",
    "no-chat-template": "no model has a chat template",
    "no-tokenizer": "a model without a tokenizer is taken to have the base's tokens",
    "token-no-effect": "all models have a token, so what is said of it has no effect",
    "tokens-without-row": "tokens beyond the rows of a model's embedding are left out",
    # models' files
    "adapter-option": "options of an adapter that are not known are passed over",
    "dequantized-weights": "8-bit floats are read through scales; the output is not quantized",
    "dropped-scales": "tensors that only a quantized model needs are left out",
    "link-outside": "links that leave a model's folder are not copied",
    "module-weights": "weights of further modules are copied, not merged",
    "stale-shards": "weight files that the index does not name are not read",
    "tied-adapter": "an adapter changes a tied head: the output gets a head of its own",
    "two-layouts": "a folder holds its weights twice; the single file is read",
    "unindexed-tensors": "tensors that the index does not name are not read",
    "unread-entries": "a file of torch.save holds more than tensors",
    "unread-weights": "a folder holds several models; one of them is read",
    # depth and configuration
    "depth-not-in-config": "the config does not say how many layers the output has",
    "layer-pattern": "layers come to stand where the config's pattern means others",
}
"""What each warning is about, by its code."""
