"""The stub of the compiled core names what the core has, and nothing else; type checkers see the package as typed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_core = pytest.importorskip("freedive._core", reason="the C++ core is not built", exc_type=ImportError)
PACKAGE = Path(__file__).resolve().parent.parent / "python" / "freedive"


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def named(body: list[ast.stmt]) -> set[str]:
    """What a stub's statements define, its own imports left out."""
    found = {s.name for s in body if isinstance(s, (ast.FunctionDef, ast.ClassDef))}
    found |= {s.target.id for s in body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_the_stub_of_the_core_is_whole():
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    assert named(stub.body) == public(_core)
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            assert named(node.body) == public(getattr(_core, node.name)), node.name


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
