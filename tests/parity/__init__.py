"""mergeconf beside mergekit 0.1.5, on the same small models. See `test_methods_parity`.

mergekit lives in an environment of its own, which `MERGECONF_MERGEKIT` names: the folder of a
virtual environment, or its python. Without it the tests are skipped.
"""
