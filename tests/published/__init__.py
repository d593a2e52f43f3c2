"""Recipes in the style of those that people publish, and the checkpoints that they expect.

`recipes/` has one recipe a shape, written for these tests; names of models are invented. What each
has to give stands in its first lines, see `header`.
"""
