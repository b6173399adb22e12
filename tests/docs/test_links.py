"""Links, commands, modules and files that the documentation names exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.commands import commands

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        ROOT / "llms.txt",
        ROOT / "benchmarks" / "README.md",
        ROOT / "paper" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(rf"{FENCE.pattern}|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|`|&& |\$ |-m )mechstudy (--?[a-z]+ )*([a-z]+)(?: ([a-z]+)\b)?", re.MULTILINE)
MODULE = re.compile(r"(?<![\w/])(?:mechstudy|benchmarks|tests)(?:\.[A-Za-z_]\w*)+(?!\w|\.\w)")
FILE = re.compile(r"`((?:src|tests|benchmarks|examples|docs)/[\w./*-]+)`")


def codes(page: Path) -> Iterator[str]:
    """The code blocks and code spans of a page."""
    return (match[0] for match in CODE.finditer(page.read_text()))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def names_in(file: Path) -> set[str]:
    """What a module or a stub defines or imports at its top level."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module holds."""
    *parents, last = name.split(".")
    folder = ROOT.joinpath("src" if parents[0] == "mechstudy" else "", *parents)
    if (folder / last).is_dir() or (folder / f"{last}.py").is_file():
        return True
    files = [folder / "__init__.pyi", folder / "__init__.py", folder.with_suffix(".py")]
    return any(last in names_in(file) for file in files if file.is_file())


def test_relative_links_and_images_exist():
    missing = []
    for page in PAGES:
        for target in LINK.findall(FENCE.sub("", page.read_text())):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not re.match(r"[a-z]+:", target) and not (file.exists() and (not anchor or anchor in anchors(file))):
                missing.append(f"{page.relative_to(ROOT)}: {target}")
    assert not missing


def test_every_page_is_linked_from_the_readme():
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall((ROOT / "README.md").read_text())}
    assert not [page.name for page in (ROOT / "docs").rglob("*.md") if not {page, page.parent} & linked]


def test_commands_in_the_docs_exist():
    existing = {words[0]: set(getattr(command, "commands", ())) for words, command in commands() if len(words) == 1}
    missing = []
    for page in PAGES:
        for code in codes(page):
            for _, name, sub in COMMAND.findall(code):
                if name not in existing or (existing[name] and sub and sub not in existing[name]):
                    missing.append(f"{page.relative_to(ROOT)}: mechstudy {name} {sub}")
    assert not missing


def test_modules_in_the_docs_exist():
    named = {
        (str(page.relative_to(ROOT)), name) for page in PAGES for code in codes(page) for name in MODULE.findall(code)
    }
    assert not [f"{page}: {name}" for page, name in sorted(named) if not exists(name)]


def test_files_in_the_docs_exist():
    named = {(str(page.relative_to(ROOT)), name) for page in PAGES for name in FILE.findall(page.read_text())}
    assert not [f"{page}: {name}" for page, name in sorted(named) if not list(ROOT.glob(name.rstrip("/")))]
