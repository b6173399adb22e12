"""A YAML file as plain data that remembers the line of every key, with ``--set`` overrides laid over it."""

from __future__ import annotations

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


def dotted(path: Sequence[Key]) -> str:
    """``("behaviours", 0, "n")`` -> ``behaviours.0.n``."""
    return ".".join(str(key) for key in path)


@dataclass
class Lines:
    """Where each key stands: a line of the file, or a ``--set`` of the command line."""

    file: Path
    by_path: dict[KeyPath, int] = field(default_factory=dict)
    overrides: list[KeyPath] = field(default_factory=list)

    def where(self, path: str | KeyPath) -> str:
        """``study.yaml:14`` of a key, or of the nearest enclosing one that is written in the file."""
        keys = self._keys(path)
        for depth in range(len(keys), -1, -1):
            if keys[:depth] in self.by_path:
                return f"{self.file}:{self.by_path[keys[:depth]]}"
        return str(self.file)

    def override(self, path: str | KeyPath) -> KeyPath | None:
        """The path of the override that decided this key: it set the key, something around it, or made it."""
        keys = self._keys(path)
        for given in reversed(self.overrides):
            if keys[: len(given)] == given:
                return given
        if keys and keys not in self.by_path:
            for given in reversed(self.overrides):
                if given[: len(keys)] == keys:
                    return given
        return None

    def error(
        self,
        path: str | KeyPath,
        what: str,
        *,
        facts: Mapping[str, str] | None = None,
        fix: str | None = None,
    ) -> MechstudyError:
        """A MechstudyError at a key: ``study.yaml:14: capture.layers: <what>``, or ``--set capture.layers: ...``."""
        keys = self._keys(path)
        given = self.override(keys)
        if given is not None:
            below = dotted(keys[len(given) :])
            return MechstudyError(
                f"{below}: {what}" if below else what, where=f"--set {dotted(given)}", facts=facts, fix=fix
            )
        return MechstudyError(
            f"{dotted(keys)}: {what}" if keys else what, where=self.where(keys), facts=facts, fix=fix
        )

    def line(self, path: KeyPath) -> int:
        """The line of a key or of the nearest enclosing one; overrides come before all lines."""
        if self.override(path) is not None:
            return 0
        for depth in range(len(path), -1, -1):
            if path[:depth] in self.by_path:
                return self.by_path[path[:depth]]
        return 1

    def _keys(self, path: str | KeyPath) -> KeyPath:
        if not isinstance(path, str):
            return tuple(path)
        return tuple(int(part) if part.isdecimal() else part for part in path.split(".")) if path else ()


@dataclass
class YamlSource:
    """Plain data and the lines it stands on."""

    data: dict[str, Any]
    lines: Lines


class _Constructor(SafeConstructor):
    """Plain data; dates stay text, since no config has dates and ``revision: 2024-01-01`` is a name."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _reader() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def writer() -> YAML:
    """A YAML writer: block style, keys in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # annotated None in ruamel
    yaml.allow_unicode = True
    yaml.width = 100
    return yaml


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> YamlSource:
    """Reads a file whose root is a mapping, and lays the overrides over it.

    Raises:
        MechstudyError: no such file, not text, bad syntax, a key given twice, empty, not a mapping at its
            root; an override that is no ``key=value``, no YAML, or leads nowhere.
    """
    text = _text_of(path)
    lines = Lines(path)
    try:
        yaml = _reader()
        node = yaml.compose(text)
        if node is None:
            raise MechstudyError("the file is empty", where=str(path), fix="write a study into it")
        _note_lines(node, (), lines, ())
        data = yaml.constructor.construct_document(node)
    except YAMLError as error:
        raise _syntax_error(error, str(path)) from None
    if not isinstance(data, dict):
        raise MechstudyError(
            f"must be a mapping of keys to values, not {_kind(data)}",
            where=f"{path}:{node.start_mark.line + 1}",
        )
    for override in overrides:
        data = _apply(data, override, lines)
    return YamlSource(data, lines)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        folder = path.parent
        others = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
        raise MechstudyError(
            "no such file",
            where=str(path),
            facts={"there": ", ".join(others) or f"no YAML files in {folder}"},
            fix=str(folder / close) if (close := nearest(path.name, others)) else None,
        ) from None
    except UnicodeDecodeError as error:
        raise MechstudyError(f"not UTF-8 text (byte {error.start})", where=str(path)) from None
    except OSError as error:
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from None


def _note_lines(node: Node, path: KeyPath, lines: Lines, above: tuple[int, ...]) -> None:
    """Fills ``lines`` with the line of every key below a node. Aliases count where they are used."""
    if path not in lines.by_path:
        lines.by_path[path] = node.start_mark.line + 1
    if id(node) in above:
        raise MechstudyError("refers to itself", where=lines.where(path))
    above = (*above, id(node))
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*path, index), lines, above)
    elif isinstance(node, MappingNode):
        _note_mapping(node, path, lines, above)


def _note_mapping(node: MappingNode, path: KeyPath, lines: Lines, above: tuple[int, ...]) -> None:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            continue  # a mapping or list as a key: the constructor or the config refuses it
        line = key_node.start_mark.line + 1
        if key_node.tag == "tag:yaml.org,2002:merge":
            merged = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            for source in merged:
                if isinstance(source, MappingNode):
                    _note_lines(source, path, lines, above)
            continue
        key: str = key_node.value
        if key in seen:
            raise MechstudyError(
                f"{dotted((*path, key))}: given twice",
                where=f"{lines.file}:{line}",
                facts={"first": f"line {seen[key]}"},
                fix="keep one of them",
            )
        seen[key] = line
        lines.by_path[(*path, key)] = line
        _note_lines(value_node, (*path, key), lines, above)


def _syntax_error(error: YAMLError, where: str) -> MechstudyError:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(text) for text in (error.context, error.problem) if text)
        facts = {}
        if mark is not None:
            where = f"{where}:{mark.line + 1}"
            snippet = (mark.get_snippet(indent=0) or "").strip("\n")
            facts = {"text": snippet} if snippet else {}
        return MechstudyError(f"not valid YAML: {problem}", where=where, facts=facts)
    if isinstance(error, ReaderError):
        character = f"U+{error.character:04X}" if isinstance(error.character, int) else repr(error.character)
        return MechstudyError(f"not valid YAML: character {character} is not allowed", where=where)
    return MechstudyError(f"not valid YAML: {str(error).splitlines()[0]}", where=where)


def _kind(data: object) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(type(data), f"{data!r}")


def _apply(data: dict[str, Any], override: str, lines: Lines) -> dict[str, Any]:
    """The data with ``a.b.0.c=value`` laid over it; what is not on the way is shared, not copied."""
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not name or "" in name.split("."):
        raise MechstudyError(
            "is not of the form key=value",
            where=f"--set {override}",
            fix="for example --set training.steps=100",
        )
    yaml = _reader()
    try:
        node = yaml.compose(text)
        value = None if node is None else yaml.constructor.construct_document(node)
    except YAMLError as error:
        raise _syntax_error(error, f"--set {name}") from None
    path, changed = _with(data, name.split("."), value, (), name)
    lines.overrides.append(path)
    result: dict[str, Any] = changed
    return result


def _with(container: Any, parts: list[str], value: Any, path: KeyPath, name: str) -> tuple[KeyPath, Any]:
    """The container with one value replaced, and the path to it with list positions as integers."""
    if not parts:
        return path, value
    part = parts[0]
    if isinstance(container, list):
        if not part.isdecimal() or int(part) > len(container):
            raise MechstudyError(
                f"{dotted(path)} is a list of {len(container)}, and {part} is no position in it",
                where=f"--set {name}",
                fix=f"use 0 to {len(container)} ({len(container)} appends)",
            )
        index = int(part)
        items = list(container)
        below = items[index] if index < len(items) else None
        full, changed = _with(below, parts[1:], value, (*path, index), name)
        items[index : index + 1] = [changed]
        return full, items
    if container is None:
        container = {}
    if not isinstance(container, dict):
        raise MechstudyError(
            f"{dotted(path)} is {container!r}, which has nothing named {part}", where=f"--set {name}"
        )
    full, changed = _with(container.get(part), parts[1:], value, (*path, part), name)
    return full, {**container, part: changed}
