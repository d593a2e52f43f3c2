"""YAML text to plain data: the 1.2 core schema, places, and what is refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeconf.errors import RecipeError
from mergeconf.recipe.yaml_scalars import write_yaml
from mergeconf.recipe.yaml_source import DEEPEST, MOST_BYTES, Source, read_documents


def read_yaml(raw: bytes | str, file: str) -> Source:
    """Return the only document."""
    (document,) = read_documents(raw, file)
    return document


# YAML 1.2.2, section 10.3.2, and what YAML 1.1 made of the same text
CORE_SCHEMA = [
    ("null", None), ("Null", None), ("NULL", None), ("~", None), ("", None), ("nULL", "nULL"),
    ("true", True), ("True", True), ("TRUE", True), ("tRUE", "tRUE"),
    ("false", False), ("False", False), ("FALSE", False),
    ("yes", "yes"), ("no", "no"), ("No", "No"), ("on", "on"), ("off", "off"), ("y", "y"),
    ("0", 0), ("-19", -19), ("+12", 12), ("0o7", 7), ("0x3A", 58), ("010", 10), ("0b11", "0b11"),
    ("1_000", "1_000"), ("1:30", "1:30"), ("12e03", 12000.0), ("1e-3", 1e-3), ("1E5", 1e5),
    ("0.", 0.0), ("-0.0", -0.0), (".5", 0.5), ("-2E+05", -2e5), ("+12e03", 12000.0), ("1.", 1.0),
    (".", "."), ("e3", "e3"), ("1e", "1e"), (".inf", math.inf), ("-.Inf", -math.inf),
    ("+.INF", math.inf), ("inf", "inf"), ("nan", "nan"), ("2024-01-31", "2024-01-31"),
    ("0-7", "0-7"), ("-1", -1), ("8-", "8-"), ("5GB", "5GB"), ("'1'", "1"), ('"true"', "true"),
    ("!!str 1", "1"), ("!!float 1", 1.0), ("!!int '3'", 3),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), CORE_SCHEMA)
def test_scalars_are_those_of_the_core_schema(text, value):
    found = read_yaml(f"key: {text}\n", "f").data["key"]
    assert found == value
    assert type(found) is type(value)
    assert not isinstance(found, float) or math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_not_a_number_is_recognized(text):
    assert math.isnan(read_yaml(f"key: {text}\n", "f").data["key"])


def test_keys_are_text_as_written():
    text = "no: 1\n1: 2\ntrue: 3\nnull: 4\n1.50: 5\n'<<': 6\n"
    assert list(read_yaml(text, "f").data) == ["no", "1", "true", "null", "1.50", "<<"]


def test_every_part_has_its_place():
    text = "a: 1\nlist:\n  - x\n  - {k:   v}\nnested:\n    inner: [1, 22, 3]\n"
    source = read_yaml(text, "f.yaml")

    def at(*path, key=False):
        location = source.locate(path, key=key)
        return location.line, location.column

    assert at("a") == (1, 4)
    assert at("a", key=True) == (1, 1)
    assert at("list", 0) == (3, 5)
    assert at("list", 1, "k") == (4, 11)
    assert at("list", 1, "k", key=True) == (4, 6)
    assert at("nested", "inner", 2) == (6, 20)
    # what is missing is placed at what it is missing from
    assert at("nested", "absent") == (5, 1)
    assert at("list", 1, "absent") == (4, 5)
    assert at("absent") == (1, 1)
    assert source.locate(("a",)).file == "f.yaml"


def test_anchors_aliases_and_merge_keys():
    text = (
        "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\n"
        "one: {<<: *b, y: 9}\nmany: {<<: [*b, *m], w: *b}\nlist: [*b, *b]\n"
    )
    data = read_yaml(text, "f").data
    assert data["one"] == {"x": 1, "y": 9}
    assert data["many"] == {"x": 1, "y": 2, "z": 4, "w": {"x": 1, "y": 2}}
    assert data["list"] == [{"x": 1, "y": 2}] * 2


def test_aliases_may_repeat_but_not_without_end():
    assert len(read_yaml("a: &a [1, 2]\nb: [*a, *a, *a]\n", "f").data["b"]) == 3
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n"
    assert _messages(bomb) == ["more than 100,000 keys and values"]
    merged = "a0: &a0 {x: 1}\n"
    for level in range(1, 30):
        merged += f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n"
    assert _messages(merged) == ["merge keys refer to each other without end"]


def _problems(raw):
    with pytest.raises(RecipeError) as caught:
        read_yaml(raw, "f.yaml")
    return caught.value.problems


def _messages(raw):
    return [problem.message for problem in _problems(raw)]


def test_every_duplicate_key_names_both_places():
    problems = _problems("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n")
    assert [(p.where, p.location.line, p.location.column, p.message) for p in problems] == [
        ("a", 6, 1, "duplicate key; first given at f.yaml:1:1"),
        ("b.c", 5, 3, "duplicate key; first given at f.yaml:3:3"),
    ]


# text, line, column, part of the message, part of the hint
REFUSED = [
    ("a: [1, 2\nb: 3\n", 2, 2, "opens with [", "close every"),
    ("a: {b: 1\n", 2, 1, "opens with {", "close every"),
    ("a: 'x\nb: 1\n", 1, 4, "quoted text is not closed", "same kind of quote"),
    ('a: "x\nb: 1\n', 1, 4, "quoted text is not closed", "same kind of quote"),
    ('match: "re:a\\.b"\n', 1, 8, "quoted text", "single quotes"),
    ("a:\n\tb: 1\n", 2, 1, "cannot start a value", "not with tabs"),
    ("a: 1\nb:2\nc: 3\n", 2, 2, "no space after the colon", "a space after the colon"),
    ("models:\n  - model:x\n    parameters: 1\n", 2, 10, "no space after the colon", "a space"),
    ("a: b: c\n", 1, 5, "a second ': '", "in quotes"),
    ("x: 1\n  y: 2\n", 2, 4, "wrong indentation", "same column"),
    ("a:\n  b: 1\n c: 2\n", 3, 2, "wrong indentation", "same column"),
    ("- a\nb: 1\n", 2, 1, "wrong indentation", "same column"),
    ("match: *.self_attn.*\n", 1, 8, "starts an alias", "in quotes"),
    ("match: *attn\n", 1, 8, "names no anchor", "in quotes"),
    ("match: [*x]\n", 1, 9, "names no anchor", "in quotes"),
    ("a: &\n", 1, 4, "starts an anchor", "in quotes"),
    ("a: !x!y z\n", 1, 4, "starts a tag", "in quotes"),
    ("a: @x\n", 1, 4, "cannot start a value", "in quotes"),
    ("a: `x`\n", 1, 4, "cannot start a value", "in quotes"),
    ("a: |x\n", 1, 5, "not well-formed YAML", ""),
    ("a: !!python/name:os.system x\n", 1, 4, "!!python/name:os.system is not allowed", "out"),
    ("a: !!set {x: 1}\n", 1, 4, "tag !!set is not allowed", "leave it out"),
    ("a: !mine [1]\n", 1, 4, "tag !mine is not allowed", "leave it out"),
    ("a: !!int x\n", 1, 4, "'x' cannot be read as a whole number", ""),
    (f"a: {'9' * 5000}\n", 1, 4, "cannot be read as a whole number", ""),
    ("{a: 1}: 2\n", 1, 1, "a key has to be text, found a mapping", "quotes"),
    ("? [a]\n: 2\n", 1, 3, "a key has to be text, found a list", "quotes"),
    ("a: &x [*x]\n", 1, 4, "refers to what it lies in", ""),
    ("<<: 3\n", 1, 5, "a merge key takes a mapping", ""),
    ("a: &a {<<: *a}\n", 1, 4, "without end", ""),
    ("ok: 1\na: \x01\n", 2, 4, "U+0001 is not allowed", ""),
    (b"a: 1\nb: caf\xe9\n", 2, 7, "not UTF-8: byte 0xe9", "save it as UTF-8"),
    ("a: 1\n".encode("utf-16"), 1, 1, "not UTF-8", "looks like UTF-16"),
    ("a: \ud800\n", 1, 4, "surrogate", ""),
]


@pytest.mark.parametrize(("raw", "line", "column", "message", "hint"), REFUSED)
def test_what_is_refused_says_where_and_what_helps(raw, line, column, message, hint):
    problem = _problems(raw)[0]
    assert message in problem.message
    assert hint in problem.hint
    assert (problem.location.line, problem.location.column) == (line, column)


def test_depth_is_bounded():
    inside = DEEPEST - 1
    assert read_yaml(f"a: {'[' * (inside - 1)}{']' * (inside - 1)}\n", "f").data
    for text in (f"a: {'[' * 5000}{']' * 5000}\n", "- " * 3000 + "x\n", "a: " + "{b: " * 3000):
        assert "nested deeper" in _messages(text)[0]


def test_depth_by_aliases_is_bounded():
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 80))
    assert _messages(text) == [f"nested deeper than {DEEPEST} levels"]


def test_size_is_bounded():
    assert "too large" in _messages("# " + "x" * MOST_BYTES)[0]
    assert read_yaml("# " + "x" * (MOST_BYTES - 2), "f").data is None


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "---\n...\n"])
def test_empty_documents_are_nothing(text):
    assert read_yaml(text, "f").data is None


@pytest.mark.parametrize("text", ["---\na: 1\n", "a: 1\n---\n", "a: 1\n...\n", "\ufeffa: 1\n"])
def test_one_document_with_markers(text):
    source = read_yaml(text, "f")
    assert source.data == {"a": 1}
    assert source.text == text


def test_line_ends_do_not_matter():
    text = "a: 1\r\nb:\r\n  - 2\r\n"
    source = read_yaml(text.encode(), "f")
    assert source.data == {"a": 1, "b": [2]}
    assert source.text == text
    assert str(source.locate(("b", 0))) == "f:3:5"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")))
    | st.sampled_from([text for text, _ in CORE_SCHEMA]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abn01~.", max_size=4), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(PLAIN)
def test_writing_and_reading_gives_the_same_data(data):
    found = read_yaml(write_yaml({"key": data}), "f").data["key"]
    assert found == data
    assert repr(found) == repr(data)  # 1, 1.0 and True are told apart


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab1:-[]{}&*!|>'\"%@`#,?. \n\t\\<~\x00\ufeff\u2028é"), max_size=30))
def test_any_text_is_read_or_refused_in_words(text):
    try:
        read_yaml(text, "f")
    except RecipeError as error:
        for problem in error.problems:
            assert problem.message
            assert problem.location is not None
            assert problem.location.line >= 1
