"""Which expression makes each output tensor, in which file, at what cost in bytes?

`make` compiles a recipe and its models' headers into a `Plan`: frozen data that says all that a
run will do. `alignment` finds each tensor in the models. Knows nothing of how a plan is run.
"""

from mergeconf.plan.data import Dropped, Plan, TensorPlan
from mergeconf.plan.make import make_plan

__all__ = ["Dropped", "Plan", "TensorPlan", "make_plan"]
