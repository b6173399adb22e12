"""The reference of the study file, from its models: every field with type, default, bounds and description."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mechstudy.core.config import Config
from mechstudy.study.study import Study
from tools.site.markup import block, code, inline, sentence

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least"}


@dataclass(frozen=True)
class Field:
    """A field, and the config of its own that it holds (``below``), if any, at its path."""

    path: str
    info: FieldInfo
    description: str
    below: type[Config] | None


@dataclass(frozen=True)
class Section:
    """The fields of one config in the study; ``path`` is empty for the study itself."""

    path: str
    config: type[Config]
    fields: tuple[Field, ...]


def sections(config: type[Config] = Study, path: str = "") -> Iterator[Section]:
    """The study, and the configs in it, in the order in which they are written."""
    texts = descriptions(config)
    fields = []
    for name, info in config.model_fields.items():
        key = info.alias or name
        holder = f"{path}.{key}" if path else key
        fields.append(Field(holder, info, texts.get(name, ""), _config_in(info.annotation)))
    yield Section(path, config, tuple(fields))
    for field in fields:
        if field.below is not None and not _is_above(field.below, path):
            yield from sections(field.below, field.path + _index(field.info.annotation))


def descriptions(config: type[Config]) -> dict[str, str]:
    """What each field is: its description, the docstring below it, or the first line of the config that it holds."""
    texts: dict[str, str] = {}
    for one in reversed(config.__mro__):
        if issubclass(one, Config) and one is not Config:
            texts |= _docstrings(one)
    for name, info in config.model_fields.items():
        below = _config_in(info.annotation)
        if info.description:
            texts[name] = info.description
        elif name not in texts and below is not None:
            texts[name] = (below.__doc__ or "").partition("\n\n")[0]
    return texts


def page() -> str:
    """The generated part of docs/reference/study-file.md."""
    parts = []
    for section in sections():
        title = section.path.replace("<", "&lt;") or "The study"
        parts.append(f"## {title} {{#{anchor(section.path) or 'the-study'}}}")
        parts.append(block(_prose(section.config)))
        rows = [_row(field) for field in section.fields]
        parts.append("\n".join(["| field | type | default | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def anchor(path: str) -> str:
    """The anchor of a field or section in the page."""
    return path.replace("[]", "").replace(".<phase>", "").replace(".", "-").lower()


def _prose(config: type[Config]) -> str:
    """The docstring of a config without the list of its fields that some have for `help`."""
    return inspect.cleandoc(config.__doc__ or "").partition("\n\nFields, and their")[0]


def _row(field: Field) -> str:
    name = field.path.rpartition(".")[2]
    label = f'<span id="{anchor(field.path)}">{code(name)}</span>'
    if field.below is not None and not _is_above(field.below, field.path):
        label = f"[{code(name)}](#{anchor(field.path)})"
    words = [_type(field.info.annotation), *_bounds(field.info)]
    return f"| {label} | {'; '.join(words)} | {_default(field.info)} | {sentence(inline(field.description))} |"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default if info.default is not PydanticUndefined else info.get_default(call_default_factory=True)
    if value is None or isinstance(value, Config) or value == () or value == {}:
        return ""
    value = getattr(value, "value", value)  # of Positions: as it is written
    return code(json.dumps(value, ensure_ascii=False).replace('"', ""))


def _bounds(info: FieldInfo) -> list[str]:
    """The limits of a field in words."""
    found = []
    for one in info.metadata:
        found += [f"{words} {getattr(one, name):g}" for name, words in _BOUNDS.items() if hasattr(one, name)]
        if getattr(one, "pattern", None):
            found.append("letters, digits and " + " ".join(code(mark) for mark in "_.-" if mark in one.pattern))
    return found


def _type(annotation: Any) -> str:
    """A type as a user of YAML reads it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is typing.Literal:
        return ", ".join(code(str(value)) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in inner if one is not types.NoneType))
    if origin is tuple:
        return f"list of {' or '.join(dict.fromkeys(_type(one) for one in inner if one is not Ellipsis))}"
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return f"mapping of {_type(inner[0])} to {_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "section"
    words = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def _config_in(annotation: Any) -> type[Config] | None:
    """The config that an annotation holds, directly or as items."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((one for inner in typing.get_args(annotation) if (one := _config_in(inner)) is not None), None)


def _index(annotation: Any) -> str:
    """How items of a list or mapping are addressed in a path."""
    origin = typing.get_origin(annotation)
    if origin is tuple:
        return "[]"
    return ".<phase>" if isinstance(origin, type) and issubclass(origin, Mapping) else ""


def _is_above(config: type[Config], path: str) -> bool:
    """Whether a variant's architecture is meant, which has the fields of the study's own."""
    return ".variants[]" in path and config.__name__ == "DictionaryConfig"


@cache
def _docstrings(config: type[Config]) -> dict[str, str]:
    """The docstrings that stand below the fields of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = str(after.value.value)  # type: ignore[attr-defined]
    return found
