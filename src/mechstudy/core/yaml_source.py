"""YAML files as plain data with the line of every key and ``--set`` overrides applied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from mechstudy.core.errors import MechstudyError, nearest

Key = str | int
KeyPath = tuple[Key, ...]


Names = tuple[str, ...]


def dotted(path: Sequence[Key]) -> str:
    """``("behaviours", 0, "n")`` -> ``behaviours.0.n``."""
    return ".".join(str(key) for key in path)


@dataclass
class Lines:
    """The source of each key: a line of the file, or a ``--set`` of the command line.

    Paths are dotted text (``behaviours.0.n``) or tuples of keys and list positions.
    """

    file: Path
    by_path: dict[Names, int] = field(default_factory=dict)
    overrides: list[Names] = field(default_factory=list)
    values: dict[Names, str] = field(default_factory=dict)  # of overrides, as written

    def keys(self, path: str | Sequence[Key]) -> Names:
        """A path as a tuple of texts."""
        if isinstance(path, str):
            return tuple(path.split(".")) if path else ()
        return tuple(str(key) for key in path)

    def line(self, path: str | Sequence[Key]) -> int | None:
        """The line of a key, or of the nearest enclosing one that is in the file; None where none is."""
        keys = self.keys(path)
        enclosing = (keys[:depth] for depth in range(len(keys), -1, -1))
        return next((self.by_path[above] for above in enclosing if above in self.by_path), None)

    def where(self, path: str | Sequence[Key]) -> str:
        """``study.yaml:14`` of a key, or of the nearest enclosing one that is in the file."""
        line = self.line(path)
        return str(self.file) if line is None else f"{self.file}:{line}"

    def override(self, path: str | Sequence[Key]) -> Names | None:
        """The path of the override that set this key or one that encloses it, or that created it."""
        keys = self.keys(path)
        setting = [override for override in self.overrides if keys[: len(override)] == override]
        if not setting and keys and keys not in self.by_path:
            setting = [override for override in self.overrides if override[: len(keys)] == keys]
        return setting[-1] if setting else None

    def error(
        self, path: str | Sequence[Key], what: str, *, facts: Mapping[str, str] | None = None, fix: str | None = None
    ) -> MechstudyError:
        """A MechstudyError ``study.yaml:14: capture.layers: <what>`` or ``--set capture.layers: <what>``."""
        keys = self.keys(path)
        override = self.override(keys)
        where = self.where(keys) if override is None else f"--set {dotted(override)}"
        name = dotted(keys[len(override or ()) :])
        return MechstudyError(f"{name}: {what}" if name else what, where=where, facts=facts, fix=fix)


@dataclass
class YamlSource:
    """Plain data and the lines of its keys."""

    data: dict[str, Any]
    lines: Lines


class _Constructor(SafeConstructor):
    """Constructs plain data. Dates stay text: no config has dates, and ``revision: 2024-01-01`` is a name."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _reader() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> YamlSource:
    """Reads a file whose root is a mapping, and applies the overrides.

    Raises:
        MechstudyError: the file is absent, empty, not text, not valid YAML or not a mapping, or has a key twice;
            an override is not ``key=value``, not valid YAML, or leads nowhere.
    """
    text = _text_of(path)
    lines = Lines(path)
    rows = text.splitlines()
    try:
        yaml = _reader()
        node = yaml.compose(text)
        if node is None:
            raise MechstudyError("the file is empty", where=str(path), fix="write a study into it")
        _note_lines(node, (), lines, ())
        data = yaml.constructor.construct_document(node)
    except YAMLError as error:
        raise _syntax_error(error, str(path), rows) from None
    if not isinstance(data, dict):
        kind = {list: "a list", str: "text", type(None): "nothing"}.get(type(data), f"{data!r}")
        line = node.start_mark.line + 1
        raise MechstudyError(f"must be a mapping of keys to values, not {kind}", where=f"{path}:{line}")
    for override in overrides:
        data = _apply(data, override, lines)
    return YamlSource(data, lines)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        folder, others = path.parent, sorted(p.name for p in path.parent.glob("*.y*ml"))
        raise MechstudyError(
            "no such file",
            where=str(path),
            facts={"there": ", ".join(others) or f"no YAML files in {folder}"},
            fix=str(folder / close) if (close := nearest(path.name, others)) else "mechstudy init writes a study",
        ) from None
    except OSError as error:
        others = sorted(p.name for p in path.glob("*.y*ml"))
        raise MechstudyError(
            "is a folder, not a study file" if path.is_dir() else f"cannot be read: {error.strerror}",
            where=str(path),
            fix=str(path / others[0]) if others else "the path of a study's YAML file",
        ) from None
    except UnicodeDecodeError as error:
        raise MechstudyError(f"not UTF-8 text (byte {error.start})", where=str(path), fix="save it as UTF-8") from None


def _note_lines(node: Node, path: Names, lines: Lines, above: tuple[int, ...]) -> None:
    """Fills ``lines`` with the line of every key below a node. An alias has the line of its anchor."""
    lines.by_path.setdefault(path, node.start_mark.line + 1)
    if id(node) in above:
        raise MechstudyError(f"{dotted(path)}: refers to itself", where=lines.where(path))
    above = (*above, id(node))
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*path, str(index)), lines, above)
    elif isinstance(node, MappingNode):
        _note_mapping(node, path, lines, above)


def _note_mapping(node: MappingNode, path: Names, lines: Lines, above: tuple[int, ...]) -> None:
    first_lines: dict[str, int] = {}
    merged: list[Node] = []
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            raise MechstudyError(
                f"{dotted((*path, 'key'))}: must be text, not a list or mapping", where=f"{lines.file}:{line}"
            )
        if key_node.tag == "tag:yaml.org,2002:merge":
            merged.extend(value_node.value if isinstance(value_node, SequenceNode) else [value_node])
            continue
        key: str = key_node.value
        if key in first_lines:
            raise MechstudyError(
                f"{dotted((*path, key))}: given twice",
                where=f"{lines.file}:{line}",
                facts={"first": f"line {first_lines[key]}"},
                fix="keep one of them",
            )
        first_lines[key] = line
        lines.by_path[(*path, key)] = line
        _note_lines(value_node, (*path, key), lines, above)
    for source in merged:
        own = dict(lines.by_path)
        _note_lines(source, path, lines, above)
        lines.by_path.update(own)  # a mapping's own keys override merged ones


def _syntax_error(error: YAMLError, where: str, rows: list[str] | None) -> MechstudyError:
    """A YAML error in one line, with its place where ``rows`` (the file's lines) are passed."""
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(text) for text in (error.context, error.problem) if text)
        if error.context_mark is not None and re.search(r"end of stream|<(stream|document) end>", problem):
            mark = error.context_mark  # something was never closed: name the line that opened it
        facts = {}
        if rows is not None and mark is not None:
            where = f"{where}:{mark.line + 1}"
            if mark.line < len(rows) and rows[mark.line].strip():
                facts = {"text": rows[mark.line].strip()}
        return MechstudyError(f"not valid YAML: {problem}", where=where, facts=facts)
    reason = error.reason if isinstance(error, ReaderError) else str(error).splitlines()[0]
    return MechstudyError(f"not valid YAML: {reason}", where=where)


def _apply(data: dict[str, Any], override: str, lines: Lines) -> dict[str, Any]:
    """The data with ``a.b.0.c=value`` applied; values off that path are shared, not copied."""
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not name or "" in name.split("."):
        fix = "for example --set seed=1"
        raise MechstudyError("is not of the form key=value", where=f"--set {override}", fix=fix)
    yaml = _reader()
    try:
        node = yaml.compose(text)
        value = None if node is None else yaml.constructor.construct_document(node)
    except YAMLError as error:
        raise _syntax_error(error, f"--set {name}", None) from None
    keys = tuple(name.split("."))
    lines.overrides.append(keys)
    lines.values[keys] = text
    result: dict[str, Any] = _with(data, list(keys), value, (), name)
    return result


def _with(container: Any, parts: list[str], value: Any, path: Names, name: str) -> Any:
    """A copy of the container with one value replaced."""
    if not parts:
        return value
    part, *rest = parts
    if isinstance(container, list):
        if not part.isdecimal() or int(part) > len(container):
            raise MechstudyError(
                f"{dotted(path)} is a list of {len(container)}, and {part} is no position in it",
                where=f"--set {name}",
                fix=f"use 0 to {len(container)} ({len(container)} appends)",
            )
        index = int(part)
        below = container[index] if index < len(container) else None
        changed = _with(below, rest, value, (*path, part), name)
        return [*container[:index], changed, *container[index + 1 :]]
    if container is None and part == "0":
        return [_with(None, rest, value, (*path, part), name)]
    if container is not None and not isinstance(container, dict):
        raise MechstudyError(f"{dotted(path)} is {container!r}, which has nothing named {part}", where=f"--set {name}")
    members: dict[Any, Any] = container or {}
    key: Key = int(part) if part not in members and part.isdecimal() and int(part) in members else part
    return {**members, key: _with(members.get(key), rest, value, (*path, part), name)}
