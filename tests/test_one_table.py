"""What an operation is stands in one place: the table of operations."""

import ast
from pathlib import Path

import pytest

import constrained_cnn
from constrained_cnn.constraints import rule_kinds
from constrained_cnn.graph import KINDS
from constrained_cnn.tracing.operations import BUILT_IN

PACKAGE = Path(constrained_cnn.__file__).parent


# What is spelled as an operation is and means something else: a word of the rules, a device, a
# type, a function of the package.
OWN = {
    *KINDS,
    *rule_kinds(),
    "norm",
    "convolution",
    "max",
    "cpu",
    "float",
    "T",
    "diff",
    "data",
    "fill",
    "std",
}


def literals(text: str) -> set[str]:
    """Return the texts in a program but for its docstrings, and the words of a list of names.

    In a sentence ``to`` and ``where`` name no operation; in ``"relu where"`` every word does.
    """
    tree = ast.parse(text)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    described = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, kinds) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in described
        if isinstance(node.value, str)
    }
    lists = [words for text in texts if set(words := text.split()) <= BUILT_IN.keys()]
    return texts | {word for words in lists if len(words) > 1 for word in words}


def test_literals_are_found() -> None:
    text = 'def f(op):\n    """tanh"""\n    return op in ("conv2d", "gelu silu", "to be")\n'
    assert literals(text) == {"conv2d", "gelu silu", "gelu", "silu", "to be"}


@pytest.mark.parametrize("name", ["constraints", "receptive_field", "budget", "proof", "sizing"])
def test_no_other_package_names_an_operation(name: str) -> None:
    """A kind is a word of its own, though an operation may be called the same."""
    operations = set(BUILT_IN) - OWN
    named = {
        f"{path.name}: {word}"
        for path in sorted((PACKAGE / name).rglob("*.py"))
        for word in literals(path.read_text(encoding="utf-8")) & operations
    }
    assert not named
