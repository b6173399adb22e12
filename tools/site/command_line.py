"""The reference of the command line, from the app itself: every command, argument and option with its help."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import typer

from mechstudy.cli.app import PANELS, app, command
from tools.site.markup import code, from_rich, inline, sentence

_WORDS = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH"}


def panels() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Each panel of the help with its commands, as the words that call them; a group is followed by its own."""
    for panel, places in PANELS.items():
        if panel is None:
            continue
        listed: list[tuple[str, Any]] = []
        for place in places:
            name = place.partition(".")[2]
            found = command(name)
            listed.append((name, found))
            listed += [(f"{name} {below}", inner) for below, inner in getattr(found, "commands", {}).items()]
        yield panel, listed


def page() -> str:
    """The generated part of docs/reference/command-line.md."""
    parts = ["## mechstudy", _help(typer.main.get_command(app)), _options(typer.main.get_command(app))]
    for panel, commands in panels():
        parts.append(f"## {panel}")
        for words, one in commands:
            parts += [f"### mechstudy {words} {{#{words.replace(' ', '-')}}}", _help(one), _usage(words, one)]
            parts.append(_options(one))
    return "\n\n".join(part for part in parts if part)


def _help(one: Any) -> str:
    paragraphs = from_rich(one.help or "").split("\n\n")
    return "\n\n".join(_paragraph(paragraph) for paragraph in paragraphs if paragraph.strip())


def _paragraph(text: str) -> str:
    """A paragraph of help; one that is nothing but a command is a block of code."""
    text = text.strip()
    if text.startswith("`") and text.endswith("`") and text.count("`") == 2:
        return f"```bash\n{text.strip('`')}\n```"
    return inline(text)


def _usage(words: str, one: Any) -> str:
    if hasattr(one, "commands"):
        return ""
    arguments = [param for param in one.params if not param.opts[0].startswith("-")]
    names = [_metavar(a) if a.required else f"[{_metavar(a)}]" for a in arguments]
    names = [name + ("..." if argument.nargs == -1 else "") for name, argument in zip(names, arguments, strict=True)]
    return f"```text\nmechstudy {' '.join([words, *names, '[OPTIONS]'])}\n```"


def _options(one: Any) -> str:
    rows = [_row(param) for param in one.params if not getattr(param, "hidden", False)]
    if not rows:
        return ""
    return "\n".join(["| argument or option | default | |", "|---|---|---|", *rows])


def _row(param: Any) -> str:
    if param.opts[0].startswith("-"):
        flag = getattr(param, "is_flag", False)
        names = ", ".join(code(name) for name in (*param.opts, *param.secondary_opts))
        name = names if flag else f"{names} {code(_metavar(param))}"
    else:
        name = code(_metavar(param))
    text = sentence(inline(from_rich(param.help or "")))
    return f"| {name} | {_default(param)} | {text}{_bounds(param)} |"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    if value is None or value is False or value == () or callable(value):
        return ""
    return code(" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _bounds(param: Any) -> str:
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    if low is None and high is None:
        return ""
    return f" (at least {low})" if high is None else f" (at most {high})" if low is None else f" ({low} to {high})"


def _metavar(param: Any) -> str:
    return str(param.metavar or _word(param.type_descriptor.annotation, param.name))


def _word(annotation: Any, name: str) -> str:
    """What an argument without a metavar is called: its choices, or its kind."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(map(str, inner))
    if origin in (list, tuple, typing.Union, types.UnionType) and inner:
        return _word(inner[0], name)
    return _WORDS.get(getattr(annotation, "__name__", ""), name.upper())
