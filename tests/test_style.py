"""Sizes of functions, read off the source: at most 80 lines without the docstring, at most 12 parameters."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("hf_segtx", "examples", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
LINES, PARAMETERS = 80, 12
# Whose parameters are those that transformers passes.
PRESCRIBED = {"forward", "preprocess", "__call__", "_preprocess", "_preprocess_image_like_inputs"}


def functions(file: Path):
    """The functions of a file, also those inside of others."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function: ast.FunctionDef) -> int:
    """From `def` to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def num_parameters(function: ast.FunctionDef) -> int:
    """All that can be given, without self and cls; * and ** count as one each."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    extra = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return len([name for name in names if name not in ("self", "cls")]) + len(extra)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_functions_are_short(file):
    long = {function.name: num_lines(function) for function in functions(file) if num_lines(function) > LINES}
    assert not long, f"functions of more than {LINES} lines: {long}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_functions_take_few_parameters(file):
    wide = {
        function.name: num_parameters(function)
        for function in functions(file)
        if num_parameters(function) > PARAMETERS and function.name not in PRESCRIBED
    }
    assert not wide, f"functions of more than {PARAMETERS} parameters: {wide}"


def test_what_is_counted():
    text = 'def f(self, a, /, b, *c, d=1, **e):\n    """One.\n\n    Two.\n    """\n    return a\n'
    (function,) = ast.parse(text).body
    assert (num_lines(function), num_parameters(function)) == (2, 5)
