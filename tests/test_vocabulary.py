"""Vocabularies as transformers numbers them, and rows of the output as the rules say.

Oracles: the tokenizers library, transformers' AutoTokenizer, and the rules written out token by
token.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken as RustToken
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from mergeconf.checkpoint.vocabulary import AddedToken, Vocabulary, read_vocabulary
from mergeconf.checkpoint.vocabulary_files import Listed, written
from mergeconf.errors import CheckpointError, PlanError
from mergeconf.plan.output_vocabulary import (
    ABSENT,
    MEAN,
    ZERO,
    Tokens,
    Wish,
    fill,
    output_vocabulary,
    row_map,
)
from support.vocabularies import KINDS, make_tokenizer, read_json, save_tokenizer


def files_of(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir()}


def read(folder: Path) -> Vocabulary:
    found = read_vocabulary(files_of(folder))
    assert found is not None
    assert list(found.tokens.values()) == sorted(found.tokens.values())
    return found


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["plain", "decoder", "beside"])
def test_ids_are_those_that_transformers_gives(tmp_path, kind, how):
    tokenizer = make_tokenizer(kind)
    tokenizer.add_special_tokens([RustToken("<|im_end|>", special=True)])
    tokenizer.add_tokens(["<think>", "naïve"])
    save_tokenizer(tmp_path, tokenizer, pad_token="[PAD]", extra_special_tokens=["<extra>"])
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    content, config = (read_json(tmp_path / f"tokenizer{end}.json") for end in ("", "_config"))
    if how == "decoder":
        config["added_tokens_decoder"] = {
            str(number): vars_of(token) for number, token in loaded.added_tokens_decoder.items()
        }
    elif how == "beside":  # tokens that only added_tokens.json lists
        last = content["added_tokens"].pop()
        (tmp_path / "added_tokens.json").write_text(json.dumps({last["content"]: last["id"]}))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    found = read(tmp_path)
    assert dict(found.tokens) == loaded.get_vocab()
    assert len(found.tokens) == len(loaded)
    assert {"[PAD]", "<extra>", "naïve"} <= found.tokens.keys()
    assert list(found.added) == [str(t) for t in loaded.added_tokens_decoder.values()]
    assert found.added["<|im_end|>"].special
    assert not found.added["<think>"].special


def vars_of(token: Any) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}


WORDS = st.sampled_from([f"w{number}" for number in range(12)])


@given(
    inside=st.lists(WORDS, unique=True, max_size=8),
    added=st.lists(st.tuples(WORDS, st.integers(0, 20), st.booleans()), max_size=8),
)
def test_added_tokens_are_numbered_as_the_tokenizers_library_does(inside, added):
    """Whatever ids the file claims for them."""
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "added_tokens": [
            {"id": number, **AddedToken(text, special=special).as_json()}
            for text, number, special in added
        ],
        "model": {"type": "WordLevel", "unk_token": "w0",
                  "vocab": {text: number for number, text in enumerate(inside)}},
    }  # fmt: skip
    text = json.dumps(content)
    found = read_vocabulary({"tokenizer.json": text.encode()})
    assert found is not None
    assert dict(found.tokens) == Tokenizer.from_str(text).get_vocab()


def test_merges_are_not_read_wherever_they_stand(tmp_path):
    save_tokenizer(tmp_path, make_tokenizer("bytes"))
    content = read_json(tmp_path / "tokenizer.json")
    want = dict(read(tmp_path).tokens)
    content["model"]["vocab"]['"merges": ['] = max(content["model"]["vocab"].values()) + 1
    want['"merges": ['] = content["model"]["vocab"]['"merges": [']
    model = content.pop("model")
    for order in (("vocab", "merges", "type"), ("merges", "vocab"), ("vocab", "merges")):
        model = {**{key: model[key] for key in order}, "type": "BPE"}
        for last in (False, True):
            whole = {"model": model, **content} if last else {**content, "model": model}
            for text in (json.dumps(whole), json.dumps(whole, indent=2, ensure_ascii=False)):
                found = read_vocabulary({"tokenizer.json": text.encode()})
                assert found is not None
                assert {token: found.tokens[token] for token in want} == want


def protobuf(number: int, value: bytes) -> bytes:
    size, length = len(value), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + value


def sentencepiece(pieces: list[str]) -> bytes:
    """Write a model as sentencepiece does: pieces with scores, then settings."""
    parts = [
        protobuf(1, protobuf(1, piece.encode()) + b"\x15" + bytes(4) + b"\x18\x01")
        for piece in pieces
    ]
    return b"".join(parts) + protobuf(2, b"\x18\x03" + protobuf(7, b"x" * 300))


PIECES = ["<unk>", "<s>", "</s>", "▁the", "▁" + "long" * 60, "é"]


def test_sentencepiece_models(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(PIECES))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"6": {"content": "<think>"}, "4": {"content": "<here>"}}}'
    )
    want = {piece: number for number, piece in enumerate(PIECES) if number != 4}
    assert dict(read(tmp_path).tokens) == {**want, "<think>": 6, "<here>": 4}


def test_sentencepiece_models_that_it_has_written_itself(tmp_path):
    pieces = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(["a merge of models", "the quick brown fox"] * 20))
    pieces.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=40,
        hard_vocab_limit=False,
    )
    processor = pieces.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    want = {processor.id_to_piece(number): number for number in range(len(processor))}
    assert dict(read(tmp_path).tokens) == want


def test_tiktoken_files_by_the_letters_of_byte_level_tokenizers(tmp_path):
    every = [bytes([number]) for number in range(256)] + [b" the", "é".encode()]
    lines = [base64.b64encode(token) + f" {rank}".encode() for rank, token in enumerate(every)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    tokens = read(tmp_path).tokens
    assert set(list(tokens)[:256]) == set(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("é", " the"):
        assert tokens[level.pre_tokenize_str(text)[0][0]] == every.index(text.encode())


def test_vocabularies_as_text_and_json(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n##re\n")
    assert dict(read(tmp_path).tokens) == {"[PAD]": 0, "[UNK]": 1, "the": 2, "##re": 3}
    (tmp_path / "vocab.json").write_text('{"b": 1, "a": 0}')
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<e>"}}')
    assert dict(read(tmp_path).tokens) == {"a": 0, "b": 1, "<e>": 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "is no sound JSON"),
        ("tokenizer.json", "[]", "is not a JSON object"),
        ("tokenizer.json", "{}", "has no model.vocab"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "x"}}}', "token 'a': its id is 'x'"),
        ("tokenizer.json", '{"model": {"vocab": {"a": -1}}}', "token 'a': its id is -1"),
        ("tokenizer.json", '{"model": {"vocab": [1]}}', "item 0 is no piece"),
        ("tokenizer.json", '{"added_tokens": [3], "model": {"vocab": {}}}', "an added token is 3"),
        ("tokenizer.json", '{"added_tokens": {}, "model": {"vocab": {"a": 0}}}', None),
        ("vocab.json", '{"a": true}', "its id is True"),
        ("tokenizer.model", "nonsense here now", "is neither a sentencepiece model nor"),
        ("tokenizer.model", "", "lists no tokens"),
        ("tekken.json", "{}", "needs a tokenizer.json"),
        ("tokenizer_config.json", "{", "is no sound JSON"),
    ],
)  # fmt: skip
def test_damaged_tokenizers(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    if message is None:
        assert read(tmp_path).tokens == {"a": 0}
        return
    with pytest.raises(CheckpointError, match=message) as failure:
        read_vocabulary(files_of(tmp_path))
    assert failure.value.problems[0].where == str(tmp_path / name)


def test_sentencepiece_models_whose_ids_are_shifted_are_refused(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(sentencepiece(PIECES))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    with pytest.raises(CheckpointError, match="XLMRobertaTokenizer numbers tokens otherwise"):
        read(tmp_path)


def test_no_tokenizer_at_all(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert read_vocabulary(files_of(tmp_path)) is None


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=12,
        ),
    )
)
def test_what_is_written_is_read_again(content):
    assert json.loads(written(content)) == content


# --- tokens of the output -----------------------------------------------------------------------


def vocabulary(plain: list[str], added: list[str] = [], *, special: bool = True) -> Vocabulary:  # noqa: B006
    tokens = {token: number for number, token in enumerate([*plain, *added])}
    infos = {token: AddedToken(token, special=special) for token in added}
    return Vocabulary(tokens, infos, Listed("tokenizer.json", dict.fromkeys(plain, 0)))


def with_tokens(one: Vocabulary, rows: int | None = None) -> tuple[Vocabulary, Tokens]:
    return one, Tokens.of("m", one, rows)


def test_a_union_numbers_tokens_model_by_model_and_added_ones_last():
    base = vocabulary(["a", "b"], ["<s>"])
    one = vocabulary(["z", "b", "y"], ["<one>", "<s>"])
    two = vocabulary(["x", "<one>", "z"], ["<two>"])
    found = output_vocabulary(base, None, [with_tokens(one), with_tokens(two)], ["new", "a"], None)
    assert list(found.ids) == ["a", "b", "<s>", "z", "y", "x", "<one>", "<two>", "new"]
    assert list(found.ids.values()) == list(range(9))
    assert found.added["z"] == AddedToken("z")
    assert found.added["<two>"] == AddedToken("<two>", special=True)
    assert found.removed == ()


def test_tokens_without_a_row_are_left_out_everywhere():
    base = vocabulary(["a", "b"], ["<s>", "<pad>"])
    one = vocabulary(["z", "y", "x"])
    found = output_vocabulary(base, 3, [with_tokens(one, 2)], [], None)
    assert found.ids == {"a": 0, "b": 1, "<s>": 2, "z": 3, "y": 4}
    assert found.removed == ("<pad>",)
    assert row_map(found, Tokens.of("m", one, 2)).tolist() == [-1, -1, -1, 0, 1]


@pytest.mark.parametrize(("multiple", "rows"), [(None, 3), (1, 3), (2, 4), (3, 3), (64, 64)])
def test_rows_are_a_multiple(multiple, rows):
    found = output_vocabulary(vocabulary(["a", "b", "c"]), None, [], [], multiple)
    assert (found.end, found.rows) == (3, rows)


def test_a_token_that_another_model_adds_becomes_an_added_one_under_its_id():
    base, one = vocabulary(["a", "<end>", "b"]), vocabulary(["a"], ["<end>"])
    found = output_vocabulary(base, None, [with_tokens(one)], [], None)
    assert found.ids == {"a": 0, "<end>": 1, "b": 2}
    assert found.added == {"<end>": AddedToken("<end>", special=True)}


def test_ids_with_gaps_keep_their_rows():
    tokens = {"a": 0, "b": 3}
    base = Vocabulary(tokens, {}, Listed("tokenizer.json", tokens))
    found = output_vocabulary(base, 4, [], [], None)
    assert (found.ids, found.end) == (tokens, 4)
    same, other = Tokens("m", {"a": 0, "b": 3}, 4), Tokens("m", {"b": 0, "a": 1, "c": 2}, 4)
    assert row_map(found, same).tolist() == [0, 1, 2, 3]
    assert row_map(found, other).tolist() == [1, -1, -1, 0]
    full = {"a": 0, "b": 1, "c": 3}
    base = Vocabulary(full, {}, Listed("tokenizer.json", full))
    with pytest.raises(PlanError, match="have gaps"):
        output_vocabulary(base, 4, [], ["new"], None)


# --- rows that a model lacks --------------------------------------------------------------------


@given(data=st.data(), count=st.integers(1, 4), size=st.integers(1, 8))
def test_where_rows_come_from(data, count, size):
    numbers = st.lists(st.integers(-1, 9), min_size=size, max_size=size)
    maps = [np.array(data.draw(numbers), np.int32) for _ in range(count)]
    base = data.draw(st.none() | st.integers(0, count - 1))
    names = [f"t{number}" for number in range(size)]
    output = output_vocabulary(vocabulary(names), None, [], [], None)
    wishes = []
    for number in data.draw(st.lists(st.integers(0, size - 1), unique=True)):
        having = [position for position in range(count) if maps[position][number] >= 0]
        model = data.draw(st.sampled_from([None, *having]))
        row = None if model is None else data.draw(st.none() | st.integers(0, 9))
        wishes.append(Wish(names[number], model, row, data.draw(st.booleans())))
    found = fill(maps, base, output, wishes)
    for number, name in enumerate(names):
        having = [position for position in range(count) if maps[position][number] >= 0]
        wish = next((wish for wish in wishes if wish.token == name), None)
        got = int(found.donors[number]), int(found.rows[number])
        if wish is not None and wish.model is None:
            assert got[0] == ZERO
        elif wish is not None:
            own = int(maps[wish.model][number]) if wish.row is None else wish.row
            assert got == (wish.model, own)
        elif len(having) == 1:
            assert got == (having[0], int(maps[having[0]][number]))
        elif not having:
            assert got == (ZERO, ABSENT)
        elif base in having:
            assert got == (base, int(maps[base][number]))
        else:
            assert got == (MEAN, ABSENT)
        assert bool(found.forced[number]) == (wish is not None and wish.force)
