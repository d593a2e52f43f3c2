"""Tiny language models fine-tuned on the same data in different orders.

Everything is generated from a seed and nothing is downloaded. The modules, in pipeline order:
``words`` and ``items`` (what one item is), ``mix`` (pre-training text), ``tasks`` (what
fine-tuning teaches, with held-out items), ``tokenizer``, ``settings``, ``batches``, ``train`` and
``score``. Nothing here imports mergeconf: these are the models a merge starts from, and the
figures it is judged by.
"""
