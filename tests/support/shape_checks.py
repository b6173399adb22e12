"""The type checker behind jaxtyping's shapes: installed by tests/conftest.py, in tests only."""

from __future__ import annotations

import ast

from beartype import BeartypeConf, beartype
from jaxtyping import _import_hook, install_import_hook

PACKAGES = (
    "mechstudy.activations",
    "mechstudy.circuits",
    "mechstudy.dictionaries.crosscoder",
    "mechstudy.dictionaries.evaluation",
    "mechstudy.features",
    "mechstudy.interventions",
    "mechstudy.models",
    "mechstudy.referee",
    "mechstudy.statistics",
)

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


class _OuterFunctions(_import_hook.JaxtypingTransformer):
    """Leaves functions inside functions alone: a hook would be analysed again in every forward pass."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        inner = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        self._no_type_check_level += inner
        visited = super().visit_FunctionDef(node)
        self._no_type_check_level -= inner
        return visited


def install() -> None:
    """Checks annotations of shapes wherever tests call the packages; before anything of them is imported."""
    _import_hook.JaxtypingTransformer = _OuterFunctions
    install_import_hook(PACKAGES, "tests.support.shape_checks.checked")
