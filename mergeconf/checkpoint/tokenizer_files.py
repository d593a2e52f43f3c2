"""How do a tokenizer's files change when tokens are added to it, or taken from it?

Every file that lists added tokens then lists all of them, under the ids that transformers 4 and 5
give them when they load the files. Nothing is changed where nothing is added or taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from mergeconf.checkpoint.vocabulary import LISTS, NAMED, AddedToken, Vocabulary
from mergeconf.checkpoint.vocabulary_files import (
    ADDED_TOKENS,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    Files,
    entries,
    load_object,
    place_of,
    read_bytes,
    refuse,
    written,
)

_ADDED = re.compile(r'"added_tokens"\s*:\s*(?=\[)')


def changed_files(
    files: Files,
    vocabulary: Vocabulary,
    ids: Mapping[str, int],
    added: Mapping[str, AddedToken],
    removed: Collection[str],
) -> dict[str, bytes]:
    """Return the files of a tokenizer that are to be written anew.

    Args:
        files: The tokenizer's files.
        vocabulary: What they say.
        ids: All tokens that the output is to have, with their ids.
        added: Those among them that are added to the tokenizer.
        removed: Tokens to take from it.

    Raises:
        CheckpointError: a token cannot be taken from this kind of file.
    """
    if not added and not removed:
        return {}
    kept = {token: info for token, info in vocabulary.added.items() if token in ids}
    every = {**kept, **added}
    all_added = {token: every[token] for token in sorted(every, key=ids.__getitem__)}
    changed: dict[str, bytes] = {}
    gone = frozenset(removed)
    if vocabulary.listed.is_json:
        changed[TOKENIZER_JSON] = _tokenizer_json(files, ids, all_added, gone)
    elif not gone.isdisjoint(vocabulary.listed.tokens):
        refuse(
            place_of(files, vocabulary.listed.name),
            "lists tokens that have no row in the embedding, and cannot be changed",
            "open it with transformers' AutoTokenizer and save_pretrained to get a tokenizer.json",
        )
    changed |= _configs(files, vocabulary, ids, all_added, gone)
    if ADDED_TOKENS in files:
        content = {
            token: ids[token] for token in all_added if token not in vocabulary.listed.tokens
        }
        changed[ADDED_TOKENS] = written(content)
    return changed


def _tokenizer_json(
    files: Files, ids: Mapping[str, int], added: Mapping[str, AddedToken], gone: frozenset[str]
) -> bytes:
    listed = ({"id": ids[token], **info.as_json()} for token, info in added.items())
    if not gone:
        text = read_bytes(files, TOKENIZER_JSON).decode("utf-8-sig")
        if found := _ADDED.search(text):  # the rest stays as it is, without being read
            _, end = json.JSONDecoder().raw_decode(text, found.end())
            return (text[: found.end()] + entries(listed) + text[end:]).encode()
    content = load_object(files, TOKENIZER_JSON)
    content["added_tokens"] = list(listed)
    if gone:
        _remove(content, gone, place_of(files, TOKENIZER_JSON))
    return written(content)


def _remove(content: dict[str, Any], gone: frozenset[str], where: str) -> None:
    """Take tokens out of a tokenizer.json: from its vocabulary, merges and padding."""
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {t: number for t, number in model["vocab"].items() if t not in gone}
    else:
        model["vocab"] = [piece for piece in model["vocab"] if piece[0] not in gone]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if gone.isdisjoint(_parts(merge))]
    padding = content.get("padding")
    if isinstance(padding, dict) and padding.get("pad_token") in gone:
        content["padding"] = None
    processor = json.dumps(content.get("post_processor"), ensure_ascii=False)
    for token in sorted(gone):
        if json.dumps(token, ensure_ascii=False) in processor:
            refuse(where, f"puts {token!r} into every text, which has no row in the embedding")


def _parts(merge: str | list[str]) -> tuple[str, ...]:
    """Return both sides of a merge, and what they make."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def _configs(
    files: Files,
    vocabulary: Vocabulary,
    ids: Mapping[str, int],
    added: Mapping[str, AddedToken],
    gone: frozenset[str],
) -> dict[str, bytes]:
    """Return tokenizer_config.json and the map of special tokens, where they change."""
    config = load_object(files, TOKENIZER_CONFIG)
    special = load_object(files, SPECIAL_TOKENS)
    before = dict(config), dict(special)
    if "added_tokens_decoder" in config or not vocabulary.listed.is_json:
        if "added_tokens_decoder" not in config:  # the map is not read beside it
            config.update(special)
        decoder = {str(ids[token]): info.as_json() for token, info in added.items()}
        config["added_tokens_decoder"] = decoder
    changed = {}
    for name, content, old in zip(
        (TOKENIZER_CONFIG, SPECIAL_TOKENS), (config, special), before, strict=True
    ):
        _unname(content, gone)
        if content != old:
            changed[name] = written(content)
    return changed


def _unname(content: dict[str, Any], gone: frozenset[str]) -> None:
    """Take tokens out of the special tokens that a config names."""
    for key in [key for key in content if key in NAMED or key.endswith("_token")]:
        if _text(content[key]) in gone:
            del content[key]
    for key in LISTS:
        items = content.get(key)
        if isinstance(items, list):
            content[key] = [item for item in items if _text(item) not in gone]
        elif isinstance(items, dict):
            content[key] = {name: item for name, item in items.items() if _text(item) not in gone}


def _text(item: object) -> str | None:
    if isinstance(item, dict):
        item = item.get("content")
    return item if isinstance(item, str) else None
