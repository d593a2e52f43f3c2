"""What did the user ask for, and is it well formed? YAML text in, frozen checked data out.

Knows nothing of tensors, of files of weights, or of torch.
"""

from mergeconf.recipe.decide import Decider, Decision, Resolved, decide
from mergeconf.recipe.editor_schema import recipe_schema
from mergeconf.recipe.load import load_locked, load_recipe
from mergeconf.recipe.model import (
    DEFAULT_SHARD_SIZE,
    ModelEntry,
    ModelRef,
    Recipe,
    Rule,
    Scope,
    TokenEntry,
    TokenizerChoice,
    TokenSource,
)
from mergeconf.recipe.names import check_names
from mergeconf.recipe.patterns import Matcher
from mergeconf.recipe.values import Evaluated, evaluate

__all__ = [
    "DEFAULT_SHARD_SIZE",
    "Decider",
    "Decision",
    "Evaluated",
    "Matcher",
    "ModelEntry",
    "ModelRef",
    "Recipe",
    "Resolved",
    "Rule",
    "Scope",
    "TokenEntry",
    "TokenSource",
    "TokenizerChoice",
    "check_names",
    "decide",
    "evaluate",
    "load_locked",
    "load_recipe",
    "recipe_schema",
]
