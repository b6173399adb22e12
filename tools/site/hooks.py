"""Hooks of MkDocs: generated reference pages, and links that leave docs/ for other files of the repository."""

from __future__ import annotations

import json
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # the reference is that of this tree, wherever it is installed from

from tools.site import command_line, python_api, study_fields  # noqa: E402

GENERATED: dict[str, Callable[[], str]] = {
    "command-line": command_line.page,
    "study-file": study_fields.page,
    "api": python_api.page,
}
# Pages of the repository's root, and their addresses in the site.
PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
EXAMPLES = "examples/index.md"
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_MARK = re.compile(r"<!-- generated: ([\w-]+) .*?-->")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get the anchors that they have on GitHub."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the root's pages, and the examples as a page and as files."""
    for source, address in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, address, content=_in_site(text, source, address)))
    files.append(File.generated(config, EXAMPLES, content=_examples()))
    for path in _example_files():
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    summary = _in_site((ROOT / "llms.txt").read_text(encoding="utf-8"), "llms.txt", "llms.txt")
    files.append(File.generated(config, "llms.txt", content=re.sub(r"\.md\)", ".html)", summary)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces marks by generated text, and links to other files of the repository by links to their pages."""
    address = page.file.src_uri
    if address in PAGES.values() or address == EXAMPLES:
        return markdown
    return _MARK.sub(lambda match: GENERATED[match[1]](), _in_site(markdown, f"docs/{address}", address))


def _in_site(markdown: str, source: str, address: str) -> str:
    """Markdown of a file of the repository with its links as they are at its address in the site."""
    parts = _FENCE.split(markdown)
    return "".join(part if n % 2 else _LINK.sub(_relinked(source, address), part) for n, part in enumerate(parts))


def _relinked(source: str, address: str) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        place = _place(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        relative = posixpath.relpath(place.partition("#")[0], posixpath.dirname(address) or ".")
        anchor = anchor or place.partition("#")[2]
        return f"{match[1]}{relative}{f'#{anchor}' if anchor else ''}{match[3]}"

    return replace


def _place(path: str) -> str:
    """Where a file or folder of the repository is in the site."""
    if path in PAGES:
        return PAGES[path]
    if path == "README.md":
        return "index.md"
    if path.startswith("examples"):
        return f"{EXAMPLES}#{_anchor(path)}" if path != "examples" else EXAMPLES
    inside = path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{inside}/README.md"
    return inside if path.startswith("docs/") else path


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.removeprefix("examples/").lower())


def _example_files() -> list[Path]:
    return [path for path in sorted((ROOT / "examples").rglob("*")) if path.suffix in (".yaml", ".py", ".ipynb")]


def _examples() -> str:
    """The examples on one page; notebooks by their titles."""
    parts = ["# Examples", "Files of `examples/`, as they are in the repository."]
    for path in _example_files():
        if path.suffix != ".ipynb":
            name, language = path.name, "yaml" if path.suffix == ".yaml" else "python"
            text = path.read_text(encoding="utf-8")
            parts += [f"## {name} {{#{_anchor(name)}}}", f"[Download]({name})", f"```{language}\n{text}```"]
    parts += ["## Notebooks {#notebooks}", "\n".join(_notebook(path) for path in _example_files())]
    return "\n\n".join(parts)


def _notebook(path: Path) -> str:
    if path.suffix != ".ipynb":
        return ""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    title = "".join(cells[0]["source"]).partition("\n")[0].lstrip("# ")
    return f"- [{title}](notebooks/{path.name})"
