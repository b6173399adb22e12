"""The source of the package as syntax trees, and what its modules import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PACKAGE = SRC / "mechstudy"


@cache
def tree_of(file: Path) -> ast.Module:
    """The syntax tree of a file, parsed once."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def python_files(folder: Path = PACKAGE) -> list[Path]:
    """Every Python file of a folder."""
    return sorted(folder.rglob("*.py"))


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    return {_dotted(file): file for file in python_files()}


def _dotted(file: Path) -> str:
    parts = file.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements that run, and whether they stand inside a function; those for type checkers do not run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, inside
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from statements(ast.Module([other], []), inside)
        else:
            yield from statements(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, anywhere; a lazy facade imports what its stub names."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, file in known.items():
        trees = [tree_of(file)]
        if (stub := file.with_suffix(".pyi")).exists():
            trees.append(tree_of(stub))
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        found = (target for tree in trees for node, _ in statements(tree) for target in _targets(node, package, known))
        edges[name] = set(found) - {name}
    return edges


def _targets(node: ast.Import | ast.ImportFrom, package: str, known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
        return
    module = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        module = ".".join([*parents, *([module] if module else [])])
    for alias in node.names:
        full = f"{module}.{alias.name}"
        if full in known:
            yield full
        elif module in known:
            yield module
