"""What is the mathematics of one merge method? One file a method; see `registry`.

A method knows no file, tile or thread. The same function computes lazily, when a plan is made,
and eagerly on plain torch tensors.
"""

from mergeconf.methods.registry import (
    Bounds,
    Method,
    Parameter,
    PerModel,
    all_methods,
    merge_method,
)

__all__ = ["Bounds", "Method", "Parameter", "PerModel", "all_methods", "merge_method"]
