"""Rules of the code that no other tool checks: imports, phases, options, words, sizes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest

from mechstudy.core.work import WorkKind
from mechstudy.machine.runtime_options import RunOptions, RuntimeOptions
from mechstudy.study.phases import registry
from mechstudy.study.study import ComputeConfig
from tests.support.commands import commands
from tests.support.source import PACKAGE, ROOT, SRC, imports, python_files, statements, tree_of

PHASES = {phase.kind for phase in registry.phases()} | set(registry.names())
KINDS_OF_WORK = set(get_args(WorkKind))
PHASES_FOLDER = PACKAGE / "study" / "phases"
AN_UNIT = re.compile(rf"({'|'.join(sorted(PHASES))})\[")
FORBIDDEN = re.compile(
    r"\b(told|mend(s|ed|ing)?|anew|ill(?!-)|came to be|goes by|go by|gone by|lets? go|look(s|ed) after|"
    r"puts itself back|of a narrow terminal|without a word|as people bring them)\b",
    re.IGNORECASE,
)
TEXTS = ("*.py", "*.pyi", "*.md", "*.js", "*.css", "*.html", "*.yaml", "*.ipynb", "*.toml")

# ---------------------------------------------------------------------------------------------- imports


def test_modules_import_each_other_in_no_circle():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(reversed(error.args[1])))


def test_a_circle_through_a_lazy_facade_is_seen():
    edges = imports()
    assert "mechstudy.activations.store" in edges["mechstudy.activations"]
    with pytest.raises(CycleError):
        TopologicalSorter({**edges, "mechstudy.activations.store": {"mechstudy.activations"}}).prepare()


def test_at_most_a_hundred_imports_stand_inside_functions():
    inside = [
        f"{file.relative_to(SRC)}:{node.lineno}"
        for file in python_files()
        for node, in_function in statements(tree_of(file))
        if in_function
    ]
    assert len(inside) <= 100, inside


def test_no_test_imports_another_test():
    for file in python_files(ROOT / "tests"):
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                targets = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    targets = [f"{node.module or ''}.{target}" for target in targets]
                shared = [t for t in targets if t.startswith("tests.") and ".test_" in t]
                assert not shared, f"{file.relative_to(ROOT)}:{node.lineno}: {shared}"


# ----------------------------------------------------------------------------------------------- phases


def names_of(node: ast.AST) -> set[str]:
    """Names of phases among the constants of an expression."""
    constants = {item.value for item in ast.walk(node) if isinstance(item, ast.Constant)}
    return {value for value in constants if isinstance(value, str) and value in PHASES}


def speaks_of_phases(*nodes: ast.AST | None) -> bool:
    """Whether code mentions a phase in its names; its strings do not count."""
    names = {
        name
        for node in nodes
        if node is not None
        for item in ast.walk(node)
        for name in (getattr(item, "id", None), getattr(item, "attr", None), getattr(item, "arg", None))
        if isinstance(name, str)
    }
    return any("phase" in name.lower() for name in names)


def path_of(node: ast.AST) -> Iterator[ast.AST]:
    """The names of ``a.b.c``, without what was called or looked up on the way."""
    while isinstance(node, ast.Attribute):
        yield ast.Name(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        yield node


def places(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that name a phase, and how."""
    exported = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and AN_UNIT.match(node.value):
            yield node.lineno, f"the unit {node.value!r}"
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(names_of(side) for side in sides) and speaks_of_phases(*sides):
                yield node.lineno, f"compares: {ast.unparse(node)}"
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            if names_of(node.slice) and speaks_of_phases(node.value):
                yield node.lineno, f"looks up: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            given = [arg for arg in node.args if isinstance(arg, ast.Constant)]
            given += [word.value for word in node.keywords if word.arg and "phase" in word.arg]
            if any(names_of(arg) for arg in given if isinstance(arg, ast.Constant)) and speaks_of_phases(
                *path_of(node.func), *(word for word in node.keywords if word.arg and "phase" in word.arg)
            ):
                yield node.lineno, f"asks: {ast.unparse(node)}"
        elif isinstance(node, ast.match_case) and names_of(node.pattern):
            yield node.pattern.lineno, f"matches: {ast.unparse(node.pattern)}"
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            keys = [key for key in node.value.keys if isinstance(key, ast.Constant)]
            if speaks_of_phases(target) and any(names_of(key) for key in keys):
                yield node.lineno, f"a table of phases: {ast.unparse(target)}"
        if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict) and id(node) not in exported:
            items = node.keys if isinstance(node, ast.Dict) else node.elts
            constants = {item.value for item in items if isinstance(item, ast.Constant)}
            named = constants & PHASES
            if len(named) > 2 and not constants <= KINDS_OF_WORK:
                yield node.lineno, f"lists phases: {sorted(named)}"


@pytest.mark.parametrize(
    "code",
    [
        'unit = "train[12]"',
        'unit = f"train[{layer}]"',
        'if unit.phase.name == "train": pass',
        'if phase in ("train", "capture"): pass',
        'graph.of_phase("train")',
        'options.phases["train"]',
        'options.phases.get("train")',
        'by_phase = {"train": 1}',
        'make(phase="train")',
        'ORDER = ("model", "corpus", "report")',
        "match phase:\n    case 'train': pass",
    ],
)
def test_a_place_that_names_a_phase_is_seen(code):
    assert list(places(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        'store = artifact.store("train")',
        'if split == "train": pass',
        'rows = by_split["train"]',
        'SPLITS = ("train", "test")',
        'output_of(PromptsPhase).pairs("train")',
        'WORK = ("forward", "train", "attribute", "stream")',
        'config = {"model": source, "corpus": "bundled"}',
    ],
)
def test_splits_and_ordinary_words_are_no_phases(code):
    assert not list(places(ast.parse(code)))


def test_only_phases_name_a_phase():
    found = [
        f"{file.relative_to(SRC)}:{line}: {how}"
        for file in python_files()
        if not file.is_relative_to(PHASES_FOLDER)
        for line, how in places(tree_of(file))
    ]
    assert not found, "\n" + "\n".join(found)


# ---------------------------------------------------------------------------------------------- options


def test_the_runtimes_options_are_defined_once():
    """Other records may hold what device, threads and batches resolved to, and one more field of the options."""
    options = set(RuntimeOptions.model_fields) - {"device", "threads", "batch_tokens"}
    found = {
        node.name: sorted(own)
        for file in python_files()
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.ClassDef) and len(own := options & fields_of(node)) > 1
    }
    assert list(found) == ["RuntimeOptions"], found
    assert issubclass(ComputeConfig, RuntimeOptions) and issubclass(RunOptions, RuntimeOptions)


def fields_of(node: ast.ClassDef) -> set[str]:
    """The annotated fields of a class."""
    return {
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


# ------------------------------------------------------------------------------------------------ words


def forbidden_in(folder: Path) -> list[str]:
    files = [folder] if folder.is_file() else [file for pattern in TEXTS for file in folder.rglob(pattern)]
    return [
        f"{file.relative_to(ROOT)}:{number}: {match[0]}"
        for file in sorted(files)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for match in FORBIDDEN.finditer(line)
    ]


def test_the_source_uses_plain_words():
    found = forbidden_in(PACKAGE)
    assert not found, f"{len(found)}\n" + "\n".join(found)


def test_the_documentation_uses_plain_words():
    found = [*forbidden_in(ROOT / "docs"), *forbidden_in(ROOT / "README.md")]
    assert not found, f"{len(found)}\n" + "\n".join(found)


def test_the_help_of_every_command_uses_plain_words():
    for words, command in commands():
        texts = [command.help, *(getattr(option, "help", None) for option in command.params)]
        found = [match[0] for text in texts if text for match in FORBIDDEN.finditer(" ".join(text.split()))]
        assert not found, f"mechstudy {' '.join(words)} --help: {found}"


# ------------------------------------------------------------------------------------------------ sizes


def test_no_source_file_is_longer_than_450_lines():
    sizes = {
        str(file.relative_to(SRC)): len(file.read_text(encoding="utf-8").splitlines())
        for pattern in TEXTS
        for file in PACKAGE.rglob(pattern)
    }
    assert not {name: lines for name, lines in sizes.items() if lines > 450}
