"""Do the models that are merged belong together? Looked up in a bounded sample of their weights.

`sample` says which elements are read, `compare` what they tell of each model, `findings` which of
it is worth a warning. Nothing is computed with that a run needs: this only looks.
"""

from mergeconf.lint.compare import Comparison, compare_models
from mergeconf.lint.findings import findings

__all__ = ["Comparison", "compare_models", "findings"]
