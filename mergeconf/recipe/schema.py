"""What may a recipe contain? Its structure as written, and the JSON Schema for editors.

The models check structure: keys, kinds, ranges. What depends on merge methods (`parameters`) and
on more than one key is checked in `checks` and `values`. Validators raise only ValueError.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    StrictBool,
    StrictInt,
    StrictStr,
    WithJsonSchema,
)

from mergeconf.errors import did_you_mean
from mergeconf.recipe.patterns import parse_layers, parse_pattern
from mergeconf.recipe.words import BadValue, describe
from mergeconf.units import parse_size

DTYPES = {
    "float64": ("double", "fp64", "f64"),
    "float32": ("float", "fp32", "f32"),
    "float16": ("half", "fp16", "f16"),
    "bfloat16": ("bf16",),
}
"""Formats that an output can have, and what else people call them."""

_DTYPE_NAMES = {
    **{name: name for name in DTYPES},
    **{alias: name for name, aliases in DTYPES.items() for alias in aliases},
}

NESTED_KEYS = frozenset({"merge_method", "models", "slices", "modules", "recipe", "take"})
"""Keys that only a merge has: a mapping with one of them is a nested merge, not a model."""


def parse_dtype(name: object) -> str:
    """Return the name of an output format; mergekit's names and the usual short ones.

    Raises:
        BadValue: the name is none of them.
    """
    if not isinstance(name, str):
        raise BadValue(
            f"expected the name of a dtype, found {describe(name)}", "for example bfloat16"
        )
    found = _DTYPE_NAMES.get(name.lower().removeprefix("torch."))
    if found is None:
        raise BadValue(f"unknown dtype '{name}'", did_you_mean(name, DTYPES))
    return found


def _dtype(name: str) -> str:
    parse_dtype(name)
    return name


def _size(size: object) -> object:
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise BadValue("expected a size", "for example 5GB or 64MiB")
    parse_size(size)
    return size


def _pattern(text: object) -> object:
    parse_pattern(text)
    return text


def _layers(layers: object) -> object:
    parse_layers(layers)
    return layers


def _short_model(item: object) -> object:
    """Turn the short form of a model, text or a nested merge, into the long one."""
    if isinstance(item, dict) and "model" not in item and NESTED_KEYS & item.keys():
        return {"model": item}
    return {"model": item} if isinstance(item, str) else item


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


Pattern = Annotated[str, BeforeValidator(_pattern)]
Layers = Annotated[int | str | list[int | str], BeforeValidator(_layers)]
Dtype = Annotated[
    StrictStr,
    AfterValidator(_dtype),
    WithJsonSchema({"type": "string", "enum": [*DTYPES, *sorted(set(_DTYPE_NAMES) - set(DTYPES))]}),
]
Number = float | int | bool | str


class ValueCase(_Part):
    """A value for some tensors."""

    filter: str | None = None
    """mergekit's condition: a substring of the tensor's name; * fits every tensor."""
    match: str | None = None
    """Glob on the tensor's whole name, or re: and a regular expression."""
    layers: Layers | None = None
    """Layers, for example 0-7, [0, 5, 31] or -1."""
    value: Number | list[Number]
    """A number, a word, or a gradient over the layers."""


ParameterValue = Number | list[Number] | ValueCase | list[ValueCase]
Parameters = Annotated[dict[str, ParameterValue], SkipValidation]
"""Checked in `values`, which gives every part its own place."""


class ModelPath(_Part):
    """A model's path or Hub id, and its revision."""

    path: StrictStr
    revision: StrictStr | None = None


class ModelMapping(_Part):
    """A model, as mergekit writes it in full."""

    model: StrictStr | ModelPath
    lora: StrictStr | ModelPath | None = None
    override_architecture: StrictStr | None = None


class NestedRecipe(_Part):
    """A recipe in another file, as the input of a merge."""

    recipe: StrictStr


ModelName = Annotated["StrictStr | ModelMapping | NestedRecipe | Document", SkipValidation]
"""Checked in `references`, which tells the forms apart."""


class ModelItem(_Part):
    """A model that is merged."""

    model: ModelName
    """Hub id (org/name, org/name@revision) or local folder, relative to the recipe."""
    parameters: Parameters | None = None
    """Parameters for this model alone."""


AnyModel = Annotated[
    ModelItem, BeforeValidator(_short_model, json_schema_input_type="StrictStr | ModelItem")
]


class SliceSource(_Part):
    """Layers of one model."""

    model: ModelName
    """Hub id (org/name, org/name@revision) or local folder, relative to the recipe."""
    layer_range: tuple[StrictInt, StrictInt]
    """First layer, counted from 0, and the one after the last."""
    parameters: Parameters | None = None
    """Parameters for this model in this slice."""


class Slice(_Part):
    """Layers of the output, merged from as many layers of each source.

    The first slice's models give what stands before the layers (embeddings), the last one's what
    comes after them (final norm, head).
    """

    sources: list[SliceSource]
    """Models and their layers; the base too, where the method has one."""
    base_model: ModelName | None = None
    """Base of this slice, where it is not the recipe's; one of the sources."""
    residual_weight: float | None = None
    """No effect, as in mergekit."""
    parameters: Parameters | None = None
    """Parameters for this slice; gradients run over its layers."""


class Module(_Part):
    """One part of a model that has several, such as a text and a vision tower."""

    slices: list[Slice] | None = None
    """Layer ranges assembled into a new depth."""
    models: list[AnyModel] | None = None
    """Models to merge, in place of slices."""
    parameters: Parameters | None = None
    """Parameters for this module."""


class ZeroToken(_Part):
    """An embedding of zeros."""

    kind: Literal["zero"]


class TokenOfModel(_Part):
    """The embedding of some token of a model; one of token and token_id."""

    kind: Literal["model_token"]
    model: ModelName
    """A model of the recipe."""
    token: StrictStr | None = None
    """The token's text."""
    token_id: StrictInt | None = Field(None, ge=0)
    """The token's id in that model."""


TokenOrigin = Annotated["StrictStr | ModelMapping | TokenOfModel | ZeroToken", SkipValidation]
"""Checked in `tokenizer`, which tells the forms apart."""


class TokenEmbedding(_Part):
    """Where the embedding of one token comes from."""

    source: TokenOrigin | None = None
    """A model that has the token; or kind: zero; or kind: model_token, for a token of a model."""
    force: StrictBool = False
    """true: for models that have the token too."""


class Tokenizer(_Part):
    """The tokenizer of the output."""

    source: ModelName = "union"
    """union: the base's with the tokens that only other models have appended; base: the base's;
    or a model, whose tokenizer is taken."""
    tokens: dict[str, TokenEmbedding | None] | None = None
    """Tokens to add, or whose embedding is to come from elsewhere."""
    pad_to_multiple_of: StrictInt | None = Field(None, gt=0)
    """Append rows to embeddings and heads until their number is a multiple of this."""


class RuleItem(_Part):
    """What is done with some tensors; the first rule that fits a tensor decides it.

    Names and layers are those of the output, which slices number anew.
    """

    match: Pattern | None = None
    """Glob on the tensor's whole name in the output, or re: and a regular expression."""
    layers: Layers | None = None
    """Layers of the output, for example 0-7, [0, 5, 31] or -1."""
    merge_method: StrictStr | None = None
    """Method for these tensors."""
    take: StrictStr | None = None
    """Copy from one model, bit for bit: base_model, or a model as listed."""
    drop: StrictBool | None = None
    """true: leave these tensors out of the output."""
    parameters: Parameters | None = None
    """Parameters for these tensors, stronger than those of models and recipe."""


class Output(_Part):
    """How the output is written."""

    shard_size: Annotated[int | str, BeforeValidator(_size)] | None = None
    """Most bytes of tensors in one file, for example 5GB."""


class Document(_Part):
    """A recipe: everything that a merge depends on."""

    name: StrictStr | None = None
    """Name of the merge."""
    merge_method: StrictStr | None = None
    """Method for all tensors that no rule fits."""
    take: StrictStr | None = None
    """In place of merge_method: copy what no rule fits from base_model or from a listed model."""
    base_model: ModelName | None = None
    """The model that the others were fine-tuned from."""
    models: list[AnyModel] | None = None
    """Models to merge."""
    slices: list[Slice] | None = None
    """Layer ranges assembled into a new depth, in place of models."""
    modules: dict[str, Module] | None = None
    """Parts of a model (text_decoder, vision_tower, encoder) merged each in its own way."""
    parameters: Parameters | None = None
    """Parameters for all models."""
    rules: list[RuleItem] | None = None
    """The first rule that fits a tensor decides it."""
    seed: StrictInt | None = Field(None, ge=0, lt=2**64)
    """Every random choice follows from it; 0 where it is left out."""
    dtype: Dtype | None = None
    """Format of the output where out_dtype is left out."""
    out_dtype: Dtype | None = None
    """Format of the output."""
    tokenizer: Tokenizer | None = None
    """The tokenizer of the output."""
    tokenizer_source: ModelName | None = None
    """Short for tokenizer.source."""
    chat_template: StrictStr | None = None
    """Chat template of the output: a name such as chatml, auto for the models' most frequent one,
    or the template itself."""
    definitions: Annotated[dict[str, NestedRecipe | Document], SkipValidation] | None = None
    """Merges that models can name."""
    output: Output | None = None
    """How the output is written."""
    metadata: dict[str, Any] | None = None
    """For the model card and the Hub."""
    silence: list[StrictStr] | None = None
    """Codes of warnings not to show."""


Document.model_rebuild()
