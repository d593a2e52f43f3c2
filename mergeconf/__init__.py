"""mergeconf: merge language models from declarative recipes.

    from mergeconf import merge
    merge("recipe.yaml", "merged")

The names below are the public interface; they are loaded when they are first used, so that
`import mergeconf` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergeconf.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from mergeconf.api import RunReport, load_recipe, make_plan, merge, run_lock, run_plan, verify
    from mergeconf.errors import MergeconfError, Problem

__all__ = [
    "MergeconfError",
    "Problem",
    "RunReport",
    "__version__",
    "load_recipe",
    "make_plan",
    "merge",
    "run_lock",
    "run_plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in ("MergeconfError", "Problem"):
        from mergeconf import errors

        return getattr(errors, name)
    if name in __all__:
        from mergeconf import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
