"""The rules of the house, asked of every file of the package, and of the README."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mergeconf
from mergeconf.methods import all_methods

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mergeconf"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in FILES}
MOST_LINES_A_FILE = 500
MOST_LINES_A_FUNCTION = 50
"""Without its docstring."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_the_files_that_were_found():
    assert len(FILES) > 60
    folders = {name.split("/")[1] for name in TREES}
    assert {"cli", "execution", "graph", "methods", "plan", "recipe", "storage"} < folders


# --- documents --------------------------------------------------------------------------------


def test_the_methods_of_the_readme_are_those_of_the_registry():
    section = (ROOT / "README.md").read_text().partition("\n## Methods\n")[2]
    section = section.partition("\n## ")[0]
    rows = re.findall(r"^\| *`([^`|]+)` *\| *(.*?) *\|", section, re.MULTILINE)
    assert dict(rows) == {name: method.summary for name, method in all_methods().items()}
    assert [name for name, _ in rows] == list(all_methods()), "in the order of their names"


def test_every_method_has_a_file_of_its_name_and_no_file_is_without_a_method():
    files = {path.stem for path in (PACKAGE / "methods").glob("*.py") if path.stem[0] != "_"}
    assert files - {"registry", "apply"} == set(all_methods())


@pytest.mark.parametrize("name", mergeconf.__all__)
def test_public_names_can_be_imported_and_are_documented(name):
    thing = getattr(mergeconf, name)
    if name != "__version__":
        assert thing.__doc__
        assert thing.__module__.startswith("mergeconf.")
    assert name in dir(importlib.import_module(thing.__module__)) if callable(thing) else True


def test_what_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'mrege'"):
        mergeconf.mrege  # noqa: B018


# --- code -------------------------------------------------------------------------------------


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length_of(function: Function) -> int:
    """Return a function's lines without decorators and docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        text = function.body[0]
        lines -= text.end_lineno - text.lineno + 1
    return lines


def public(body: list[ast.stmt], within: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield public classes, functions and methods, by their names."""
    for node in body:
        if not isinstance(node, (*Function.__args__, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield within + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{within}{node.name}.")


def is_overload(node: Function | ast.ClassDef) -> bool:
    return any("overload" in ast.unparse(item) for item in node.decorator_list)


def test_no_file_is_too_long():
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in TREES}
    assert not {name: n for name, n in lengths.items() if n > MOST_LINES_A_FILE}


def test_no_function_is_too_long():
    lengths = {
        f"{name}:{function.name}": length_of(function)
        for name, tree in TREES.items()
        for function in functions(tree)
    }
    assert not {name: n for name, n in lengths.items() if n > MOST_LINES_A_FUNCTION}


def test_every_module_says_what_it_is_for():
    assert not [name for name, tree in TREES.items() if not ast.get_docstring(tree)]


def test_every_public_function_and_class_has_a_docstring():
    bare = [
        f"{name}:{qualified}"
        for name, tree in TREES.items()
        for qualified, node in public(tree.body)
        if not ast.get_docstring(node) and not is_overload(node)
        and not _is_private_module(name)
    ]  # fmt: skip
    assert not bare


def _is_private_module(name: str) -> bool:
    return Path(name).stem.startswith("_") and Path(name).stem != "__init__"


def test_only_the_command_line_prints_and_reads_the_environment():
    found = []
    for name, tree in TREES.items():
        if name.startswith("mergeconf/cli/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit"):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert not found


def test_imports_are_absolute_and_no_module_is_called_utils():
    relative = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative
    assert not [name for name in TREES if Path(name).stem in ("utils", "helpers", "common", "misc")]


def test_nothing_is_left_to_blas():
    """Its sums depend on the processor; its threads are not those that were asked for."""
    names = {"dot", "vdot", "matmul", "inner", "tensordot", "einsum", "linalg"}
    trees = {name: tree for name, tree in TREES.items() if name.split("/")[1] == "execution"}
    assert len(trees) > 10
    for name, tree in trees.items():
        for node in ast.walk(tree):
            assert not isinstance(getattr(node, "op", None), ast.MatMult), name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (node.value.id == "np" and node.attr in names), (name, node.attr)


def test_torch_is_imported_only_inside_functions():
    found = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and re.search(r"\b(torch|transformers)\b", ast.unparse(node))
        and name != "mergeconf/graph/eager.py"
    ]
    assert not found


def test_messages_say_nothing_of_please_and_error():
    found = [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and re.match(r"Error:|ERROR|[Pp]lease ", node.value)
    ]  # fmt: skip
    assert not found
