"""The reference of `import mechstudy as ms`: signatures and docstrings, read from the source without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.site.markup import code, docstring, inline, sentence

SRC = Path(__file__).parents[2] / "src"
_WIDTH = 88
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """A class or function, the name it has in ``ms``, and the module that defines it."""

    name: str
    module: str
    node: ast.ClassDef | Function


def definitions() -> list[Definition]:
    """Every public name of the package, in alphabetical order, functions first."""
    found = [_find("mechstudy", name) for name in public_names()]
    return sorted(found, key=lambda one: (isinstance(one.node, ast.ClassDef), one.name))


def public_names() -> list[str]:
    """The names that the stub of the package exports."""
    return [name for name, _ in _exports("mechstudy").items() if not name.startswith("_")]


def page() -> str:
    """The generated part of docs/reference/api.md."""
    found = definitions()
    parts = []
    for title, is_class in (("Functions", False), ("Classes", True)):
        chosen = [one for one in found if isinstance(one.node, ast.ClassDef) is is_class]
        parts.append(f"## {title}")
        parts.append("\n".join(f"- [{code(one.name)}](#{one.name}): {_first_line(one)}" for one in chosen))
        for one in chosen:
            parts.append(f"### {one.name} {{#{one.name}}}")
            parts += list(_class(one)) if isinstance(one.node, ast.ClassDef) else [_function(one.node, "ms.")]
            parts.append(docstring(ast.get_docstring(one.node) or ""))
            if isinstance(one.node, ast.ClassDef):
                parts += list(_members(one))
    return "\n\n".join(part for part in parts if part)


def _first_line(one: Definition) -> str:
    return inline((ast.get_docstring(one.node) or "").partition("\n")[0].rstrip("."))


def _function(node: Function, prefix: str = "") -> str:
    return f"```python\n{_signature(node, prefix)}\n```"


def _signature(node: Function, prefix: str = "") -> str:
    """A signature on one line where it fits, else with a line for each argument."""
    arguments = _arguments(node.args)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    returns = returns.replace("'", '"') if "'" in returns else returns
    line = f"{prefix}{node.name}({', '.join(arguments)}){returns}"
    if len(line) <= _WIDTH:
        return line
    return f"{prefix}{node.name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){returns}"


def _arguments(args: ast.arguments) -> list[str]:
    """Arguments with types and defaults, without self and cls."""
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    shown = [_argument(arg, default) for arg, default in zip(positional, defaults, strict=True)]
    if positional and positional[0].arg in ("self", "cls"):
        shown, n_only = shown[1:], len(args.posonlyargs) - 1
    else:
        n_only = len(args.posonlyargs)
    if n_only > 0:
        shown.insert(n_only, "/")
    if args.vararg is not None:
        shown.append(f"*{_argument(args.vararg, None)}")
    elif args.kwonlyargs:
        shown.append("*")
    shown += [_argument(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg is not None:
        shown.append(f"**{_argument(args.kwarg, None)}")
    return shown


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    annotation = _text(arg.annotation) if arg.annotation is not None else ""
    text = f"{arg.arg}: {annotation}" if annotation else arg.arg
    if default is None:
        return text
    return f"{text} = {_text(default)}" if annotation else f"{text}={_text(default)}"


def _text(node: ast.expr) -> str:
    """An expression with the quotes that the source has."""
    return re.sub(r"'([^'\"]*)'", r'"\1"', ast.unparse(node))


def _class(one: Definition) -> Iterator[str]:
    assert isinstance(one.node, ast.ClassDef)
    init = next((n for n in one.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        signature = _signature(init, "ms.").replace("ms.__init__", f"ms.{one.name}").removesuffix(" -> None")
        yield f"```python\n{signature}\n```"


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [
        n
        for n in node.body
        if isinstance(n, ast.AnnAssign)
        and isinstance(n.target, ast.Name)
        and not n.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(n.annotation)
    ]


def field_texts(node: ast.ClassDef) -> dict[str, str]:
    """Descriptions of fields: the ``description`` of pydantic's ``Field``, or the docstring below."""
    found = {}
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        words = field.value.keywords if isinstance(field.value, ast.Call) else []
        given = [word.value for word in words if word.arg == "description"]
        if given:
            found[field.target.id] = sentence(inline(str(ast.literal_eval(given[0]))))
        elif isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[field.target.id] = sentence(inline(str(after.value.value)))
    return found


def _members(one: Definition) -> Iterator[str]:
    """Fields, then public methods and properties, those of base classes in this package too."""
    rows: list[tuple[str, str, str, str]] = []
    seen: set[str] = set()
    methods: list[str] = []
    for owner in _with_bases(one):
        assert isinstance(owner.node, ast.ClassDef)
        texts = field_texts(owner.node)
        for field in _fields(owner.node):
            name = _text(field.target)
            if name not in seen:
                seen.add(name)
                rows.append((name, code(_text(field.annotation)), _default(field.value), texts.get(name, "")))
        for node in owner.node.body:
            if isinstance(node, Function) and not node.name.startswith("_") and node.name not in seen:
                seen.add(node.name)
                if any(".setter" in ast.unparse(d) or "validator" in ast.unparse(d) for d in node.decorator_list):
                    continue
                methods.append(_method(one.name, node))
    if rows:
        lines = [f"| {code(name)} | {kind} | {default} | {text} |" for name, kind, default, text in rows]
        yield "\n".join(["| field | type | default | |", "|---|---|---|---|", *lines])
    yield from methods


def _method(owner: str, node: Function) -> str:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    is_property = any(name.endswith("property") for name in decorators)
    returns = f": {_text(node.returns)}" if node.returns is not None else ""
    title = f"{node.name}{returns}" if is_property else _signature(node)
    text = docstring(ast.get_docstring(node) or "")
    heading = f"#### {owner}.{node.name} {{#{owner}.{node.name}}}"
    return "\n\n".join(part for part in (heading, f"```python\n{title}\n```", text) if part)


def _default(value: ast.expr | None) -> str:
    """The default of a field; of pydantic's ``Field(default, ...)`` the value in it."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        named = {word.arg: word.value for word in value.keywords}
        value = value.args[0] if value.args else named.get("default")
    elif isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        return ""
    return "" if value is None else code(_text(value))


def _with_bases(one: Definition) -> Iterator[Definition]:
    yield one
    assert isinstance(one.node, ast.ClassDef)
    for base in one.node.bases:
        name = ast.unparse(base).partition("[")[0]
        try:
            found = _find(one.module, name)
        except LookupError:
            continue
        if isinstance(found.node, ast.ClassDef) and found.name not in ("Config", "MechstudyError"):
            yield from _with_bases(found)


def _find(module: str, name: str) -> Definition:
    """The definition of a name that a module defines or imports.

    Raises:
        LookupError: it is not one of this package.
    """
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Definition(name, module, node)
    exported = _exports(module)
    if name not in exported:
        raise LookupError(f"{module} has no {name}")
    found = _find(*exported[name])
    return Definition(name, found.module, found.node)


@cache
def _exports(module: str) -> dict[str, tuple[str, str]]:
    """Name -> (module, name there), of everything that a module imports from this package."""
    found = {}
    package = module if _file(module).stem == "__init__" else module.rpartition(".")[0]
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*parents, *([source] if source else [])])
            if source.startswith("mechstudy"):
                found |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    return found


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    """The stub of a package where it has one, else its source."""
    path = SRC.joinpath(*module.split("."))
    for file in (path / "__init__.pyi", path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    raise LookupError(f"there is no module {module}")
