"""Help texts, descriptions and docstrings as Markdown."""

from __future__ import annotations

import html
import inspect
import re
import textwrap

_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_RICH = re.compile(r"(?<!\\)\[(?:cyan|dim|bold|green|yellow|red)\](.*?)(?<!\\)\[/\w*\]", re.DOTALL)
_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_PAGE = re.compile(r"docs/([\w/-]+)\.md")  # generated pages are in docs/reference
_ITEM = re.compile(r"^(\*{0,2}[\w., |]+?): +(.*)$", re.DOTALL)


def code(text: str) -> str:
    """A code span, also in a cell of a table."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"


def inline(text: str) -> str:
    """One paragraph of plain text, in which backticks mark code."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(code(part.strip("`")) if number % 2 else _plain(part) for number, part in enumerate(parts))


def _plain(text: str) -> str:
    escaped = html.escape(text, quote=False).replace("|", "&#124;")
    escaped = re.sub(r"([*_\[\]])", r"\\\1", escaped)
    return _PAGE.sub(lambda match: f"[{match[1].rpartition('/')[2].replace('-', ' ')}](../{match[1]}.md)", escaped)


def from_rich(text: str) -> str:
    """A help text without its styles; what they mark is code."""
    return _RICH.sub(lambda match: "`" + match[1].replace("`", "") + "`", text).replace("\\[", "[")


def sentence(text: str) -> str:
    """A description as a sentence without its full stop, as cells of tables have it."""
    text = " ".join(text.split())
    return text[:-1] if text.endswith(".") else text


def block(text: str) -> str:
    """Paragraphs, lists and indented code of a docstring, without its sections."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith("    "):
            parts.append("```python\n" + textwrap.dedent(paragraph).strip("\n") + "\n```")
        elif re.match(r"[-*] ", paragraph):
            parts.append("\n".join("- " + inline(item) for item in re.split(r"^[-*] ", paragraph, flags=re.M)[1:]))
        else:
            parts.append(inline(paragraph))
    return "\n\n".join(_joined(parts))


def _joined(parts: list[str]) -> list[str]:
    """Code blocks that a blank line parted, as one."""
    joined: list[str] = []
    for part in parts:
        if joined and part.startswith("```python") and joined[-1].startswith("```python"):
            joined[-1] = joined[-1][:-3] + "\n" + part.removeprefix("```python\n")
        else:
            joined.append(part)
    return joined


def docstring(text: str) -> str:
    """A docstring in Google's style as Markdown; arguments and errors become lists."""
    text = inspect.cleandoc(text)
    titles = "|".join(_SECTIONS)
    prose, *sections = re.split(rf"^({titles}):\n", text, flags=re.MULTILINE)
    parts = [block(prose)]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        inside, after = _indented(body)
        items = [_ITEM.match(item) for item in _items(inside)]
        if all(items) and items:
            lines = [f"- {code(item[1])}: {inline(item[2])}" for item in items if item]
            parts.append(f"**{'Arguments' if title == 'Args' else title}**\n\n" + "\n".join(lines))
        else:
            parts.append(f"**{title}**\n\n{block(textwrap.dedent(inside))}")
        if after.strip():
            parts.append(block(after))
    return "\n\n".join(parts)


def _indented(body: str) -> tuple[str, str]:
    """The indented lines that a section begins with, and the rest."""
    lines = body.splitlines()
    end = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith(" ")), len(lines))
    return "\n".join(lines[:end]), "\n".join(lines[end:])


def _items(section: str) -> list[str]:
    """The items of a section; lines of one item are joined."""
    items: list[str] = []
    for line in textwrap.dedent(section).splitlines():
        if line and not line.startswith(" "):
            items.append(line)
        elif items:
            items[-1] += " " + line.strip()
    return items
