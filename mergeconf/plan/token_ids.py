"""What does a config say of the vocabulary and of special tokens, in the output's numbers?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeconf.checkpoint.vocabulary_files import load_object
from mergeconf.errors import Problem
from mergeconf.plan.vocabularies import OutputTokenizer

_ENDINGS = ("_token_id", "_token_index")
"""Ends of the keys whose values are ids of tokens."""


class TokenIds:
    """Rewrites one file's ids."""

    def __init__(self, tokenizer: OutputTokenizer, file: str, notes: list[Problem]) -> None:
        self._tokenizer = tokenizer
        self._file = file
        self._notes = notes
        self._texts = {number: token for token, number in tokenizer.donor_ids.items()}
        self._taken: dict[str, Any] = {}
        if tokenizer.model is not None and not tokenizer.keeps_ids:
            self._taken = {
                **(tokenizer.model.config or {}),
                **load_object(tokenizer.model.files, file),
            }

    def config(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config with the output's ids and number of rows."""
        return self._section(content, self._taken)

    def _section(self, content: Mapping[str, Any], taken: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(content)
        for key, value in content.items():
            if isinstance(value, dict):
                inner = taken.get(key)
                changed[key] = self._section(value, inner if isinstance(inner, dict) else {})
            elif key == "vocab_size" and value == self._tokenizer.donor_rows:
                changed[key] = self._tokenizer.rows
            elif key.endswith(_ENDINGS):
                if taken.get(key) is not None:
                    changed[key] = taken[key]
                elif isinstance(value, list):
                    moved = [self._moved(item, key) for item in value]
                    changed[key] = [item for item in moved if item is not None] or None
                else:
                    changed[key] = self._moved(value, key)
        return changed

    def _moved(self, number: Any, key: str) -> Any:
        """Return the id of the same token in the output; None, with a warning, if it has none."""
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            return number
        tokenizer = self._tokenizer
        text = self._texts.get(number)
        if tokenizer.keeps_ids:
            if number < tokenizer.rows:
                return number
        elif text is not None and text in tokenizer.ids:
            return tokenizer.ids[text]
        meant = "is no token" if text is None else f"means {text!r}, which is no token"
        self._notes.append(
            Problem(
                f"{key} {number} {meant} of the output; it is set to null",
                where=self._file,
                severity="warning",
                code="lost-token-id",
            )
        )
        return None
